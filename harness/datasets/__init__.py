"""Datasets: where labelled images come from."""
