"""What keys say together that cannot be: told before the first job, not hours later by the one that needs it."""

from typing import TYPE_CHECKING

from sabr.errors import SabrError
from sabr.settings import ARCHITECTURES, DATASETS
from sabr.specs import PROOFS

if TYPE_CHECKING:
    from sabr.plan import Plan, Row


def check(plan: "Plan") -> None:
    """Refuse networks too shallow for their method, and studies of images or radii that there are not.

    Raises
    ------
    SabrError
        One sentence: network, key path, value, and what is allowed.
    """
    for row in plan.rows.values():
        _depth(row)
    for row in (*plan.main, *plan.studied):
        asked = row.certification
        available = asked.validation_images or DATASETS[asked.dataset].test_images
        if plan.studies.images > available:
            kind = "validation" if asked.validation_images else "test"
            raise SabrError(
                f"studies.images: {plan.studies.images} is not allowed: {row.setting} has {available} {kind} images"
            )
    for row in plan.main:
        _accuracies_around(row, plan.studies.eps_factors)


def _depth(row: "Row") -> None:
    """TAPS and STAPS split a network behind a ReLU."""
    classifier = getattr(row.training.method, "classifier", None)
    architecture = ARCHITECTURES[row.training.architecture]
    relus = len(architecture.convolutions) + len(architecture.hidden)
    if classifier is not None and classifier.relus >= relus:
        raise SabrError(
            f"{row.path}: classifier.relus: {classifier.relus} is not allowed: {row.training.architecture} has {relus} "
            "ReLU layers, and one must be left to be bounded"
        )


def _accuracies_around(row: "Row", factors: tuple[float, ...]) -> None:
    """The study eps-curve tests larger radii, and leaves the complete verifier out."""
    spec = row.certification
    if max(factors) * spec.eps > 1:
        raise SabrError(
            f"studies.eps_factors: {max(factors):g} is not allowed: times {spec.eps:g}, the eps of {row.setting}, it "
            "is above 1, the range of a pixel"
        )
    bounds = [stage for stage in PROOFS if stage != "complete"]
    if not set(bounds) & set(spec.stages):
        raise SabrError(
            f"certification.stages: {', '.join(spec.stages)} is not allowed for {row.setting}: accuracy against eps "
            f"needs one of {', '.join(bounds)}"
        )
