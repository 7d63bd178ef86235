"""Threats: the perturbations of an image that a benchmark scores against."""
