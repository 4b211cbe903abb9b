"""The command line as a whole, which each room of commands adds to."""

import typer

app = typer.Typer(
    help="SABR: certified training with small boxes. Each command is one step of the workflow and can be run by hand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
