"""Generalised advantage estimation over the actions of a response."""

from __future__ import annotations

import torch
from torch import Tensor

from instructkit.ppo.masks import masked_sum


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """
    Advantages and value targets, carried over positions that are no actions.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   R_t = A_t + V_t

    Args:
        rewards: reward of each action, `(B, T)`, in units of the score.
        values: value before each action, `(B, T)`, same unit.
        mask: True for actions; padding and tool output are jumped over.
        gamma: discount per action.
        lam: 0 gives the one-step error, 1 the reward-to-go minus the value.

    Returns:
        Advantages and returns, `(B, T)` float32, zero outside the mask; not whitened.

    Source: Schulman et al. 2016 (1506.02438), equation 16.
    """
    rewards, values = rewards.float(), values.float()
    advantages = torch.zeros_like(values)
    carried = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.size(1))):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * carried
        advantages[:, t] = torch.where(here, advantage, 0.0)
        carried = torch.where(here, advantage, carried)
        next_value = torch.where(here, values[:, t], next_value)
    return advantages, torch.where(mask, advantages + values, 0.0)


@torch.no_grad()
def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """`1 - Var(R - V) / Var(R)` over True positions: 1 is perfect, below 0 worse than a constant; NaN for constant R."""
    return 1 - _variance(returns - values, mask) / _variance(returns, mask)


def _variance(x: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum().clamp(min=1)
    mean = masked_sum(x, mask) / count
    return masked_sum((x - mean).square(), mask) / count
