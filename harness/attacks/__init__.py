"""Attacks: the search for adversarial examples, as threats use it."""
