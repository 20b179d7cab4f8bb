"""
From prepared items to training rows: which objective they allow, and the rows that its trainer reads.

Preferences and edits are pairs, which DPO learns from (Rafailov et al. 2305.18290); ratings of both signs are KTO's (Ethayarajh
et al. 2402.01306); better answers and good ratings alone are demonstrations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instructkit.errors import InputError
from instructkit.feedback.items import Item
from instructkit.feedback.resampling import draw, orders

OBJECTIVES = ("sft", "dpo", "kto")
# Both kinds of signal are learned from, one after the other, when the smaller one is at least this share of the weight.
WORTH_A_PHASE = 0.25


@dataclass(frozen=True)
class Phase:
    """One objective and the items that it learns from."""

    objective: str
    items: Sequence[Item]


@dataclass(frozen=True)
class _Signals:
    """Weight by kind of signal."""

    preferences: float
    edits: float
    good: float
    bad: float

    @classmethod
    def of(cls, items: Sequence[Item]) -> _Signals:
        found = dict.fromkeys(("preferences", "edits", "good", "bad"), 0.0)
        for item in items:
            found[_kind(item)] += item.weight
        return cls(**found)

    @property
    def pairs(self) -> float:
        return self.preferences + self.edits

    @property
    def ratings(self) -> float:
        """Of both signs; ratings of one sign are no signal for KTO."""
        return self.good + self.bad if self.good and self.bad else 0.0

    def told(self) -> str:
        said = [f"{weight:.4g} of {kind}" for kind, weight in vars(self).items() if weight]
        return f"weight: {', '.join(said) or 'none'}"


def _kind(item: Item) -> str:
    if item.unwanted is not None:
        return "edits" if item.edit else "preferences"
    return "good" if item.rating > 0 else "bad"


def objective(items: Sequence[Item], wanted: str = "auto") -> tuple[str, str]:
    """
    Choose SFT, DPO, KTO or a mixture of them by the weight of what the items say.

    Returns:
        The objective and the reason, in words.

    Raises:
        InputError: when no item could be learned from.
    """
    signals = _Signals.of(items)
    if wanted != "auto":
        return wanted, f"set in the recipe; {signals.told()}"
    pairs, ratings = signals.pairs, signals.ratings
    if pairs and ratings and min(pairs, ratings) >= WORTH_A_PHASE * (pairs + ratings):
        return "mixture", f"pairs and ratings of both signs, neither of them little; {signals.told()}"
    if ratings > pairs:
        return "kto", f"ratings of both signs, more than anything else; {signals.told()}"
    if signals.preferences:
        return "dpo", f"pairs from preferences and edits; {signals.told()}"
    if signals.edits or signals.good:
        return "sft", f"better answers and good ratings are demonstrations; {signals.told()}"
    raise InputError(
        f"the feedback holds nothing to learn from; {signals.told()}",
        hint="add edits, preferences, good ratings, or ratings of both signs",
    )


def phases(items: Sequence[Item], chosen: str) -> list[Phase]:
    """
    What is learned one after the other, on one adapter; of a mixture SFT, then DPO, then KTO, those that have items.

    Raises:
        InputError: when the chosen objective can learn from none of the items.
    """
    if chosen != "mixture":
        found = [Phase(chosen, [item for item in items if _usable(item, chosen)])]
    else:
        signals = _Signals.of(items)
        homes = {"preferences": "dpo", "edits": "dpo" if signals.preferences else "sft"}
        homes |= dict.fromkeys(("good", "bad"), "kto") if signals.ratings else {"good": "sft"}
        split = {o: [item for item in items if homes.get(_kind(item)) == o] for o in OBJECTIVES}
        found = [Phase(o, split[o]) for o in OBJECTIVES]
    found = [phase for phase in found if phase.items]
    if not found:
        raise InputError(
            f"the feedback holds nothing that {chosen} can learn from",
            hint="sft needs better answers or good ratings, dpo needs preferences or edits, kto needs ratings",
        )
    return found


def _usable(item: Item, chosen: str) -> bool:
    if chosen == "dpo":
        return item.unwanted is not None
    return chosen == "kto" or item.rating > 0


def rows(phase: Phase, seed: int) -> list[dict[str, Any]]:
    """
    Rows in the form of TRL's trainer; TRL weighs no rows, so weights become how often an item is drawn.

    As many rows as the phase has items, by systematic resampling; of an item whose judges do not all agree, both orders
    in proportion.

    Args:
        seed: of the draw.
    """
    weights = [item.weight for item in phase.items]
    drawn = [phase.items[int(i)] for i in draw(weights, len(weights), seed)]
    made: list[dict[str, Any]] = []
    for item, swapped in zip(drawn, orders([item.agreement for item in drawn], seed), strict=True):
        made.extend(_MAKERS[phase.objective](item, bool(swapped)))
    return made


def _sft(item: Item, swapped: bool) -> list[dict[str, Any]]:
    text = item.unwanted if swapped else item.wanted
    return [] if text is None else [{"prompt": item.prompt, "completion": _answer(item.prompt, text)}]


def _dpo(item: Item, swapped: bool) -> list[dict[str, Any]]:
    sides = (item.wanted, item.unwanted)[:: -1 if swapped else 1]
    chosen, rejected = (_answer(item.prompt, text) for text in sides)
    return [{"prompt": item.prompt, "chosen": chosen, "rejected": rejected}]


def _kto(item: Item, swapped: bool) -> list[dict[str, Any]]:
    judged = [(item.wanted, item.rating > 0)] + ([] if item.unwanted is None else [(item.unwanted, False)])
    return [
        {"prompt": item.prompt, "completion": _answer(item.prompt, text), "label": good != swapped}
        for text, good in judged
    ]


_MAKERS = {"sft": _sft, "dpo": _dpo, "kto": _kto}


def _answer(prompt: Any, text: str) -> Any:
    """An answer in the form of its prompt: text to text, a message to messages."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
