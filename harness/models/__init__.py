"""Models: where a pretrained classifier comes from."""
