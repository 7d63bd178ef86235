"""Executors: where cells are computed."""
