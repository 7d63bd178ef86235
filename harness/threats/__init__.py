"""Threats: what may be done to an image."""
