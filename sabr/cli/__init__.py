"""One small command a rule: arguments in, files out, errors as one sentence."""

import sys

from sabr.cli import exchange, jobs, keeping, plan, reporting, studies  # noqa: F401 (each adds its commands)
from sabr.cli.app import app
from sabr.errors import SabrError, ToBeContinued

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; a user's error is one sentence and exit code 1, wrong usage 2, to be continued 75."""
    try:
        app()
    except ToBeContinued as stopped:
        print(f"sabr: {stopped}", file=sys.stderr)
        sys.exit(75)
    except SabrError as error:
        print(f"sabr: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("sabr: interrupted", file=sys.stderr)
        sys.exit(130)
