"""Order of computation: which cell comes next, decided from outcomes alone. Pure."""
