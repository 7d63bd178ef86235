"""Architectures that the package defines itself."""
