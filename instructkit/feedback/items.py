"""What preprocessing hands on: judgements that may be learned from or measured on, each with its weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SIDES = ("train", "tune", "test")


@dataclass(frozen=True)
class Item:
    """
    One judgement after preprocessing.

    Attributes:
        event: the id of the event that stands for it, or its place in a file.
        prompt: a text, or the messages before the answer.
        wanted: the answer that was wanted; of a rating, the answer that was rated.
        unwanted: the answer that was not; None for a rating.
        rating: from -1 to 1, never 0; 1 for a pair.
        weight: how much it counts in training, 1 being one ordinary judgement.
        agreement: of those who judged these answers, by reliability, the share that says so, from 0.5 to 1: a soft label.
        edit: whether `wanted` was written by the user.
        rater, group, tags: who said it, and where parity is looked at; a rater and a group may be empty.
        cluster: of near-duplicate prompts; items of one cluster are no independent measurements.
        judges: of an answer that was judged both ways, the raters of all judgements that were merged; `rater` is then empty.
    """

    event: str
    prompt: Any
    wanted: str
    unwanted: str | None = None
    rating: float = 1.0
    weight: float = 1.0
    agreement: float = 1.0
    edit: bool = False
    rater: str = ""
    group: str = ""
    tags: tuple[str, ...] = ()
    cluster: int = 0
    judges: tuple[str, ...] = ()


@dataclass(frozen=True)
class Phase:
    """One objective (`sft`, `dpo` or `kto`) and the items that it learns from, their weights being for it alone."""

    objective: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Prepared:
    """
    Feedback after preprocessing.

    Attributes:
        train, tune, test: items by side; a cluster of prompts is on one side for ever. Of training those that are learned from.
        outcomes: every event counted into exactly one outcome; the counts add up to all events.
        report: figures of each step, plain values, as `preprocess.json` keeps them:
            `events`: how many there were. `seed`: as given.
            `personal_data`: how many of each kind.
            `clusters`: `prompts` read, the `clusters` they touch, the `largest` one's share of the prompts.
            `sides`: of each side `items`, `clusters`, named `raters`.
            `reliability`: `raters` with shared items, `judgements` of them, their `mean` agreement, `prior` judgements;
                the `lowest` weight and the `highest`; None where it is switched off.
            `conflicts`: `answers` judged both ways, those `set_aside`, `agreement` of the others, on average.
            `position`: `choices` with known positions, share of `first_chosen`, its exact two-sided `probability`, whether
                `corrected`, and the `first_weight` in the end.
            `recency`: `half_life_days`, events `without_time`; None where it is switched off.
            `balance`: by name the share `wanted`, `before` and `after`.
            `shares`: by group and tag, of judgements `before` and of weight `after`.
            `caps`: for `rater` and `cluster` the `limit` (None: off, for the reason `off`), the largest share `before` and
                `after`; how many `raters`, and the `anonymous` share.
            `weight`: `total`, and `effective` number of judgements (Kish).
            With an objective, `objective` tells it and the reason, and the figures from `position` on stand under `phases`,
            by objective: each is weighed for itself.
        redacted: distinct personal data found and replaced, as (kind, value), up to 1000.
        learned: ids of all events that training items are made of: of those that stand for them and of those merged into them.
        objective: what is learned by, and why; None where none was asked for.
        asked: prompts of all events that ask for something, but held-out ones, as a cluster index is asked for them.
        phases: what is learned one after the other, on one adapter; together they hold the training items.
    """

    train: Sequence[Item]
    tune: Sequence[Item]
    test: Sequence[Item]
    outcomes: dict[str, int]
    report: dict[str, Any] = field(default_factory=dict)
    redacted: tuple[tuple[str, str], ...] = ()
    learned: Sequence[str] = ()
    objective: tuple[str, str] | None = None
    phases: tuple[Phase, ...] = ()
    asked: Sequence[str] = field(default=(), compare=False)
