"""Datasets: sources of labelled images."""
