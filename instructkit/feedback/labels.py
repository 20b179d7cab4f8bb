"""What the judges of an answer say together: how far each is trusted, and one soft label where they do not agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructkit.feedback import merging
from instructkit.feedback import weights as maths
from instructkit.feedback.intake import Columns


@dataclass(frozen=True)
class Labels:
    """
    What the standing events of each item say together; one entry a standing event.

    Attributes:
        agreement: of the item.
        stands: whether the event is an item: on its own, or for all that judged the answer both ways.
        of: the standing event that it is part of.
        disputed: whether the item is set aside.
    """

    agreement: np.ndarray
    stands: np.ndarray
    of: np.ndarray
    disputed: np.ndarray


def trusted(
    columns: Columns, train: np.ndarray, standing: np.ndarray, *, weighted: bool
) -> tuple[np.ndarray, dict[str, Any] | None]:
    """
    Reliability of who judged, one a standing event, and what the report tells of it.

    Args:
        train: the events that it is learned from: training events alone, so that nothing of the others reaches a weight.
        standing: the events that are judged with it.
        weighted: False trusts everyone alike.
    """
    if not weighted:
        return np.ones(len(standing)), None
    scores, counts = maths.agreements(columns.sign[train], columns.item[train], columns.rater[train])
    trust = maths.reliability(scores, counts, columns.rater[standing])
    shared = float(counts.sum())
    return trust, {
        "raters": int((counts > 0).sum()),
        "judgements": int(shared),
        "mean": float(scores.sum() / shared) if shared else None,
        "prior": maths.PRIOR_JUDGEMENTS,
        "lowest": float(trust.min()) if len(trust) else None,
        "highest": float(trust.max()) if len(trust) else None,
    }


def labels_of(columns: Columns, standing: np.ndarray, trust: np.ndarray, least: float) -> Labels:
    """
    Soft labels of answers that were judged both ways; a faint rating is as little against a clear one as it says.

    Args:
        standing: the events that are judged.
        trust: reliability of who judged, one a standing event.
        least: agreement below which an answer is set aside.
    """
    _, items = np.unique(columns.item[standing], return_inverse=True)
    signs = columns.sign[standing]
    both = merging.contested(items, signs)
    sign, agreement = maths.soft_labels(signs, items, trust * columns.size[standing])
    agreement = np.where(both, agreement, 1.0)
    # The first of those who are right stands for all: later events do not change which one it is, only the weights may.
    right = np.flatnonzero(signs == sign[items])
    stands_for = np.zeros(len(agreement), dtype=np.int64)
    stands_for[items[right][::-1]] = right[::-1]
    own = np.arange(len(standing))
    of = np.where(both[items], stands_for[items], own)
    return Labels(agreement[items], of == own, of, both[items] & (agreement[items] < least - 1e-12))


def conflicts(labels: Labels) -> dict[str, Any]:
    """What the report tells of answers that were judged both ways."""
    answers = labels.stands & (labels.agreement < 1)
    kept = answers & ~labels.disputed
    return {
        "answers": int(answers.sum()),
        "set_aside": int((answers & labels.disputed).sum()),
        "agreement": float(labels.agreement[kept].mean()) if kept.any() else None,
    }


def judges_of(
    columns: Columns, standing: np.ndarray, labels: Labels, raters: Sequence[str]
) -> dict[int, tuple[str, ...]]:
    """Who judged each answer that was judged both ways, by the event that stands for it."""
    found: dict[int, list[str]] = {}
    for place in np.flatnonzero(labels.agreement < 1):
        judges = found.setdefault(int(standing[labels.of[place]]), [])
        rater = columns.rater[standing[place]]
        judges += [raters[rater]] if rater >= 0 else []
    return {event: tuple(judges) for event, judges in found.items()}
