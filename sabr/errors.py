"""The one kind of error that a user is meant to read."""


class SabrError(Exception):
    """Something outside our code is wrong: one sentence says what, where, and what to do about it."""
