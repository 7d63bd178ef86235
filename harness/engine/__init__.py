"""The engine: networks on devices, verified adversarial images, the ledger."""
