"""What a store holds, in figures: kinds, raters and how far they agree, groups, the loudest, whether the first answer wins."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from instructkit.data.rows import Row
from instructkit.feedback.store.events import Event
from instructkit.feedback.store.judgements import Judgement, judgement_of
from instructkit.feedback.store.personal_data import Redactor, placeholders


@dataclass
class Statistics:
    """
    Figures of events.

    Attributes:
        events, kinds, sources, groups, tags: how many.
        raters: how many are known apart; `anonymous` events have none.
        loudest: share of the events that the rater with the most has said, of those with a rater.
        agreement: of pairs of raters whose last words are about the same answer, or the same two, the share that judged alike,
            and how many pairs.
        first_chosen: of choices whose positions are known, the share that fell on the answer shown first, how many, and the
            two-sided probability of a share as far from a half by chance.
        without_consent: events that may not be trained on.
        placeholders, personal: by kind, what stands for personal data, and personal data that stands there itself.
    """

    events: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    groups: Counter[str] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)
    raters: int = 0
    anonymous: int = 0
    loudest: float | None = None
    agreement: tuple[float, int] | None = None
    first_chosen: tuple[float, int, float] | None = None
    without_consent: int = 0
    placeholders: Counter[str] = field(default_factory=Counter)
    personal: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()
        }


def of_events(events: Iterable[Event]) -> Statistics:
    """Figures of all events, which are met once."""
    found, by_rater = Statistics(), Counter[str]()
    verdicts = _Verdicts()
    chosen: Counter[bool] = Counter()
    redactor = Redactor()
    for event in events:
        found.events += 1
        found.kinds[event.kind] += 1
        found.sources[event.source] += 1
        found.groups.update([event.group] if event.group else [])
        found.tags.update(event.tags)
        found.without_consent += not event.consent
        found.anonymous += not event.rater
        _count_personal(found, event, redactor)
        by_rater.update([event.rater] if event.rater else [])
        judged = judgement_of(_said(event))
        verdicts.meet(judged)
        if judged.first:
            chosen[judged.first > 0] += 1
    found.raters = len(by_rater)
    if by_rater:
        found.loudest = max(by_rater.values()) / sum(by_rater.values())
    found.agreement = _agreement(verdicts.by_item())
    if total := sum(chosen.values()):
        found.first_chosen = chosen[True] / total, total, two_sided(chosen[True], total)
    return found


def _count_personal(found: Statistics, event: Event, redactor: Redactor) -> None:
    texts = {"prompt": event.prompt, "response": event.response, **event.judgement}
    found.personal.update(kind for kind, _ in redactor.row(texts)[1])
    said = event.prompt if isinstance(event.prompt, list) else [{"content": event.prompt}]
    answers = (texts.get(name) for name in ("response", "better", "other"))
    for text in (*(message.get("content") for message in said), *answers):
        if isinstance(text, str):
            found.placeholders.update(placeholders(text))


def _said(event: Event) -> Row:
    """Of the row that an event makes, what a judgement is made of."""
    asked = {"prompt" if isinstance(event.prompt, str) else "messages": event.prompt}
    return {**asked, "response": event.response, **event.judgement, "rater": event.rater, "time": event.time}


class _Verdicts:
    """Who judged what how, in the end: as in preprocessing, each rater's last word about an answer or a pair stands."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], tuple[float, int, int, int]] = {}
        self._met = 0

    def meet(self, judged: Judgement) -> None:
        """Take a judgement in; one that asks for nothing takes back what was said before."""
        key, self._met = (judged.rater, judged.answer), self._met + 1
        if judged.rater and (key not in self._last or judged.time >= self._last[key][0]):
            self._last[key] = judged.time, self._met, judged.item, judged.sign

    def by_item(self) -> Iterable[Iterable[int]]:
        """Of each item, the signs that its raters gave it."""
        found: dict[int, dict[str, tuple[float, int, int]]] = defaultdict(dict)
        for (rater, _), (time, number, item, sign) in self._last.items():
            # An edit and a preference may speak of one pair of answers, and of that too a rater has one opinion.
            if sign:
                said = time, number, sign
                found[item][rater] = max(said, found[item].get(rater, said))
        return ([sign for *_, sign in said.values()] for said in found.values())


def _agreement(verdicts: Iterable[Iterable[int]]) -> tuple[float, int] | None:
    alike = pairs = 0
    for signs in verdicts:
        counts = Counter(signs)
        for_it, against = counts[1], counts[-1]
        alike += math.comb(for_it, 2) + math.comb(against, 2)
        pairs += math.comb(for_it + against, 2)
    return (alike / pairs, pairs) if pairs else None


def two_sided(successes: int, n: int) -> float:
    """The probability of a result as unlikely as this or more so, if either outcome had a half (exact binomial test)."""
    extreme = abs(successes - n / 2)
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
        for k in range(n + 1)
    ]
    return min(1.0, math.fsum(math.exp(log) for k, log in enumerate(logs) if abs(k - n / 2) >= extreme))
