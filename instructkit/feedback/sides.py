"""Clusters of prompts, and the side of each event: train, tune or test, for ever."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructkit.feedback.items import SIDES

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
