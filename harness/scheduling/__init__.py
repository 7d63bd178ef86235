"""Scheduling: which cell is computed next, decided from outcomes alone. Pure."""
