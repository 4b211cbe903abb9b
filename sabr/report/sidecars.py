"""What the JSON beside a network's results must say for them to be put together: typed and validated."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

from sabr.files import read_json
from sabr.problems import checked
from sabr.specs import CertificationSpec

SidecarT = TypeVar("SidecarT", bound="Sidecar")


class Sidecar(BaseModel):
    """The keys that are needed; there are more, which are not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=(), strict=True)


class Provenance(Sidecar):
    """As `sabr.provenance.provenance` makes it; a network that was imported says little."""

    versions: dict[str, str]
    commit: str | None
    machine: dict[str, Any] = {}


class Checkpoint(Sidecar):
    """Of any checkpoint."""

    sha256: str


class Model(Checkpoint):
    """Of a trained one; `seconds` is None where nobody knows how long the training took."""

    spec: dict[str, Any]
    provenance: Provenance
    seconds: NonNegativeFloat | None


class Attack(Sidecar):
    """Of the quick attack."""

    model_sha256: str
    seconds: NonNegativeFloat


class Stage(Sidecar):
    """What a stage took, over all shards."""

    seconds: NonNegativeFloat


class Verdicts(Sidecar):
    """Of the merged verdicts."""

    certification: CertificationSpec
    model_sha256: str
    provenance: Provenance
    seconds: NonNegativeFloat
    stages: dict[str, Stage]
    sha256: str


class StudyMade(Sidecar):
    """Which study."""

    study: str


class StudyOf(Sidecar):
    """Of which networks' setting."""

    dataset: str
    eps: Annotated[float, Field(gt=0, le=1)]


class Study(Sidecar):
    """Of a study of a network."""

    study: StudyMade
    model_sha256: str
    data_sha256: str
    spec: StudyOf
    sha256: str


def read(kind: type[SidecarT], path: Path) -> dict[str, Any]:
    """Read a sidecar, with all that is in it.

    Raises
    ------
    SabrError
        When it cannot be read, or a key that is needed is missing or holds something else.
    """
    content = read_json(path)
    checked(kind, content, str(path), "delete the file and run again")
    return dict(content)
