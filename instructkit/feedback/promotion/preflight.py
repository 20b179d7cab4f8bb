"""
Find, before training, the gates of an update that the available data cannot decide. Pure.

Decide the gates on the best possible update: it meets every held-out judgement and changes nothing else. A gate that is
inconclusive even then has too few samples, whatever the real update does.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instructkit.evaluate import results, statistics
from instructkit.feedback.preprocess.items import Item
from instructkit.feedback.promotion import decide
from instructkit.feedback.promotion.decide import FEWEST_IN_GROUP
from instructkit.feedback.promotion.preference import FEWEST_OF_A_SIGN
from instructkit.feedback.promotion.side_effects import FEWEST

HABITS = ("answers end", "repetition", "refusals")


@dataclass(frozen=True)
class Sizes:
    """
    The amount of data to measure an update on.

    Attributes:
        items: the test events after preprocessing.
        groups: group and tags of each item.
        general: number of different prompts in the general rows.
        prompts: number of these that can be answered; plain texts cannot.
        pairs: number of minimal pairs.
        tasks: number of questions, by task.
        contrasts: of each question about groups the number of the names in it.
    """

    items: Sequence[Item]
    groups: Sequence[tuple[str, ...]]
    general: int
    prompts: int
    pairs: int
    tasks: dict[str, int]
    contrasts: Sequence[int] = ()


@dataclass(frozen=True)
class Shortage:
    """
    Gates that lack samples of one kind.

    Attributes:
        gates: their names.
        have, need: number of samples, and the least number needed.
        unit: what is counted.
        way: what to change, with the exact key.
        essential: whether a gate refuses when inconclusive, despite `gates.on_undecided: pass`.
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
    Return the gates that would be inconclusive at best; gates that lack the same samples share one entry.

    Args:
        limits: the `gates:` section of the recipe.
        level: one-sided level of each gate.
    """
    before, after = (_measured(sizes, limits, met=met) for met in (False, True))
    lacking: dict[tuple[int, int, str, str], list[Any]] = {}
    for gate in decide.decide(before, after, limits, level=level, seed=0):
        if gate.applicable and gate.passed is None:
            lacking.setdefault(_lack(gate.name, gate.limit, sizes, level), []).append(gate)
    return [
        Shortage(tuple(gate.name for gate in gates), *lack, any(gate.essential for gate in gates))
        for lack, gates in lacking.items()
    ]


def _measured(sizes: Sizes, limits: Any, *, met: bool) -> results.Measured:
    """Return the measurements of a model that meets all held-out judgements or none."""
    n, items = sizes.prompts, sizes.items
    feedback = results.Feedback(
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
    general = results.General([1.0] * sizes.general, [1] * sizes.general, tasks, scores)
    conduct = results.Conduct([0.0] * n, [1] * n, [True] * n, [0.0] * n, [False] * n)
    return results.Measured(
        feedback=feedback,
        general=general if sizes.general else None,
        bias=results.Bias([0.0] * sizes.pairs),
        contrasts=_contrasts(sizes),
        conduct=conduct if n else None,
        triggers=results.Triggers() if n else None,
        memory=results.Memory(),
    )


def _contrasts(sizes: Sizes) -> results.Contrasts:
    alike = {"length": [(0.0,) * 4] * len(sizes.contrasts)}
    return results.Contrasts(alike, alike, list(sizes.contrasts))


def _lack(name: str, limit: float | None, sizes: Sizes, level: float) -> tuple[int, int, str, str]:
    """Return how many samples an inconclusive gate has and needs, their unit, and what to change."""
    if name.startswith(("held-out feedback", "reward of")):
        return _of_feedback(sizes)
    if name == "general accuracy" and sizes.general:
        need = statistics.enough_shares(limit, 0.0, level=level / len(sizes.tasks))
        return min(sizes.tasks.values()), need, "questions of a task", "add questions to `feedback.tasks`"
    if name == "no group harmed":
        return _of_groups(sizes, limit, level)
    if name == "no added bias":
        return sizes.pairs, FEWEST, "minimal pairs", "add pairs to `feedback.bias_pairs`"
    if name.startswith("groups answered alike"):
        return _of_contrasts(sizes, limit, level)
    way = "hold out more rows of the SFT run (its `data.eval`), or name a larger file in `feedback.general`"
    if name == "general held-out loss":
        return sizes.general, FEWEST, "general prompts", way
    need = max(FEWEST, statistics.enough_shares(limit, 0.0, level=level)) if name in HABITS else FEWEST
    return sizes.prompts, need, "general prompts that the feedback does not ask too", way


def _of_feedback(sizes: Sizes) -> tuple[int, int, str, str]:
    ratings = [item.rating for item in sizes.items if item.unwanted is None]
    good, bad = sum(rating > 0 for rating in ratings), sum(rating < 0 for rating in ratings)
    way = "import more feedback, or raise `feedback.eval`"
    if bad and min(good, bad) < FEWEST_OF_A_SIGN:
        way += (
            f"; bad ratings count only with at least {FEWEST_OF_A_SIGN} bad and {FEWEST_OF_A_SIGN} good ones"
        )
        clusters = {item.cluster for item in sizes.items if item.unwanted is not None or item.rating > 0}
    else:
        clusters = {item.cluster for item in sizes.items}
    return len(clusters), FEWEST, "independent test prompts", way


def _of_contrasts(sizes: Sizes, limit: float, level: float) -> tuple[int, int, str, str]:
    if len(sizes.contrasts) < FEWEST:
        way = "add questions to `feedback.counterfactuals`"
        return len(sizes.contrasts), FEWEST, "questions about groups", way
    need = statistics.enough_shares(limit, 0.0, level=level)
    way = "add questions about other people to `feedback.counterfactuals`"
    return len(set(sizes.contrasts)), need, "sets of names", way


def _of_groups(sizes: Sizes, limit: float, level: float) -> tuple[int, int, str, str]:
    counts = Counter(group for groups in sizes.groups for group in groups)
    clusters = {
        group: len({i.cluster for i, of in zip(sizes.items, sizes.groups, strict=True) if group in of})
        for group, count in counts.items()
        if count >= FEWEST_IN_GROUP
    }
    least, step = min(clusters, key=clusters.__getitem__), level / len(clusters)
    need = next(n for n in itertools.count(1) if -statistics.share_bounds(n, 0, n, level=step)[1] <= limit)
    way = f"collect more feedback of {least}, or set `gates.group_loss_max: null`"
    return clusters[least], need, f"independent test prompts of {least}", way
