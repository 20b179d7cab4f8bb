"""What becomes of a raw score before it is a reward: scaled, clipped, charged for length and for a missing end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RunningMoments:
    """
    Mean and variance of all scores seen so far, merged batch by batch.

    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def update(
        self, scores: Tensor, reduce: Callable[[Tensor], Tensor] = lambda statistics: statistics
    ) -> None:
        """
        Take in the scores of one rollout.

        Args:
            scores: `(B,)`, of this process.
            reduce: sums `[n, sum]`, then `[sum of squared deviations]`, over processes.
        """
        scores = scores.double()
        count, total = reduce(
            torch.stack([torch.tensor(float(len(scores)), device=scores.device).double(), scores.sum()])
        )
        mean = total / count
        squares = float(reduce((scores - mean).square().sum().unsqueeze(0))[0])
        count, mean = float(count), float(mean)
        gap, together = mean - self.mean, self.count + count
        self.squares += squares + gap * gap * self.count * count / together
        self.mean += gap * count / together
        self.count = together

    @property
    def std(self) -> float:
        """Population standard deviation, in units of the raw score; 0 before anything was seen."""
        return (self.squares / self.count) ** 0.5 if self.count else 0.0


def normalise(scores: Tensor, moments: RunningMoments, *, centre: bool, epsilon: float = 1e-8) -> Tensor:
    """`s / std`, or `(s - mean) / std` when centred: `(B,)`; unchanged while all scores seen are equal (S-6)."""
    if moments.std <= epsilon:
        return scores - moments.mean if centre else scores
    return (scores - (moments.mean if centre else 0.0)) / moments.std


def length_penalty(lengths: Tensor, *, per_token: float) -> Tensor:
    """What a response pays for its length: `per_token` units of the used score a token, `(B,)` (3.10)."""
    return lengths * per_token


def overlong_penalty(lengths: Tensor, *, longest: int, buffer: int, penalty: float) -> Tensor:
    """
    What a response pays that comes near the longest one: nothing before the last `buffer` tokens, then in proportion (S-5).

    `penalty * clamp(|y| - (longest - buffer), 0, buffer) / buffer`.

    Args:
        lengths: tokens of each response, `(B,)`.
        longest: tokens at which a response is cut off.
        buffer: tokens within which the penalty grows, 1 to `longest`.
        penalty: of a response that fills it, in units of the used score.

    Source: Yu et al. 2025 (2503.14476), "DAPO", equation 13.
    """
    return penalty * (lengths - (longest - buffer)).clamp(0, buffer) / buffer


def penalise_missing_eos(scores: Tensor, finished: Tensor, *, penalty: float, mode: str) -> Tensor:
    """
    Change the score of responses that were cut off (S-5).

    Args:
        scores: `(B,)`.
        finished: True where a response ended with a stop token, `(B,)`.
        penalty: in units of the used score; for `scale` a factor in [0, 1].
        mode: `subtract` the penalty, `replace` the score by its negative, `scale` positive scores, or `none`; with
            `mask` the score stays as well, and the policy does not learn from the response, and `overlong` charges by length.

    Raises:
        ValueError: for another mode.
    """
    changed = {
        "none": scores,
        "mask": scores,
        "overlong": scores,  # see `overlong_penalty`
        "subtract": scores - penalty,
        "replace": torch.full_like(scores, -penalty),
        # scaling a negative score would raise it
        "scale": torch.where(scores > 0, scores * penalty, scores),
    }
    if mode not in changed:
        raise ValueError(f"mode is {mode!r}; one of {', '.join(changed)}")
    return torch.where(finished, scores, changed[mode])


def weighted(per_function: Tensor, weights: Tensor) -> Tensor:
    """
    Weighted sum of the functions' scores, `(B, F)` to `(B,)`; a function that returned None for a response plays no part.

    Raises:
        ValueError: when a response got no score from any function, or one that is not finite.
    """
    missing = per_function.isnan().all(dim=1)
    if missing.any():
        raise ValueError(
            f"{int(missing.sum())} of {len(missing)} responses got no score: every reward function returned None for them"
        )
    total = (per_function * weights.to(per_function.device)).nansum(dim=1)
    if not total.isfinite().all():
        raise ValueError("a reward function returned a score that is not finite")
    return total
