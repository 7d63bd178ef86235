"""Checks before a run: whether it will work, what it will cost, and what Curvature Tuning reaches."""
