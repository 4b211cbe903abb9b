"""Every claim on recorded results: verdicts, as JSON and as Markdown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sabr.report.claims import checks, curves
from sabr.report.claims.checks import Case, Verdict
from sabr.report.claims.model import Check, Claim, Crosses, Growth, Near, Peak
from sabr.report.claims.quantities import NotTestable, Results

VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "not testable")


@dataclass(frozen=True)
class Judged:
    """A claim and what became of it.

    Attributes
    ----------
    claim
        As in the file.
    verdict
        does not hold: a check fails in some setting; holds: none fails, and each check holds in some setting; else not
        testable.
    cases
        Every check in every setting.
    """

    claim: Claim
    verdict: Verdict
    cases: tuple[Case, ...]

    @property
    def summary(self) -> str:
        """The verdict, and how many of several cases bear it out: "holds in 2 of 5, 3 not testable"."""
        if len(self.cases) == 1:
            return self.verdict
        counts = {verdict: sum(case.verdict == verdict for case in self.cases) for verdict in VERDICTS}
        others = [
            f"{count} {v if count == 1 else _PLURAL[v]}" for v, count in counts.items() if count and v != self.verdict
        ]
        return ", ".join([f"{self.verdict} in {counts[self.verdict]} of {len(self.cases)}", *others])


_PLURAL = {"holds": "hold", "does not hold": "do not hold", "not testable": "not testable"}


def evaluate(claims: Sequence[Claim], results: Results) -> list[Judged]:
    """Check every claim.

    Raises
    ------
    SabrError
        When a check asks a study for a column that it does not have.
    """
    return [_judge(claim, results) for claim in claims]


def to_json(judged: Sequence[Judged], results: Results) -> dict[str, Any]:
    """Verdicts with all numbers, as JSON has them."""
    return {
        "scale": results.outline.scale,
        "title": results.outline.title,
        "counts": {verdict: sum(one.verdict == verdict for one in judged) for verdict in VERDICTS},
        "claims": [
            {"id": one.claim.id, "text": one.claim.text, "source": one.claim.source}
            | {"verdict": one.verdict, "summary": one.summary}
            | {"cases": [asdict(case) | {"label": _place(case, results)} for case in one.cases]}
            for one in judged
        ],
    }


def to_markdown(judged: Sequence[Judged], results: Results) -> str:
    """Verdicts as a text, claim by claim."""
    counts = ", ".join(f"{verdict}: {sum(one.verdict == verdict for one in judged)}" for verdict in VERDICTS)
    lines = ["# The paper's claims", "", f"{results.outline.title}. {counts}.", ""]
    lines.append("A claim holds or does not hold only where the difference is more than chance; see each reason.")
    for one in judged:
        lines += ["", f"## {one.claim.text}", "", f"**{one.summary}** · {one.claim.source}", ""]
        for case in one.cases:
            words = "; ".join(filter(None, (case.numbers, case.reason)))
            lines.append(f"* {': '.join(filter(None, (_place(case, results), case.verdict)))}. {_sentence(words)}")
    return "\n".join(lines) + "\n"


def _judge(claim: Claim, results: Results) -> Judged:
    by_check = [_cases(check, results) for check in claim.checks]
    cases = [_noted(case, claim, results) for cases in by_check for case in cases]
    settings = list(dict.fromkeys(case.setting for case in cases))
    # What several checks have in common is said once.
    cases = [case for i, case in enumerate(cases) if case not in cases[:i]]
    cases.sort(key=lambda case: settings.index(case.setting))
    verdicts = {case.verdict for case in cases}
    if "does not hold" in verdicts:
        verdict: Verdict = "does not hold"
    elif all(any(case.verdict == "holds" for case in found) for found in by_check):
        verdict = "holds"
    else:
        verdict = "not testable"
    return Judged(claim, verdict, tuple(cases))


def _cases(check: Check, results: Results) -> list[Case]:
    try:
        if isinstance(check, Peak):
            return checks.peak(check, results)
        if isinstance(check, Growth):
            return curves.growth(check, results)
        if isinstance(check, Crosses):
            return curves.crosses(check, results)
        if isinstance(check, Near):
            return checks.in_each(list(check.settings), lambda setting: checks.near(check, setting, results))
        settings = checks.settings_of(check, results)
        if check.kind == "bound":
            return checks.in_each(settings, lambda setting: checks.bound(check, setting, results))
        return checks.in_each(settings, lambda setting: checks.above(check, setting, results))
    except NotTestable as reason:
        return [Case("", "not testable", "", str(reason))]


def _noted(case: Case, claim: Claim, results: Results) -> Case:
    """Say when a check was made in another setting than the paper's."""
    if not case.setting or claim.setting in (None, case.setting) or case.verdict == "not testable":
        return case
    note = f"the paper's claim is about {results.label(claim.setting or '')}"
    return Case(case.setting, case.verdict, case.numbers, "; ".join(filter(None, (case.reason, note))), case.values)


def _place(case: Case, results: Results) -> str:
    return results.label(case.setting) if case.setting else ""


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}." if words else ""
