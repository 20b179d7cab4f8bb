"""Gates: pure decisions on measured figures. What was not measured is not passed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

Interval = tuple[float, float, float]
PROMOTED, REFUSED = "PROMOTED", "REFUSED"


@dataclass(frozen=True)
class Gate:
    """One decision: what was measured, its 95 % interval, the limit, whether it passed (None: undecided), and in words."""

    name: str
    measured: float | None
    limit: float
    interval: tuple[float, float] | None
    passed: bool | None
    text: str

    def as_dict(self) -> dict[str, Any]:
        """The gate as the run record keeps it."""
        return asdict(self)


def improved(name: str, change: Interval | None, minimum: float) -> Gate:
    """Passes when the lower bound of a gain lies above the minimum, not merely its mean."""
    return _by_bound(name, change, minimum, bound=1, above=True, words="lower bound of the gain")


def not_worse(name: str, ratio: Interval | None, maximum: float) -> Gate:
    """Non-inferiority: passes when the upper bound of `after / before` is at most the maximum."""
    return _by_bound(name, ratio, maximum, bound=2, above=False, words="upper bound of the ratio")


def below(name: str, value: float | None, limit: float) -> Gate:
    """Passes when a figure lies below a limit."""
    return _by_value(name, value, limit, passed=_known(value) and value < limit, words="must lie below")


def at_least(name: str, value: float | None, limit: float) -> Gate:
    """Passes when a figure reaches a limit."""
    return _by_value(name, value, limit, passed=_known(value) and value >= limit, words="must reach")


def verdict(gates: Iterable[Gate]) -> str:
    """PROMOTED when there are gates and every one has passed; an undecided gate refuses."""
    decided = [gate.passed is True for gate in gates]
    return PROMOTED if decided and all(decided) else REFUSED


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


def _by_value(name: str, value: float | None, limit: float, *, passed: bool, words: str) -> Gate:
    if not _known(value):
        return Gate(name, None, limit, None, None, f"{name} was not measured, so nothing is known of it")
    return Gate(name, value, limit, None, passed, f"{name}: {value:.4g}, it {words} {limit:g}")
