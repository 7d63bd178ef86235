"""Checks before a run: doctor, cost, and coverage of RobustBench's zoo."""
