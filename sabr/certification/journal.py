"""Verdicts of a shard that is not finished, and its stages' time, so that a killed job goes on with what it has."""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sabr.certification.verdicts import Verdict
from sabr.errors import SabrError
from sabr.files import write_text
from sabr.specs import differing_keys


class Journal:
    """An append-only file: what it belongs to in the first line, then each verdict as it falls, and each batch's time.

    Parameters
    ----------
    path
        File to read, if it is there, and to go on with.
    about
        What the verdicts belong to: network, data, specification, shard; JSON values.

    Raises
    ------
    SabrError
        When the file belongs to something else (says which keys differ), or cannot be read or written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.known: dict[int, Verdict] = {}
        self.seconds: dict[str, float] = {}
        try:
            text = path.read_text(encoding="ascii") if path.is_file() else ""
            # A line that the kill cut off has no end: it, and nothing else, is lost.
            lines = text[: text.rfind("\n") + 1].splitlines()
            if lines:
                different = differing_keys(json.loads(lines[0]), json.loads(json.dumps(about)))
                if different:
                    raise SabrError(f"{path} belongs to another run: {different[0]}; delete it and run again")
                for line in lines[1:]:
                    self._take(json.loads(line))
            write_text(path, "".join(f"{line}\n" for line in lines or [json.dumps(about)]))
            self._file = path.open("a", encoding="ascii")
        except OSError as error:
            raise SabrError(f"cannot use {path}: {error.strerror or error}; delete it and run again") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SabrError(f"cannot use {path}: it is damaged; delete it and run again") from error

    def add(self, number: int, verdict: Verdict) -> None:
        """Note a verdict, at once."""
        self.known[number] = verdict
        fields = asdict(verdict) | {"point": None}
        if verdict.point is not None:
            values = verdict.point.contiguous().numpy()
            fields["point"] = {"shape": list(values.shape), "float64": base64.b64encode(values.tobytes()).decode()}
        self._write({"image": number, **fields})

    def spend(self, stage: str, seconds: float) -> None:
        """Note that a stage took so long for some images; a sum of all runs' is kept in `seconds`."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self._write({"stage": stage, "seconds": seconds})

    def close(self) -> None:
        """Stop writing."""
        self._file.close()

    def remove(self) -> None:
        """The shard is finished."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _write(self, fields: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(fields) + "\n")
            self._file.flush()
        except OSError as error:
            raise SabrError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _take(self, fields: dict[str, Any]) -> None:
        if "stage" in fields:
            stage, seconds = str(fields["stage"]), float(fields["seconds"])
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
            return
        number, point = int(fields.pop("image")), fields.pop("point")
        if point is not None:
            values = np.frombuffer(base64.b64decode(point["float64"]), dtype=np.float64).reshape(point["shape"])
            point = torch.from_numpy(values.copy())
        self.known[number] = Verdict(**fields, point=point)
