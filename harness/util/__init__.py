"""Files, hashing, downloads and caches; nothing of the field."""
