"""What preprocessing hands on: judgements that may be learned from or measured on, each with its weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from instructkit.errors import InputError

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


NAMED = ("group", "tag")


@dataclass(frozen=True)
class Settings:
    """
    Settings of preprocessing, as the recipe names them.

    Attributes:
        test: share of prompt clusters held out for the gates; the recipe's `eval`, 0 where that is a source of its own.
        tune: share of prompt clusters that a rescue may look at.
        near_duplicates: Jaccard similarity from which prompts are one cluster.
        max_share_per_cluster, max_share_per_rater: of the training weight, at most; None for `max(0.05, 2 / raters)`.
        agreement_min: answers whose judges agree less are set aside.
        reliability: whether raters are weighed by their agreement with others.
        position_bias: `report`, or `correct`: choices of either position weigh the same in all.
        max_characters: of an event.
        languages: writing systems to keep, by the first word of their letters' names in Unicode; None for all.
        half_life_days: an event this much older than the newest counts half; None for no such weight.
        balance: wanted shares of the weight, `group:NAME` or `tag:NAME` to a share.
        objective: what is to be learned by: `sft`, `dpo`, `kto`, `mixture`, or `auto` for what suits; None: nothing is chosen.
        chat: whether text prompts become a user's message.
    """

    test: float = 0.3
    tune: float = 0.1
    near_duplicates: float = 0.8
    max_share_per_cluster: float = 0.05
    max_share_per_rater: float | None = None
    agreement_min: float = 0.6
    reliability: bool = True
    position_bias: str = "report"
    max_characters: int = 100_000
    languages: tuple[str, ...] | None = None
    half_life_days: float | None = None
    balance: Mapping[str, float] = field(default_factory=dict)
    objective: str | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        if self.test + self.tune >= 1:
            raise InputError(
                f"`feedback.eval` and `feedback.tune` hold out {self.test:g} and {self.tune:g}; nothing is left to learn",
                hint="let the two add up to less than 1",
            )
        _check_balance(self.balance)

    @classmethod
    def of(cls, section: Any, *, chat: bool = False) -> Settings:
        """Return the settings of a recipe's `feedback:` section; `chat` is the run's data format."""
        same = {
            name: getattr(section, name)
            for name in cls.__dataclass_fields__
            if name not in ("test", "languages", "chat")
        }
        test = section.eval if isinstance(section.eval, float) else 0.0
        languages = None if section.languages is None else tuple(section.languages)
        return cls(test=test, languages=languages, chat=chat, **same)


def _check_balance(wanted: Mapping[str, float]) -> None:
    """Whether the targets name groups and tags, and can all be reached at once."""
    for name, share in wanted.items():
        kind, _, called = name.partition(":")
        if kind not in NAMED or not called:
            raise InputError(
                f"`feedback.balance` names {name!r}; wanted `group:NAME` or `tag:NAME`",
                hint='quote the key in YAML, as "group:teachers": 0.5',
            )
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise InputError(
                f"`feedback.balance` wants a share of {share:g} for {name}", hint="give shares from 0 to 1"
            )
    groups = sum(share for name, share in wanted.items() if name.startswith("group:"))
    if groups > 1 + 1e-9:
        raise InputError(
            f"`feedback.balance` shares {groups:g} of the weight among groups, and an event has one group",
            hint="let the groups' shares add up to 1 at most; tags may overlap",
        )
