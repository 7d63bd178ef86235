"""Scheduling: which trials are made next, decided from answers alone. Pure."""
