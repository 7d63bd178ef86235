"""Corruption sources: where corrupted images come from."""
