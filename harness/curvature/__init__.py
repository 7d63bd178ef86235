"""Curvature Tuning (arXiv 2502.07783): φ, the activations it replaces, and the proof that none is missed."""
