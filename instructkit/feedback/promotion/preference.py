"""
How far a model leans to what users wanted, and how much further an update does. Pure.

A rated answer stands alone. Were its leaning `rating * log-probability`, an update that makes every answer less likely would gain
wherever bad ratings prevail, having learned nothing. So a rated answer is held against the middle of good and bad ones, which
a change of all alike moves along with them; what is left is half the distance between the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instructkit.evaluate.results import Feedback

FEWEST_OF_A_SIGN = 5  # rated answers of each sign, from where on a middle between the two is believed


def of_ratings(ratings: Sequence[float], logprobs: Sequence[float]) -> np.ndarray:
    """
    The leaning of rated answers: `rating * (logprob - middle)`, `middle` half of the mean over good and the mean over bad ones.

    Means are weighted by `|rating|`. With fewer than `FEWEST_OF_A_SIGN` of either sign the middle is 0.

    Args:
        ratings: from -1 to 1, never 0.
        logprobs: of the rated answers, nats per token.
    """
    r, x = np.asarray(ratings, dtype=np.float64), np.asarray(logprobs, dtype=np.float64)
    return r * (x - (_middle(r, x) or 0.0))


def met(ratings: Sequence[float], logprobs: Sequence[float], usual: float) -> list[bool]:
    """
    Whether each rated answer lies on its side: a good one above the middle of good and bad ones, a bad one not.

    A change of all alike turns none of them round. With fewer than `FEWEST_OF_A_SIGN` of either sign `usual` takes the place
    of the middle.

    Args:
        ratings, logprobs: as for `of_ratings`.
        usual: the parent's median of `logprobs`, nats per token.
    """
    r, x = np.asarray(ratings, dtype=np.float64), np.asarray(logprobs, dtype=np.float64)
    middle = _middle(r, x)
    return ((x > (usual if middle is None else middle)) == (r > 0)).tolist()


def telling(measured: Feedback) -> np.ndarray:
    """
    The places of the items that can tell anything: bad ratings without enough good ones cannot.

    Nothing sets them apart from answers as such, so that a change of all answers alike would count as theirs.
    """
    ratings = _ratings(measured)
    return np.arange(len(ratings)) if _balanced(ratings[ratings != 0]) else np.flatnonzero(ratings >= 0)


def gains(before: Feedback, after: Feedback) -> tuple[np.ndarray, np.ndarray]:
    """
    What the update gained on each item that can tell a gain, nats per token, and which items these are.

    Of a pair it is the change of its leaning. Of rated answers both signs together weigh as much as all of them, each sign half:
    with `d` the change of leaning over `|rating|`, `n` rated answers, `m` their mean `|rating|` and `w` its share in its sign,

        gain = m (g + n w (d - mean of its sign) / 2),  g: the mean of both signs' means

    so that their mean is that of the change of leaning, m g, and their spread that of its two means, however few one sign has.
    Good ratings alone are demonstrations.

    Returns:
        The gains, and the places of their items, see `telling`.

    Raises:
        ValueError: when the two have different numbers of items.
    """
    if len(before.leaning) != len(after.leaning):
        raise ValueError(
            f"paired figures of different lengths: {len(before.leaning)} and {len(after.leaning)}"
        )
    moved = np.asarray(after.leaning, dtype=np.float64) - np.asarray(before.leaning, dtype=np.float64)
    ratings, places = _ratings(after), telling(after)
    rated = ratings != 0
    if not _balanced(ratings[rated]):
        return moved[places], places
    size = np.abs(ratings)
    means = {}
    for sign in (1, -1):
        of_sign = ratings * sign > 0
        means[sign] = float(moved[of_sign].sum() / size[of_sign].sum())
    gain, usual = (means[1] + means[-1]) / 2, float(size[rated].mean())
    for sign, mean in means.items():
        of_sign = ratings * sign > 0
        share = size[of_sign] / size[of_sign].sum()
        found = len(ratings[rated]) * share * (moved[of_sign] / size[of_sign] - mean) / 2
        count = int(of_sign.sum())
        moved[of_sign] = usual * (gain + np.sqrt(count / (count - 1)) * found)
    return moved, places


def _ratings(measured: Feedback) -> np.ndarray:
    return np.asarray(measured.ratings or [0.0] * len(measured.leaning), dtype=np.float64)


def _middle(r: np.ndarray, x: np.ndarray) -> float | None:
    """Half of the mean over good and the mean over bad ones; None where there are too few of either."""
    if not _balanced(r):
        return None
    return sum(float(np.average(x[r * sign > 0], weights=np.abs(r[r * sign > 0]))) for sign in (1, -1)) / 2


def _balanced(ratings: np.ndarray) -> bool:
    return min(int((ratings > 0).sum()), int((ratings < 0).sum())) >= FEWEST_OF_A_SIGN
