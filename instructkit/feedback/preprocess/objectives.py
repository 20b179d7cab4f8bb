"""
From prepared items to training rows: which objective they allow, and the rows that its trainer reads.

Preferences and edits are pairs, which DPO learns from (Rafailov et al. 2305.18290); ratings of both signs are KTO's (Ethayarajh
et al. 2402.01306); better answers and good ratings alone are demonstrations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructkit.errors import InputError
from instructkit.feedback.preprocess.items import Item, Phase
from instructkit.feedback.store.judgements import Judgement

Numbers = Sequence[float] | np.ndarray


def draw(weights: Numbers, n: int, seed: int) -> np.ndarray:
    """
    Systematic resampling: `n` draws, of which item `i` gets `n w_i / sum(w)`, rounded up or down.

    `count_i = floor(C_i + u) - floor(C_{i-1} + u)` with `C_i = n (w_1 + ... + w_i) / sum(w)` and one `u` in [0, 1).

    Args:
        weights: one an item, none below 0.
        n: how many draws.
        seed: of `u`.

    Returns:
        Indices of items, ascending; those of an item that is drawn often stand together.

    Raises:
        InputError: when no weight is above 0, or one is no number or below 0.

    Source: Kitagawa 1996, Monte Carlo filter and smoother, appendix.
    """
    w = np.asarray(weights, dtype=np.float64)
    if n <= 0:
        return np.zeros(0, dtype=np.int64)
    total = w.sum()
    if not np.isfinite(total) or total <= 0 or w.min() < 0:
        raise InputError(
            f"nothing can be drawn from {len(w)} items of total weight {total:g}; wanted weights of 0 or more, not all 0",
            hint="check the preprocessing settings that weigh events; the outcomes say what was set aside",
        )
    cumulative = np.cumsum(w) * (n / total)
    cumulative[np.flatnonzero(w)[-1] :] = n  # whatever rounding has made of the last
    counts = np.diff(np.floor(cumulative + np.random.default_rng(seed).random()), prepend=0.0)
    return np.repeat(np.arange(len(w)), counts.astype(np.int64))


def orders(agreements: Numbers, seed: int) -> np.ndarray:
    """
    Which of the drawn items say the opposite of what they are labelled: `1 - agreement` of them, up to rounding.

    The same systematic rule along the list: however many draws in a row are taken, their swaps are the sum of `1 - agreement`
    rounded up or down, so this holds for each item that `draw` has drawn often, and for all of them.

    Args:
        agreements: one a draw, from 0.5 to 1, as `Item.agreement`.
        seed: of the first swap.

    Returns:
        One truth value a draw: True where a pair's order, or a rating's sign, is to be turned round.
    """
    # Not the draw's own number: the two must not move together.
    return _systematic(1.0 - np.asarray(agreements, dtype=np.float64), [seed, 1])


def kept(shares: Numbers, seed: int) -> np.ndarray:
    """
    Which items are kept, each with its probability; of any in a row as many as their shares add up to, up or down.

    Args:
        shares: one an item, from 0 to 1.
        seed: of the first.

    Returns:
        One truth value an item.
    """
    return _systematic(np.asarray(shares, dtype=np.float64), [seed, 2])


def _systematic(shares: np.ndarray, seed: list[int]) -> np.ndarray:
    """`floor(C_i + u) > floor(C_{i-1} + u)` with `C_i` the sum of the first `i` shares, and one `u` in [0, 1)."""
    start = np.random.default_rng(seed).random()
    return np.diff(np.floor(np.cumsum(shares) + start), prepend=0.0) > 0


def effective(weights: Numbers) -> float:
    """
    How many items of equal weight these are worth: `sum(w)^2 / sum(w^2)`; 0 without weight.

    Source: Kish 1965, Survey Sampling, 11.7.
    """
    w = np.asarray(weights, dtype=np.float64)
    squares = float((w * w).sum())
    return float(w.sum()) ** 2 / squares if squares > 0 else 0.0


OBJECTIVES = ("sft", "dpo", "kto")  # in the order in which a mixture learns
KINDS = ("preferences", "edits", "good", "bad")
PAIRS = 2  # so many of them, the first, speak of two answers
_LEARNS_FROM = {"sft": ("edits", "preferences", "good"), "dpo": ("preferences", "edits"), "kto": KINDS}
# Both kinds of signal are learned from, one after the other, when the smaller one is at least this share of the weight.
WORTH_A_PHASE = 0.25


@dataclass(frozen=True)
class Signals:
    """Weight by kind of signal."""

    preferences: float = 0.0
    edits: float = 0.0
    good: float = 0.0
    bad: float = 0.0

    @classmethod
    def of(cls, kinds: np.ndarray, weights: np.ndarray) -> Signals:
        """Of judgements: the number of each one's kind (`kind_of`), and its weight."""
        return cls(*np.bincount(kinds, weights, len(KINDS)).tolist())

    @property
    def pairs(self) -> float:
        """Of preferences and edits."""
        return self.preferences + self.edits

    @property
    def ratings(self) -> float:
        """Of both signs; ratings of one sign are no signal for KTO."""
        return self.good + self.bad if self.good and self.bad else 0.0

    def told(self) -> str:
        """In words."""
        said = [f"{weight:.4g} of {kind}" for kind, weight in vars(self).items() if weight]
        return f"weight: {', '.join(said) or 'none'}"


