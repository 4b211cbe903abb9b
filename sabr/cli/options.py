"""What several commands ask for: their common options, each said once."""

from pathlib import Path
from typing import Annotated

import typer

PUBLISHED = Path("config/published.yaml")
FIGURES = Path("config/figures.yaml")
CLAIMS = Path("config/claims.yaml")
CAPTIONS = Path("config/report.yaml")


def a_file(value: Path | list[Path] | None) -> Path | list[Path] | None:
    """Refuse folders where a file is needed, and a path without a name."""
    for path in value if isinstance(value, list) else [value]:
        if path is not None and (not path.name or path.is_dir()):
            raise typer.BadParameter(f"{path} is a folder; name a file")
    return value


DataFolder = Annotated[Path, typer.Option("--data", help="Folder of the prepared datasets.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write; there whole or not at all.")]
Threads = Annotated[int, typer.Option("--threads", min=1, max=1024, help="CPU threads to compute with.")]
Checkpoint = Annotated[Path, typer.Argument(help="Checkpoint (.pt).", callback=a_file)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: a GPU where there is one.")]
Title = Annotated[str, typer.Option("--scale", "--title", help="The scale in words, for titles and captions.")]
StyleFile = Annotated[Path, typer.Option("--style", help="Labels, colours, widths.")]
OutlineFile = Annotated[Path, typer.Option("--outline", help="What `sabr outline` wrote.")]
PublishedFile = Annotated[Path, typer.Option("--published", help="Published numbers.")]
SpecFile = Annotated[Path, typer.Option("--spec", help="What `sabr spec` wrote: attack.json, certification.json.")]
