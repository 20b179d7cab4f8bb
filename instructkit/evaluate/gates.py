"""Gates: pure decisions on measured figures. What was not measured is not passed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

Interval = tuple[float, float, float]
PROMOTED, REFUSED = "PROMOTED", "REFUSED"
PASSED, FAILED, UNDECIDED, NOT_APPLICABLE = "passed", "failed", "undecided", "not applicable"


@dataclass(frozen=True)
class Gate:
    """
    One decision.

    Attributes:
        measured, interval, limit: the figure, its lower and upper bound, and what they were held against.
        passed: None where it is undecided, or does not apply.
        text: the same in words.
        applicable: whether there is anything to decide; where not, it neither passes nor refuses.
        essential: whether it refuses when undecided, whatever the recipe says.
    """

    name: str
    measured: float | None
    limit: float | None
    interval: tuple[float, float] | None
    passed: bool | None
    text: str
    applicable: bool = True
    essential: bool = False

    @property
    def verdict(self) -> str:
        """`passed`, `failed`, `undecided` or `not applicable`."""
        if not self.applicable:
            return NOT_APPLICABLE
        return {True: PASSED, False: FAILED, None: UNDECIDED}[self.passed]

    def as_dict(self) -> dict[str, Any]:
        """The gate as the run record keeps it."""
        kept = asdict(self)
        del kept["applicable"]
        return kept | {"verdict": self.verdict}


def improved(name: str, change: Interval | None, minimum: float) -> Gate:
    """Passes when the lower bound of a gain lies above the minimum, not merely its mean."""
    return _by_bound(name, change, minimum, bound=1, above=True, words="lower bound of the gain")


def not_worse(name: str, ratio: Interval | None, maximum: float) -> Gate:
    """Non-inferiority: passes when the upper bound of `after / before` is at most the maximum."""
    return _by_bound(name, ratio, maximum, bound=2, above=False, words="upper bound of the ratio")


def below(name: str, value: float | None, limit: float, interval: tuple[float, float] | None = None) -> Gate:
    """Return a gate that passes when the value is below the limit; the interval is shown and decides nothing."""
    return _by_value(name, value, limit, interval, _known(value) and value < limit, "must lie below")


def at_least(
    name: str, value: float | None, limit: float, interval: tuple[float, float] | None = None
) -> Gate:
    """Return a gate that passes when the value reaches the limit; the interval is shown and decides nothing."""
    return _by_value(name, value, limit, interval, _known(value) and value >= limit, "must reach")


def at_most(
    name: str,
    figure: Interval,
    limit: float,
    *,
    what: str,
    meaning: str,
    neutral: float = 0.0,
    found: int = 0,
    wanted: int = 0,
) -> Gate:
    """
    Non-inferiority with three ends: passes when the upper bound of a harm is at most the limit.

    Otherwise it fails, unless there are fewer figures than would have been enough had nothing changed: then it is undecided and
    says so, except where the harm is beyond the limit and its lower bound beyond no change.

    Args:
        figure: the harm, its lower and upper bound.
        what: the harm in words, such as `growth of refusals`.
        meaning: what it means when it fails.
        neutral: the harm of no change.
        found, wanted: how many independent figures there are, and how many are enough.
    """
    if not all(_known(part) for part in figure):
        return undecided(name, limit, f"{what} cannot be bounded by {found} figures like these")
    harm, low, high = figure
    said = f"{name}: {what} is {harm:.4g}, with an upper bound of {high:.4g}"
    if high <= limit:
        return Gate(name, harm, limit, (low, high), True, f"{said}; at most {limit:g} is allowed")
    if found < wanted and not (harm > limit and low > neutral):
        told = f"{found} figures cannot show that it is at most {limit:g}, {wanted} would if nothing changed"
        return Gate(name, harm, limit, (low, high), None, f"{said}; {told}")
    told = f"{said}, which must be at most {limit:g}: {meaning}"
    return Gate(name, harm, limit, (low, high), False, told)


def undecided(name: str, limit: float | None, why: str) -> Gate:
    """A gate with too few figures, or none."""
    return Gate(name, None, limit, None, None, f"{name}: {why}, so nothing is known of it")


def not_applicable(name: str, limit: float | None, why: str) -> Gate:
    """A gate that has nothing to decide here."""
    return Gate(name, None, limit, None, None, f"{name}: not applicable, {why}", applicable=False)


def verdict(gates: Iterable[Gate], *, on_undecided: str = "refuse") -> str:
    """
    PROMOTED when a gate has passed and none stands against it.

    A gate that failed refuses, one that does not apply does not. One that is undecided refuses too, unless `on_undecided` is
    `pass` and it is not essential.
    """
    deciding = [gate for gate in gates if gate.applicable]
    against = [
        gate
        for gate in deciding
        if gate.passed is False or (gate.passed is None and (on_undecided != "pass" or gate.essential))
    ]
    return PROMOTED if any(gate.passed for gate in deciding) and not against else REFUSED


def stands_against(gate: dict[str, Any], run: dict[str, Any]) -> bool:
    """
    Return whether a gate of a run record refuses: it failed, or it was undecided and `on_undecided` does not let it pass.

    Args:
        gate: as `Gate.as_dict` gave it; records of older versions have no `verdict`.
        run: the record.
    """
    if gate.get("verdict") == NOT_APPLICABLE or gate.get("passed") is True:
        return False
    if gate.get("passed") is False:
        return True
    lets_pass = (run.get("recipe", {}).get("gates") or {}).get("on_undecided") == "pass"
    return run.get("verdict") != PROMOTED and not (lets_pass and gate.get("essential") is False)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _by_bound(
    name: str, figure: Interval | None, limit: float, *, bound: int, above: bool, words: str
) -> Gate:
    if figure is None or not all(_known(part) for part in figure):
        return Gate(name, None, limit, None, None, f"{name} was not measured, so nothing is known of it")
    decisive = figure[bound]
    passed = decisive > limit if above else decisive <= limit
    text = f"{name}: {words} is {decisive:.4g}, it must {'lie above' if above else 'be at most'} {limit:g}"
    return Gate(name, figure[0], limit, (figure[1], figure[2]), passed, text)


def _by_value(
    name: str,
    value: float | None,
    limit: float,
    interval: tuple[float, float] | None,
    passed: bool,
    words: str,
) -> Gate:
    if not _known(value):
        return Gate(name, None, limit, None, None, f"{name} was not measured, so nothing is known of it")
    return Gate(name, value, limit, interval, passed, f"{name}: {value:.4g}, it {words} {limit:g}")
