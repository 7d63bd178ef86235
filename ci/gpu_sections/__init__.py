"""Sections of the report on a GPU; a file for each question. See ``ci/gpu.py``."""
