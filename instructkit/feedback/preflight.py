"""
Which gates of an update cannot be decided on the data at hand, asked before anything is trained. Pure.

The gates are decided on figures of the best that an update can do: every held-out judgement is met that was not, and nothing
else changes at all. A gate that is inconclusive then has too few figures, whatever the update would do.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instructkit.evaluate import inference
from instructkit.feedback import decisions, measured
from instructkit.feedback.decisions import FEWEST_IN_GROUP
from instructkit.feedback.items import Item
from instructkit.feedback.leaning import FEWEST_OF_A_SIGN
from instructkit.feedback.side_effects import FEWEST

HABITS = ("answers end", "repetition", "refusals")


@dataclass(frozen=True)
class Sizes:
    """
    How much there is to measure an update on.

    Attributes:
        items: the test events after preprocessing.
        groups: of each of these its group and tags.
        general: different prompts of the general rows.
        prompts: those of them that can be answered; plain texts cannot.
        pairs: minimal pairs.
        tasks: of each task the number of its questions.
    """

    items: Sequence[Item]
    groups: Sequence[tuple[str, ...]]
    general: int
    prompts: int
    pairs: int
    tasks: dict[str, int]


@dataclass(frozen=True)
class Shortage:
    """
    Gates that lack figures of one kind.

    Attributes:
        gates: their names.
        have, need: how many figures there are, and how many are needed at least.
        unit: what they are.
        way: what to change, with the exact key.
        essential: whether a gate refuses when inconclusive, whatever `gates.on_undecided` says.
    """

    gates: tuple[str, ...]
    have: int
    need: int
    unit: str
    way: str
    essential: bool

    def __str__(self) -> str:
        return (
            f"{', '.join(self.gates)}: {self.have} {self.unit}; at least {self.need} are needed; {self.way}"
        )


def shortages(sizes: Sizes, limits: Any, *, level: float) -> list[Shortage]:
    """
    Return the gates that would be inconclusive at best; gates that lack the same figures are one entry.

    Args:
        limits: the `gates:` section of the recipe.
        level: one-sided, of each gate.
    """
    before, after = (_measured(sizes, limits, met=met) for met in (False, True))
    found: dict[tuple[int, int, str, str], list[Any]] = {}
    for gate in decisions.decide(before, after, limits, level=level, seed=0):
        if gate.applicable and gate.passed is None:
            found.setdefault(_lack(gate.name, gate.limit, sizes, level), []).append(gate)
    return [
        Shortage(tuple(gate.name for gate in gates), *lack, any(gate.essential for gate in gates))
        for lack, gates in found.items()
    ]


def _measured(sizes: Sizes, limits: Any, *, met: bool) -> measured.Measured:
    """As many figures as there would be, of a model that meets all held-out judgements or none."""
    n, items = sizes.prompts, sizes.items
    feedback = measured.Feedback(
        [float(met)] * len(items),
        [met] * len(items),
        list(sizes.groups),
        [item.cluster for item in items],
        [False] * len(items),
        [item.rating if item.unwanted is None else 0.0 for item in items],
        scores=[float(met)] * len(items) if limits.reward_model else [],
    )
    tasks = {name: [True] * count for name, count in sizes.tasks.items()}
    scores = [0.0] * n if limits.judge else []
    general = measured.General([1.0] * sizes.general, [1] * sizes.general, tasks, scores)
    conduct = measured.Conduct([0.0] * n, [1] * n, [True] * n, [0.0] * n, [False] * n)
    return measured.Measured(
        feedback=feedback,
        general=general if sizes.general else None,
        bias=measured.Bias([0.0] * sizes.pairs),
        contrasts=measured.Contrasts(),
        conduct=conduct if n else None,
        triggers=measured.Triggers() if n else None,
        memory=measured.Memory(),
    )


def _lack(name: str, limit: float | None, sizes: Sizes, level: float) -> tuple[int, int, str, str]:
    """How many figures an inconclusive gate has, how many it needs, what they are and what to change."""
    if name.startswith(("held-out feedback", "reward of")):
        return _of_feedback(sizes)
    if name == "general accuracy" and sizes.general:
        need = inference.enough_shares(limit, 0.0, level=level / len(sizes.tasks))
        return min(sizes.tasks.values()), need, "questions of a task", "add questions to `feedback.tasks`"
    if name == "no group harmed":
        return _of_groups(sizes, limit, level)
    if name == "no added bias":
        return sizes.pairs, FEWEST, "minimal pairs", "add pairs to `feedback.bias_pairs`"
    way = "hold out more rows of the SFT run (its `data.eval`), or name a larger file in `feedback.general`"
    if name == "general held-out loss":
        return sizes.general, FEWEST, "general prompts", way
    need = max(FEWEST, inference.enough_shares(limit, 0.0, level=level)) if name in HABITS else FEWEST
    return sizes.prompts, need, "general prompts", way


def _of_feedback(sizes: Sizes) -> tuple[int, int, str, str]:
    ratings = [item.rating for item in sizes.items if item.unwanted is None]
    good, bad = sum(rating > 0 for rating in ratings), sum(rating < 0 for rating in ratings)
    way = "import more feedback, or raise `feedback.eval`"
    if bad and min(good, bad) < FEWEST_OF_A_SIGN:
        way += (
            f"; bad ratings count only beside {FEWEST_OF_A_SIGN} good ones, and {FEWEST_OF_A_SIGN} bad ones"
        )
        told = {item.cluster for item in sizes.items if item.unwanted is not None or item.rating > 0}
    else:
        told = {item.cluster for item in sizes.items}
    return len(told), FEWEST, "independent test prompts", way


def _of_groups(sizes: Sizes, limit: float, level: float) -> tuple[int, int, str, str]:
    counts = Counter(group for groups in sizes.groups for group in groups)
    clusters = {
        group: len({i.cluster for i, of in zip(sizes.items, sizes.groups, strict=True) if group in of})
        for group, count in counts.items()
        if count >= FEWEST_IN_GROUP
    }
    least, step = min(clusters, key=clusters.__getitem__), level / len(clusters)
    need = next(n for n in itertools.count(1) if -inference.share_bounds(n, 0, n, level=step)[1] <= limit)
    way = f"collect more feedback of {least}, or set `gates.group_loss_max: null`"
    return clusters[least], need, f"independent test prompts of {least}", way
