"""Masks and masked statistics. True counts; shapes are `(B, T)` unless said otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def response_mask_from_lengths(lengths: Tensor, total: int) -> Tensor:
    """True for the first `lengths[b]` of `total` positions: `(B,)` to `(B, total)` (specification R-2)."""
    return torch.arange(total, device=lengths.device) < lengths.unsqueeze(1)


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions of real tokens, `clamp(cumsum(mask) - 1, min=0)`, whatever padding stands before them (R-1)."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def last_action_index(mask: Tensor) -> Tensor:
    """Index `(B,)` of the last True of each row; -1 for a row without any."""
    steps = torch.arange(mask.size(1), device=mask.device)
    return torch.where(mask, steps, -1).amax(dim=1)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over True positions; what stands behind the mask, NaN included, plays no part."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()


def masked_mean(values: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """
    Mean over True positions, or their sum over a given denominator.

    Args:
        values: `(B, T)`.
        mask: bool `(B, T)`.
        denominator: tokens of the whole optimizer step when the mask covers only a micro-batch (L-5).
    """
    count = mask.sum() if denominator is None else torch.as_tensor(denominator, device=values.device)
    return masked_sum(values, mask) / count.clamp(min=1)


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


Reduce = Callable[[Tensor], Tensor]  # sums a tensor of statistics over processes


def alone(statistics: Tensor) -> Tensor:
    """The sum over one process."""
    return statistics


def moments(values: Tensor, mask: Tensor, reduce: Reduce = alone) -> tuple[Tensor, Tensor]:
    """
    Mean and population variance over True positions of all processes, at least in float32, in two passes.

    Args:
        reduce: sums the statistics `[n, sum]`, then `[sum of squared deviations]`, over processes.
    """
    values = torch.where(mask, _precise(values), 0.0)
    count, total = reduce(torch.stack([mask.sum().to(values.dtype), values.sum()]))
    mean = total / count.clamp(min=1)
    squares = reduce(torch.where(mask, values - mean, 0.0).square().sum().unsqueeze(0))[0]
    return mean, squares / count.clamp(min=1)


def whiten(
    values: Tensor, mask: Tensor, *, keep_mean: bool = False, reduce: Reduce = alone, epsilon: float = 1e-8
) -> Tensor:
    """
    `(x - mean) / (std + epsilon)` over True positions of all processes; zero elsewhere (A-3).

    Population variance, at least in float32, so that one token gives a finite 0 and not NaN.

    Args:
        keep_mean: change the scale alone, `(x - mean) / (std + epsilon) + mean` (S-7).
        reduce: as in `moments`.

    Source: Huang et al. 2024 (2403.17031), section 3; Xu et al. 2024 (2404.10719), section 5.
    """
    mean, variance = moments(values, mask, reduce)
    white = (_precise(values) - mean) / (variance.sqrt() + epsilon)
    return torch.where(mask, white + mean if keep_mean else white, 0.0)