def kind_of(judged: Item | Judgement) -> int:
    """The place in `KINDS` of what is said."""
    if judged.unwanted is not None:
        return KINDS.index("edits" if judged.edit else "preferences")
    return KINDS.index("good" if judged.rating > 0 else "bad")


def objective(signals: Signals, wanted: str = "auto") -> tuple[str, str]:
    """
    Choose SFT, DPO, KTO or a mixture of them by the weight of what is said.

    Returns:
        The objective and the reason, in words.

    Raises:
        InputError: when nothing could be learned from.
    """
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


def homes(signals: Signals, chosen: str) -> dict[str, str]:
    """
    Which objective learns from each kind of signal; a kind that is not named is of no use.

    Raises:
        InputError: when the chosen objective can learn from none that is there.
    """
    if chosen == "mixture":
        found = {"preferences": "dpo", "edits": "dpo" if signals.preferences else "sft"}
        found |= dict.fromkeys(("good", "bad"), "kto") if signals.ratings else {"good": "sft"}
    else:
        found = dict.fromkeys(_LEARNS_FROM[chosen], chosen)
    if not any(getattr(signals, kind) for kind in found):
        raise InputError(
            f"the feedback holds nothing that {chosen} can learn from",
            hint="sft needs better answers or good ratings, dpo needs preferences or edits, kto needs ratings",
        )
    return found


def standing(phases: Sequence[Phase], seed: int) -> list[str]:
    """
    Ids of events that stand for what is learned, for later updates to replay: drawn by how far the judges speak for them.

    An item of weight `w` and agreement `a` speaks with `w (2 a - 1)`; it stands with probability `min(1, that / m)`, `m` being
    the heaviest item's, 1 at most. So a rater or a prompt that was held down stays so when nobody's weights are kept.

    Args:
        seed: of the draw, which is systematic.
    """
    found = []
    for phase in phases:
        net = np.array([item.weight * (2 * item.agreement - 1) for item in phase.items])
        shares = np.minimum(1.0, net / max(min(1.0, net.max()), np.finfo(float).tiny))
        found += [item.event for item, stands in zip(phase.items, kept(shares, seed), strict=True) if stands]
    return found


def rows(phase: Phase, seed: int, *, most: int | None = None) -> list[dict[str, Any]]:
    """
    Rows in the form of TRL's trainer; TRL weighs no rows, so weights become how often an item is drawn.

    As many rows as the phase has items, by systematic resampling; of an item whose judges do not all agree, both orders
    in proportion.

    Args:
        seed: of the draw.
        most: how many are drawn at most.
    """
    weights = [item.weight for item in phase.items]
    drawn = [phase.items[int(i)] for i in draw(weights, min(len(weights), most or len(weights)), seed)]
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
    # Of what a user wrote the better answer is a demonstration too; which of two was liked more says nothing of that kind.
    return [
        {"prompt": item.prompt, "chosen": chosen, "rejected": rejected, "written": item.edit and not swapped}
    ]


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
        kinds: of each training judgement the place in `KINDS` of what it, or the one that stands for it, says.
        weigh: the weights.
        wanted: as in `Settings`.

    Raises:
        InputError: when there is nothing that could be learned from.
    """
    everything = np.arange(len(kinds))
    weights, figures = weigh(everything)
    if wanted is None or not len(kinds):
        return Learning(None, [Part("", everything, weights, figures)])
    signals = Signals.of(kinds, weights)
    chosen = objective(signals, wanted)
    home = homes(signals, chosen[0])
    named = np.array([home.get(kind, "") for kind in KINDS])[kinds]
    places = {each: np.flatnonzero(named == each) for each in OBJECTIVES}
    return Learning(chosen, [Part(each, here, *weigh(here)) for each, here in places.items() if len(here)])
