"""Commands that measure: the paper's studies, each as a tidy CSV."""

from enum import StrEnum
from typing import Annotated

import typer

from sabr.cli.app import app
from sabr.cli.options import Output

Study = StrEnum("Study", ["box-growth", "small-box"])


@app.command()
def study(
    name: Annotated[Study, typer.Argument(help="Which study of the paper.")],
    output: Output,
) -> None:
    """Compute a study of the paper that needs no trained network, as a tidy CSV."""
    from sabr.files import write_text

    if name == "box-growth":
        import numpy as np

        from sabr.analysis import box_growth

        result = box_growth.simulate(np.linspace(0, 2, 41))
    else:
        from sabr.analysis import small_box

        result = small_box.example()
    write_text(output, result.to_csv(index=False))
