"""Attacks: how a threat looks for the images that fool a network."""
