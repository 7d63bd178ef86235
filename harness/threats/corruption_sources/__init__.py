"""Sources of corrupted images: official datasets, and a generator."""
