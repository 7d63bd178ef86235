"""Executors: they compute cells on this machine, on a Ray cluster or as Slurm jobs."""
