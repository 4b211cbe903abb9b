"""Networks by name, their affine steps, and their checkpoints."""
