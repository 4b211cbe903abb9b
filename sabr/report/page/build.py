"""The report as one HTML file that loads nothing: text, tables and figures put into a template."""

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from pydantic import BaseModel, Field

from sabr.errors import SabrError
from sabr.files import read_json, read_text
from sabr.problems import checked
from sabr.report.claims.checks import Verdict
from sabr.report.outline import Outline, missing, present
from sabr.report.page.captions import Captions, Item
from sabr.report.records import described
from sabr.report.style import Style
from sabr.report.tables.layout import fragment
from sabr.report.tables.times import duration
from sabr.scales import without_images

# Figures are saved with so many dots to the inch, and shown so many times larger than on paper.
_DOTS, _ENLARGED = 200, 1.45
_STEPS = {"training": "train_seconds", "quick attack": "attack_seconds", "certification": "certify_seconds"}
_REMEDY = "delete it and run again"


class _Case(BaseModel):
    """A check in one setting, as far as the page shows it."""

    label: str
    verdict: Verdict
    numbers: str
    reason: str


class _Claim(BaseModel):
    """A claim and what became of it."""

    id: str
    text: str
    source: str
    verdict: Verdict
    summary: str
    cases: list[_Case]


class _Claims(BaseModel):
    """Of what `sabr claims` writes as JSON, what the page shows."""

    counts: dict[Verdict, int] = Field(min_length=3)
    claims: list[_Claim]


class _Origin(BaseModel):
    """With what some networks were trained or certified."""

    networks: int
    commit: str | None
    machine: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None


class _Provenance(BaseModel):
    """What `sabr collect --provenance` writes."""

    trained: list[_Origin]
    certified: list[_Origin]


@dataclass(frozen=True)
class Sources:
    """What the report is made of.

    Attributes
    ----------
    outline
        What was planned.
    captions
        Sections and captions.
    claims
        What `sabr.report.claims.evaluate.to_json` returned.
    records, limits
        What `records.collect` and `stages.limits` return.
    provenance
        What `protocol.provenance` returned.
    tables, figures
        HTML files of tables and PNG files of figures, by name.
    style
        Labels.
    """

    outline: Outline
    captions: Captions
    claims: Mapping[str, Any]
    records: pd.DataFrame
    limits: pd.DataFrame
    provenance: Mapping[str, Any]
    tables: Mapping[str, Path]
    figures: Mapping[str, Path]
    style: Style


def build(sources: Sources) -> str:
    """The page.

    Raises
    ------
    SabrError
        When a table or figure has no caption, or its file cannot be read.
    """
    uncaptioned = sorted({*sources.tables, *sources.figures} - set(sources.captions.names))
    if uncaptioned:
        raise SabrError(f"config/report.yaml has no caption for {uncaptioned[0]}; add an item to one of its sections")
    planned = sources.outline.of("all")
    found = present(sources.records, planned)
    facts = _facts(found, sources.limits)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sabr.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.j2").render(
        captions=sources.captions,
        outline=sources.outline,
        claims=sources.claims,
        css=Markup(_text("page.css")),
        facts=facts,
        missing=missing(sources.records, planned, sources.style),
        sections=[
            {"title": section.title, "slug": _slug(section.title), "items": items}
            for section in sources.captions.sections
            if (items := [shown for item in section.items if (shown := _item(item, sources))])
        ],
        costs=_costs(found, sources.style),
        networks=len(found),
        provenance=sources.provenance,
        overrides=json.dumps(sources.outline.overrides, indent=2) if sources.outline.overrides else "",
    )


def read_claims(path: Path) -> Mapping[str, Any]:
    """Read what `sabr claims` wrote as JSON.

    Raises
    ------
    SabrError
        When it cannot be read.
    """
    return checked(_Claims, read_json(path), str(path), _REMEDY).model_dump()


def read_provenance(path: Path) -> Mapping[str, Any]:
    """Read what `sabr collect --provenance` wrote.

    Raises
    ------
    SabrError
        When it cannot be read.
    """
    return checked(_Provenance, read_json(path), str(path), _REMEDY).model_dump()


def _item(item: Item, sources: Sources) -> dict[str, Any] | None:
    """What the template shows of an item; None: this run does not have it."""
    files = sources.tables if item.kind == "table" else sources.figures
    if item.name not in files:
        return None
    path = files[item.name]
    shown: dict[str, Any] = {"item": item, "slug": item.name, "facts": _about(item, sources)}
    try:
        if item.kind == "table":
            return shown | {"html": Markup(fragment(read_text(path, _REMEDY)))}
        content = path.read_bytes()
    except OSError as error:
        raise SabrError(f"cannot read {path}: {error.strerror or error}") from error
    width, height = _size(content, path)
    inches = width / _DOTS
    return shown | {
        "data": base64.b64encode(content).decode(),
        "width": width,
        "height": height,
        "shown": round(inches * 96 * _ENLARGED),
        "wide": inches > 5,
    }


def _about(item: Item, sources: Sources) -> str:
    """Scale, seeds, images and time limits of the networks that an item is about."""
    if item.networks == "none":
        return "the same for every run and scale"
    outline = sources.outline
    planned = outline.of(item.networks)
    found = present(sources.records, planned)
    if found.empty:
        return outline.title
    scale = described(found, outline.title)
    if item.own_images:
        return f"{without_images(scale)}; images: as its title says; {_seeds(found)}"
    return f"{scale}; {_facts(found, present(sources.limits, planned))}"


def _size(content: bytes, path: Path) -> tuple[int, int]:
    """Width and height of a PNG in pixels."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise SabrError(f"{path} is not a PNG; draw it again")
    width, height = struct.unpack(">II", content[16:24])
    return int(width), int(height)


def _facts(found: pd.DataFrame, limits: pd.DataFrame) -> str:
    """Seeds and time limits in words."""
    words = [_seeds(found)]
    longest = sorted(set(limits.groupby(["dataset", "eps"])["limit"].max())) if len(limits) else []
    if longest:
        words.append(f"complete verifier: at most {' / '.join(f'{limit:g}' for limit in longest)} s an image")
    return "; ".join(words)


def _seeds(found: pd.DataFrame) -> str:
    seeds = sorted(set(found["seed"]))
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _costs(found: pd.DataFrame, style: Style) -> list[dict[str, Any]]:
    """Time by setting, and in all."""
    lines: Sequence[tuple[str, pd.DataFrame]] = [
        (style.setting(str(dataset), str(eps)), part)
        for (dataset, eps), part in found.groupby(["dataset", "eps"], sort=False)
    ]
    return [
        {
            "label": label,
            "networks": len(part),
            "steps": {step: duration(float(part[column].sum())) for step, column in _STEPS.items()},
            "all": duration(float(part[list(_STEPS.values())].sum().sum())),
        }
        for label, part in [*lines, ("all settings", found)]
    ]


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def _text(name: str) -> str:
    return resources.files("sabr.report.page").joinpath(name).read_text(encoding="utf-8")
