"""Certified training with small boxes (SABR), its rivals, and their certification."""

__version__ = "0.1.0"
