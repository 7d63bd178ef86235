"""Nothing of the field: files, caches, downloads."""
