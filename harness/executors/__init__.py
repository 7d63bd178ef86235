"""Executors: they compute portions of trials on this machine, on a Ray cluster or as Slurm jobs."""
