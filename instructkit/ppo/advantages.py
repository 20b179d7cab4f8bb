"""Generalised advantage estimation over the actions of a response."""

from __future__ import annotations

import torch
from torch import Tensor

from instructkit.ppo.masks import Reduce, alone, moments


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float | Tensor
) -> tuple[Tensor, Tensor]:
    """
    Advantages and value targets, carried over positions that are no actions.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   R_t = A_t + V_t

    Args:
        rewards: reward of each action, `(B, T)`, in units of the score.
        values: value before each action, `(B, T)`, same unit.
        mask: True for actions; padding and tool output are jumped over.
        gamma: discount per action.
        lam: 0 gives the one-step error, 1 the reward-to-go minus the value; one for all, or one a response, `(B,)`.

    Returns:
        Advantages and returns, `(B, T)` float32 (float64 where the values are), zero outside the mask; not whitened.

    Source: Schulman et al. 2016 (1506.02438), equation 16.
    """
    precise = torch.promote_types(values.dtype, torch.float32)
    rewards, values = rewards.to(precise), values.to(precise)
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
def advantages_and_returns(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    lam: float | Tensor,
    lam_value: float | None,
) -> tuple[Tensor, Tensor]:
    """
    Advantages for the policy with one lambda, value targets with another; shapes and units as in `gae`.

    Args:
        lam_value: None takes `lam` for both. 1 gives the critic the reward-to-go itself, which has no bias.

    Source: VC-PPO, Yuan et al. 2025 (2503.01491), section 3 ("decoupled GAE").
    """
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    if lam_value is not None:
        _, returns = gae(rewards, values, mask, gamma=gamma, lam=lam_value)
    return advantages, returns


@torch.no_grad()
def length_adaptive_lam(mask: Tensor, *, alpha: float) -> Tensor:
    """
    `1 - 1 / (alpha l)` for a response of `l` actions, not below 0: `(B, T)` to `(B,)`.

    A terminal score reaches the first of 400 actions by 0.95^400, which is nothing; so long responses get a larger lambda.

    Source: VAPO, Yue et al. 2025 (2504.05118), section 4.1, alpha 0.05.
    """
    return (1 - 1 / (alpha * mask.sum(1).clamp(min=1))).clamp(min=0.0)


@torch.no_grad()
def explained_variance(returns: Tensor, values: Tensor, mask: Tensor, reduce: Reduce = alone) -> Tensor:
    """`1 - Var(R - V) / Var(R)` over True positions: 1 is perfect, below 0 worse than a constant; NaN for constant R."""
    return 1 - moments(returns - values, mask, reduce)[1] / moments(returns, mask, reduce)[1]
