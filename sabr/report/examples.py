"""Images with their counterexamples: what was right, what was changed, and what the network sees then."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sabr.errors import SabrError
from sabr.report.drawing import finish, some
from sabr.report.style import Style, styled

FIELDS = (
    *("dataset", "eps", "method", "seed", "radius", "index", "label", "refuted_by", "wrong"),
    *("image", "point"),
)
_CLASSES = {
    "cifar10": "airplane car bird cat deer dog frog horse ship truck".split(),
}
_ROWS = ("image", "change", "counterexample")
# So many strips below each other fit a page.
_STRIPS = 3


def read(path: Path) -> pd.DataFrame:
    """Read what `sabr examples` wrote.

    Returns
    -------
    pandas.DataFrame
        `FIELDS`, one line per counterexample; image and point are arrays (channels, height, width) in [0, 1].

    Raises
    ------
    SabrError
        When it cannot be read or is no such archive.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            count = len(stored.files) // len(FIELDS)
            lines = [{name: stored[f"{name}-{place}"] for name in FIELDS} for place in range(count)]
    except OSError as error:
        raise SabrError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise SabrError(f"{path} is no archive of counterexamples; delete it and run again") from error
    plain = [{name: value if value.ndim else value.item() for name, value in line.items()} for line in lines]
    for line in plain:
        known = _CLASSES.get(str(line["dataset"]))
        for number in (line["label"], line["wrong"]):
            if known and number not in range(len(known)):
                raise SabrError(f"{path}: {line['dataset']} has no class {number}; delete it and run again")
    return pd.DataFrame(plain, columns=list(FIELDS))


@styled
def examples(found: pd.DataFrame, title: str, style: Style) -> Figure:
    """Images, what an attack changed, and the counterexamples, a strip for each network.

    Parameters
    ----------
    found
        What `read` returns.
    title
        Says the scale.
    style
        Labels.

    Returns
    -------
    Figure
        A page wide; of more than three networks two stand side by side, with half as many images, as a page is not
        longer. Changes are shown from -eps (blue) to eps (red), the largest of an image's channels. Above: the
        true class; below: the class that the network sees, and what found the counterexample.
    """
    strips = list(some(found).groupby(["dataset", "eps", "method", "seed"], sort=False))
    beside = 1 if len(strips) <= _STRIPS else 2
    columns = -(-max(len(part) for _, part in strips) // beside)
    size = min(0.8, (style.widths.page / beside - 0.6) / columns)
    rows = -(-len(strips) // beside)
    figure = Figure(figsize=(style.widths.page, 0.45 + rows * (3 * size + 0.75)))
    outer = figure.subfigures(rows, beside, squeeze=False).flat
    for strip, ((dataset, eps, method, _), part) in zip(outer, strips, strict=False):
        strip.suptitle(f"{style.setting(str(dataset), str(eps))}, {style.method(str(method)).label}", fontsize=8)
        panels = strip.subplots(3, columns, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for place, line in enumerate(part.head(columns).to_dict("records")):
            _example(panels[:, place], {str(key): value for key, value in line.items()}, style)
        for axes, name in zip(panels[:, 0], _ROWS, strict=True):
            place_ = {"transform": axes.transAxes, "rotation": 90, "verticalalignment": "center"}
            axes.text(-0.12, 0.5, name, horizontalalignment="right", fontsize=6, **place_)
    return finish(figure, title, [])


def _example(panels: "np.ndarray[Any, Any]", line: dict[str, Any], style: Style) -> None:
    original, change, adversarial = panels
    _show(original, line["image"])
    _show(adversarial, line["point"])
    difference = line["point"].astype("float64") - line["image"]
    channel = np.abs(difference).argmax(0)[None]
    largest = np.take_along_axis(difference, channel, 0)[0]
    change.imshow(largest, cmap="RdBu_r", vmin=-line["radius"], vmax=line["radius"], interpolation="nearest")
    original.set_title(_class(line["dataset"], line["label"]), fontsize=6, pad=2, loc="center")
    below = f"{_class(line['dataset'], line['wrong'])}\n{style.stage(str(line['refuted_by'])).label}"
    adversarial.text(
        0.5,
        -0.06,
        below,
        transform=adversarial.transAxes,
        fontsize=6,
        verticalalignment="top",
        horizontalalignment="center",
    )


def _show(axes: Axes, image: "np.ndarray[Any, Any]") -> None:
    if len(image) == 1:
        axes.imshow(image[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(np.moveaxis(image, 0, -1).clip(0, 1), interpolation="nearest")


def _class(dataset: str, label: int) -> str:
    return (
        _CLASSES[dataset][label] if dataset in _CLASSES else f"{'class ' if dataset == 'tinyimagenet' else ''}{label}"
    )
