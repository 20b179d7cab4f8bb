"""What is learned one after the other, each part weighed for itself: caps must hold on what a trainer reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructkit.feedback import objectives

# Weighs some of the training judgements, given by their places among them: a weight each, and the figures.
Weigh = Callable[[np.ndarray], tuple[np.ndarray, dict[str, Any]]]


@dataclass(frozen=True)
class Part:
    """Training judgements that one objective learns from, by their places among all of them, and their weights for it."""

    objective: str
    places: np.ndarray
    weights: np.ndarray
    figures: dict[str, Any]


@dataclass(frozen=True)
class Learning:
    """
    What is learned, and by what.

    Attributes:
        objective: `sft`, `dpo`, `kto` or `mixture`, and why; None where none was asked for.
        parts: one an objective, in the order in which they learn; without an objective one, of everything.
    """

    objective: tuple[str, str] | None
    parts: list[Part]

    @property
    def report(self) -> dict[str, Any]:
        """The figures: by objective where one was asked for."""
        if self.objective is None:
            return self.parts[0].figures
        phases = {part.objective: part.figures for part in self.parts}
        return {"objective": list(self.objective), "phases": phases}


def learning(kinds: np.ndarray, weigh: Weigh, wanted: str | None) -> Learning:
    """
    Choose what to learn by, and weigh what each objective learns from.

    The objective is chosen by the weights of all judgements together; what it cannot use must then not count in the shares
    that the caps are of, so each part is weighed anew.

    Args:
        kinds: of each training judgement the place in `objectives.KINDS` of what it, or the one that stands for it, says.
        weigh: the weights.
        wanted: as in `Settings`.

    Raises:
        InputError: when there is nothing that could be learned from.
    """
    everything = np.arange(len(kinds))
    weights, figures = weigh(everything)
    if wanted is None or not len(kinds):
        return Learning(None, [Part("", everything, weights, figures)])
    signals = objectives.Signals.of(kinds, weights)
    chosen = objectives.objective(signals, wanted)
    home = objectives.homes(signals, chosen[0])
    named = np.array([home.get(kind, "") for kind in objectives.KINDS])[kinds]
    places = {each: np.flatnonzero(named == each) for each in objectives.OBJECTIVES}
    return Learning(chosen, [Part(each, here, *weigh(here)) for each, here in places.items() if len(here)])
