"""Computation and its effects: networks on devices, verified adversarial images, the ledger."""
