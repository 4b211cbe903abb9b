"""Training methods, one family a file: each takes a batch and a network to a loss per image."""
