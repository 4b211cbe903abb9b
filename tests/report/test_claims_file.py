"""config/claims.yaml: the paper's own is valid and complete, and what is wrong in one is told."""

from pathlib import Path

import pytest

from sabr.errors import SabrError
from sabr.report.claims import model

CONFIG = Path(__file__).parents[2] / "config"


def test_the_papers_claims_are_valid_and_complete() -> None:
    found = model.read(CONFIG / "claims.yaml")
    named = {claim.id for claim in found.claims}
    assert len(named) == len(found.claims) >= 20
    settings = {path.stem for path in (CONFIG / "settings").glob("*.yaml")}
    assert set(found.full_scale.epochs) == settings
    natural = next(claim for claim in found.claims if claim.id == "natural-above-ibp")
    assert set(natural.checks[0].settings or ()) == settings  # type: ignore[union-attr]


GOOD = """full_scale: {architecture: cnn7, epochs: {mnist-eps-0.1: 70}}
ablation: sabr
claims:
- id: one
  text: A.
  source: Table 1
  checks:
  - kind: above
    left: {method: sabr, measure: natural}
    right: {published: ibp, measure: natural}
    settings: [mnist-eps-0.1]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  source: Table 1\n", "", "claims.0.source: this key is missing"),
        ("kind: above", "kind: below", "'below'.*'above', 'bound'"),
        ("measure: natural}\n    right", "measure: beauty}\n    right", "'beauty' is not allowed"),
        ("{method: sabr, measure", "{method: sabr, swept: best, measure", "either method or swept is needed"),
        ("mnist-eps-0.1]", "mnist]", "'mnist' is not a setting"),
        ("mnist-eps-0.1]", "mnist-eps-3_2]", "not in"),
        ("kind: above\n    left", "left", "claims.0.checks.0.kind: this key is missing"),
        (
            "{method: sabr, measure: natural}",
            "natural",
            "checks.0.left: 'natural' is not allowed: a mapping of keys is",
        ),
        (
            "{method: sabr, measure: natural}",
            "{study: relu-states, method: sabr, column: a, where: {layer: [1]}}",
            r"checks.0.left.where.layer: \[1\] is not allowed: text or a number is needed here",
        ),
        (
            "{method: sabr, measure: natural}",
            "{study: eps-curve, method: sabr}",
            "checks.0.left.column: this key is mis",
        ),
        (
            "{method: sabr, measure: natural}",
            "{study: eps-curve, method: sabr, column: natural}",
            "checks.0: left and right cannot be compared: both must be of a study, or neither",
        ),
        ("id: one", "id: One", "'One' is not allowed"),
        ("    settings", "    limits", "unknown key"),
        ("{published: ibp, measure: natural}", "{study: dreams, method: ibp, column: a}", "'dreams' is not allowed"),
        ("kind: above\n    left", "kind: bound\n    of", "either at_most or at_least|unknown key"),
    ],
)
def test_refuses(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(GOOD)
    assert len(model.read(path).claims) == 1
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(SabrError, match=said) as error:
        model.read(path)
    assert "claims.yaml" in str(error.value)


def test_refuses_a_claim_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(GOOD + GOOD.partition("claims:\n")[2])
    with pytest.raises(SabrError, match="the id 'one' is given twice"):
        model.read(path)
