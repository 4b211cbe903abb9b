"""Verdicts on images: natural, attacked, certified."""
