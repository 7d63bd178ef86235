"""Which cell next? Decided from outcomes alone. Pure."""
