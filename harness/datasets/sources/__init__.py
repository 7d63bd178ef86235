"""Sources: images in memory, in files, or decoded by a library, read by index."""
