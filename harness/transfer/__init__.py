"""Model kind ``probe``: a pretrained backbone on other images, steered, probed or fine-tuned."""
