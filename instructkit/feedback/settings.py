"""How feedback is preprocessed: the part of a recipe's `feedback:` section that preprocessing reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from instructkit.errors import InputError

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
