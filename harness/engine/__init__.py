"""Where the work is done: networks on devices, verified adversarial images, the ledger."""
