"""Utilities without a word of the field: files, hashes, caches, downloads."""
