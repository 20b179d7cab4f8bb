"""
Preprocessing: from feedback rows to items that may be learned from or measured on, each step with its count.

The order of the steps: rows are checked, what has no consent is left out, personal data is replaced, filters are applied
(`read`); prompts are clustered and sides given; of each rater and answer the last word stands (`weights`); raters
are weighed by their agreement with others, opposite judgements become soft labels, and what its judges do not agree on is
set aside; training judgements are weighed.

Judgements that agree stay items of their own; of those that do not, one item is made that weighs as much as all of them, so
that one dissenting voice moves the label of an answer by its share and not the weight by a leap.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructkit.data.near_duplicates import prompt_text
from instructkit.data.rows import Row
from instructkit.data.table import View
from instructkit.feedback.preprocess import objectives, weights
from instructkit.feedback.preprocess.items import SIDES, Item, Phase, Prepared, Settings
from instructkit.feedback.preprocess.objectives import Learning, learning
from instructkit.feedback.preprocess.read import NOTHING, Columns, Intake, Redact
from instructkit.feedback.preprocess.weights import (
    Labels,
    Members,
    conflicts,
    judges_of,
    labels_of,
    trusted,
    weigh,
)
from instructkit.feedback.store.clusters import ClusterIndex

TRAIN, TUNE, TEST = range(3)
BRIDGES, TESTED = 3, 4  # near prompts of two sides; near a test event that is a source of its own


@dataclass(frozen=True)
class Touched:
    """
    The clusters that each prompt touches, earliest first.

    Attributes:
        starts: where those of each prompt begin in `clusters`.
        clusters: all of them, prompt after prompt.
    """

    starts: np.ndarray
    clusters: np.ndarray

    @classmethod
    def of(cls, answers: Iterable[tuple[int, ...]]) -> Touched:
        """Of what a cluster index answers, which streams."""
        starts, clusters = array("q"), array("q")
        for answer in answers:
            starts.append(len(clusters))
            clusters.extend(answer)
        return cls(*(np.array(column, dtype=np.int64) for column in (starts, clusters)))

    @property
    def first(self) -> np.ndarray:
        """The earliest cluster of each prompt: the one that it counts for."""
        return self.clusters[self.starts]


def sides(touched: Touched, held: np.ndarray, index: Any, *, tune: float, test: float) -> np.ndarray:
    """
    The side of each event, from the places of the clusters that its prompt touches.

    Args:
        touched: of each event, in their order.
        held: whether an event came as a test event of a source of its own.
        index: knows the place in [0, 1) of a cluster, `position(cluster)`.
        tune, test: shares of the places.

    Returns:
        `TRAIN`, `TUNE`, `TEST`, or `BRIDGES` or `TESTED` where the event can be on no side; one an event.
    """
    if not len(touched.starts):
        return np.zeros(0, dtype=np.int8)
    numbers, compact = np.unique(touched.clusters, return_inverse=True)
    names = (side(index.position(int(number)), tune, test) for number in numbers)
    by_cluster = np.fromiter((SIDES.index(name) for name in names), np.int8, len(numbers))
    each = by_cluster[compact]
    found = np.minimum.reduceat(each, touched.starts)
    found[found != np.maximum.reduceat(each, touched.starts)] = BRIDGES
    tested = np.zeros(len(numbers), dtype=bool)
    lengths = np.diff(np.append(touched.starts, len(touched.clusters)))
    tested[compact[np.repeat(held, lengths)]] = True
    found[np.logical_or.reduceat(tested[compact], touched.starts)] = TESTED
    found[held] = TEST
    return found


def side(position: float, tune: float, test: float) -> str:
    """`test` for positions in [0, test), `tune` in [test, test + tune), else `train`."""
    if position < test:
        return "test"
    return "tune" if position < test + tune else "train"


# Outcomes of an event, beside those of `read`.
DUPLICATE = "duplicate"
OVERRULED = "overruled by the same rater"
BRIDGED = "bridges two sides"
NEAR_TEST = "near a test event"
MERGED = "merged into an answer that was judged both ways"
DISPUTED = "set aside: its judges do not agree"
NO_USE = {name: f"no use to {name}" for name in ("sft", "dpo", "kto", "mixture")}
OUTCOMES = (*SIDES, MERGED, DUPLICATE, OVERRULED, NOTHING, DISPUTED, BRIDGED, NEAR_TEST, *NO_USE.values())
_CODES = {name: code for code, name in enumerate(OUTCOMES)}


def prepare(
    rows: Sequence[Row],
    how: Settings,
    *,
    seed: int,
    places: Sequence[str] = (),
    held_out: Sequence[Row] | None = None,
    index: ClusterIndex | None = None,
    redact: Redact | None = None,
    keep: Callable[[Row], bool] | None = None,
    left_out: Mapping[str, int] | None = None,
) -> Prepared:
    """
    Preprocess feedback.

    Every event is counted into exactly one outcome: the counts add up to `len(rows) + len(held_out) + sum(left_out)`. Nothing
    here is drawn by chance. Items weigh 1 on the sides `tune` and `test`.

    Args:
        rows: feedback rows, checked by `data.records`, in the order of the store or file.
        how: the settings.
        seed: of the run, for the report; splits do not depend on it.
        places: file and line of each row, for rows without an id.
        held_out: test events that are a source of their own; training events near them are set aside.
        index: of prompt clusters, when the store keeps one; else one for this call.
        redact: replaces personal data in a row, and tells each by kind and value.
        keep: whether the recipe's filter keeps a row.
        left_out: events that the store has left out already, by reason.

    Returns:
        Items by side, with what became of the rest and a report.

    Raises:
        InputError: when a setting names no writing system, or nothing can be learned by the objective.
    """
    held_out, left_out = held_out or (), left_out or {}
    index = index if index is not None else ClusterIndex(threshold=how.near_duplicates)
    intake = Intake(how, redact, keep)
    events = _read(intake, rows, held_out, places, index, how)
    judged = _judge(events, how)
    found = learning(judged.kinds(events), _weigher(events, judged, how), how.objective)
    weights, used = _weights(found, len(judged.chosen))
    chosen, outcome = judged.chosen, events.outcome
    if found.objective is not None:
        outcome[chosen[~used]] = _CODES[NO_USE[found.objective[0]]]
    made = _maker(events, judged, weights)
    split = {name: np.flatnonzero(outcome == code) for code, name in enumerate(SIDES)}
    count = len(rows) + len(held_out) + sum(left_out.values())
    return Prepared(
        **{name: made.items(part) for name, part in split.items()},
        outcomes=_counted(outcome, intake.outcomes, left_out),
        report={"events": count, "seed": seed} | _report(events, judged, split) | found.report,
        redacted=tuple(intake.redacted),
        learned=made.ids(chosen[used]),
        objective=found.objective,
        phases=_phases(found, made, chosen, outcome),
        asked=View(intake.table, np.flatnonzero(~events.columns.held[events.columns.slot >= 0]), _asked),
    )


@dataclass(frozen=True)
class _Events:
    """All events: as columns, their clusters and splits, and the outcome of each, which later steps change in place."""

    intake: Intake
    columns: Columns
    touched: Touched
    side: np.ndarray
    cluster: np.ndarray
    outcome: np.ndarray


@dataclass(frozen=True)
class _Judged:
    """Events that are the last word of their rater, with trust in each rater, labels, and which of them are weighed."""

    standing: np.ndarray
    trust: np.ndarray
    reliability: dict[str, Any] | None
    labels: Labels
    weighed: np.ndarray

    @property
    def chosen(self) -> np.ndarray:
        """Return the events that may be trained on."""
        return self.standing[self.weighed]

    def kinds(self, events: _Events) -> np.ndarray:
        """Return the kind of judgement of each event that may be trained on."""
        return events.columns.kind[self.standing[self.labels.of[self.weighed]]]


def _read(
    intake: Intake,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    places: Sequence[str],
    index: ClusterIndex,
    how: Settings,
) -> _Events:
    """Take in all rows, cluster their prompts and split the clusters."""
    prompts = itertools.chain(
        intake.prompts(rows, _named(places, "row"), held=False),
        intake.prompts(held_out, _named((), "test row"), held=True),
    )
    touched = Touched.of(index.touched(prompts))
    columns = intake.columns()
    side, cluster = _placed(columns, touched, index, how)
    return _Events(intake, columns, touched, side, cluster, _outcomes(columns, side))


def _judge(events: _Events, how: Settings) -> _Judged:
    """Weigh raters, label answers, and mark the events that are merged or disputed."""
    standing = np.flatnonzero(events.outcome < len(SIDES))
    train = events.side[standing] == TRAIN
    trust, reliability = trusted(events.columns, standing[train], standing, weighted=how.reliability)
    labels = labels_of(events.columns, standing, trust, how.agreement_min)
    events.outcome[standing[~labels.stands]] = _CODES[MERGED]
    events.outcome[standing[labels.disputed]] = _CODES[DISPUTED]
    return _Judged(standing, trust, reliability, labels, train & ~labels.disputed)


def _weigher(
    events: _Events, judged: _Judged, how: Settings
) -> Callable[[np.ndarray], tuple[np.ndarray, dict[str, Any]]]:
    """Return the function that weighs some of the events that may be trained on, by their places among these."""
    chosen, trust = judged.chosen, judged.trust[judged.weighed]
    names = (events.intake.groups, events.intake.tags)

    def weighing(places: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        some = chosen[places]
        members = Members.of(events.columns, events.cluster[some], some, names)
        return weigh(events.columns, members, some, trust[places], how)

    return weighing


def _maker(events: _Events, judged: _Judged, weights: np.ndarray) -> _Maker:
    """Return what makes items of events."""
    columns, standing, labels = events.columns, judged.standing, judged.labels
    by_event = _by_event(len(events.outcome), standing, labels, judged.chosen, weights)
    judges = judges_of(columns, standing, labels, list(events.intake.raters))
    return _Maker(events.intake, columns, *by_event, events.cluster, judges)


def _report(events: _Events, judged: _Judged, split: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the figures of a report: personal data, clusters, splits, raters and conflicts."""
    raters = events.columns.rater
    return {
        "personal_data": dict(sorted(events.intake.personal.items())),
        "clusters": _clusters(events.touched),
        "sides": {name: _side(part, events.cluster, raters) for name, part in split.items()},
        "reliability": judged.reliability,
        "conflicts": conflicts(judged.labels),
    }


