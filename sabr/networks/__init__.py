"""Networks by name, their affine steps, their checkpoints, and how they are exchanged with other programs."""
