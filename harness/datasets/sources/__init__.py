"""Sources: how images are held and read by number."""
