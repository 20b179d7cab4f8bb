"""Weights as how often an item is drawn, and soft labels as how often it is turned round: for trainers that weigh no rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instructkit.errors import InputError

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
