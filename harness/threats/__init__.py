"""Threats: what may be done to an image. Here, the one tolerance there is."""

SLACK = 1e-4
"""The share of ε by which float32 rounding may carry an image out of the ball."""
SLACK_BOX = 1e-6
"""In pixels, for the box [0, 1] and, on top of `SLACK`, for the ball."""
