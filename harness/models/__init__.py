"""Models: sources of pretrained classifiers."""