def lines(prepared: Prepared) -> list[str]:
    """What becomes of every event, a line each: the sides first, then what was set aside, most events first."""
    told = f"events: {sum(prepared.outcomes.values()):,}, each with one outcome"
    return [told, *(f"  {n:>7,} {what}" for what, n in table(prepared))]


def table(prepared: Prepared) -> list[tuple[str, int]]:
    """Outcomes in the order in which they are shown."""
    rest = [name for name in prepared.outcomes if name not in SIDES]
    rest.sort(key=lambda name: (-prepared.outcomes[name], name))
    return [(name, prepared.outcomes[name]) for name in (*SIDES, *rest) if name in prepared.outcomes]


def _weights(found: Learning, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each training judgement its weight for the objective that learns from it, and whether one does."""
    weights, used = np.zeros(n), np.zeros(n, dtype=bool)
    for part in found.parts:
        weights[part.places], used[part.places] = part.weights, True
    return weights, used


def _phases(found: Learning, made: _Maker, chosen: np.ndarray, outcome: np.ndarray) -> tuple[Phase, ...]:
    if found.objective is None:
        return ()
    parts = [(part.objective, chosen[part.places]) for part in found.parts]
    train = _CODES[SIDES[TRAIN]]
    return tuple(Phase(name, made.items(events[outcome[events] == train])) for name, events in parts)


def _asked(kept: tuple[Any, ...]) -> str:
    """The prompt of what the table keeps, as the cluster index was asked for it."""
    return prompt_text(kept[2])


def _named(places: Sequence[str], otherwise: str) -> Callable[[int], str]:
    return lambda i: places[i] if i < len(places) else f"{otherwise} {i + 1}"


def _placed(
    columns: Columns, touched: Touched, index: ClusterIndex, how: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Side and cluster of each event; one that asks for nothing has no cluster."""
    asking = np.flatnonzero(columns.slot >= 0)
    side = np.full(len(columns.sign), TRAIN, dtype=np.int8)
    side[asking] = sides(touched, columns.held[asking], index, tune=how.tune, test=how.test)
    cluster = np.full(len(columns.sign), -1, dtype=np.int64)
    cluster[asking] = touched.first
    return side, cluster


def _outcomes(columns: Columns, side: np.ndarray) -> np.ndarray:
    """The outcome of each event before conflicts: its side, or why it is on none."""
    found = side.copy()
    found[side == BRIDGES] = _CODES[BRIDGED]
    found[side == TESTED] = _CODES[NEAR_TEST]
    _last_words(found, columns, np.arange(len(side)), columns.answer, columns.said)
    # An edit and a preference may speak of one pair of answers, and of that too a rater has one opinion.
    left = np.flatnonzero((found < len(SIDES)) & (columns.slot >= 0) & (columns.kind < objectives.PAIRS))
    pair = columns.item[left]
    _last_words(found, columns, left, pair, pair ^ (columns.sign[left] > 0).astype(np.uint64))
    found[columns.slot < 0] = _CODES[NOTHING]
    return found


def _last_words(
    outcome: np.ndarray, columns: Columns, events: np.ndarray, what: np.ndarray, said: np.ndarray
) -> None:
    """Mark, in place, which of these events are not the last word of their rater."""
    # A test event of another source never stands for, or against, one that may be trained on.
    apart = columns.held[events].astype(np.uint64) << np.uint64(63)
    word = weights.last_words(columns.rater[events], what ^ apart, said ^ apart, columns.time[events])
    outcome[events[word == weights.DUPLICATE]] = _CODES[DUPLICATE]
    outcome[events[word == weights.OVERRULED]] = _CODES[OVERRULED]


def _counted(outcome: np.ndarray, *others: Mapping[str, int]) -> dict[str, int]:
    """How many events have each outcome, those that came no further included."""
    counts = Counter({name: int((outcome == code).sum()) for code, name in enumerate(OUTCOMES)})
    for other in others:
        counts.update(other)
    return {name: n for name, n in counts.items() if n}


def _by_event(
    n: int, standing: np.ndarray, labels: Labels, chosen: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and agreement of each event as an item: a training one weighs as all that it stands for, the others 1."""
    each = np.zeros(n)
    each[chosen] = weights
    weight = np.ones(n)
    summed = np.bincount(standing[labels.of], weights=each[standing], minlength=n)
    weight[chosen] = summed[chosen]
    agreement = np.ones(n)
    agreement[standing] = labels.agreement
    return weight, agreement


@dataclass(frozen=True)
class _Maker:
    """Makes items of what the table keeps, when they are asked for."""

    intake: Intake
    columns: Columns
    weight: np.ndarray
    agreement: np.ndarray
    cluster: np.ndarray
    judges: Mapping[int, tuple[str, ...]]

    def items(self, events: np.ndarray) -> Sequence[Item]:
        """Items of these events: a list when they are few, else a view that reads when it is asked."""
        return self.intake.table.column(array("Q", self.columns.slot[events].tolist()), self._item)

    def ids(self, events: np.ndarray) -> Sequence[str]:
        """Ids of these events."""
        return self.intake.table.column(array("Q", self.columns.slot[events].tolist()), lambda kept: kept[1])

    def _item(self, kept: tuple[Any, ...]) -> Item:
        number, event, prompt, wanted, unwanted, rating, edit, rater, group, tags = kept
        judges = self.judges.get(number, ())
        return Item(
            *(event, prompt, wanted, unwanted, rating),
            weight=float(self.weight[number]),
            agreement=float(self.agreement[number]),
            edit=edit,
            rater="" if judges else rater,
            group=group,
            tags=tags,
            cluster=int(self.cluster[number]),
            judges=judges,
        )


def _clusters(touched: Touched) -> dict[str, Any]:
    _, counts = np.unique(touched.first, return_counts=True)
    n = len(touched.starts)
    largest = float(counts.max() / n) if n else 0.0
    return {"prompts": n, "clusters": len(np.unique(touched.clusters)), "largest": largest}


def _side(events: np.ndarray, clusters: np.ndarray, raters: np.ndarray) -> dict[str, int]:
    named = raters[events]
    return {
        "items": len(events),
        "clusters": len(np.unique(clusters[events])),
        "raters": len(np.unique(named[named >= 0])),
    }
