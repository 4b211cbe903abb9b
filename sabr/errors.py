"""The one kind of error that a user is meant to read."""


class SabrError(Exception):
    """Something outside our code is wrong: one sentence says what, where, and what to do about it."""


class ToBeContinued(SabrError):
    """Work that was asked to stop, and can go on from where it was saved; exit code 75 (EX_TEMPFAIL)."""


def first_line(error: Exception) -> str:
    """The first line of what a library says; that it is cut off, if it says nothing."""
    return (str(error).splitlines() or ["it is cut off"])[0]
