"""Model kind ``probe``: a pretrained backbone on other images, with a linear probe, steered or fine-tuned."""
