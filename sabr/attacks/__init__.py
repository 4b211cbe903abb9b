"""Points of a box that a network gets wrong."""
