"""Sound bounds of networks over boxes."""
