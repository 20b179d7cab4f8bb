"""The two clipped losses of PPO."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from instructkit.ppo.kl import LOG_RATIO_LIMIT
from instructkit.ppo.masks import masked_mean


class PolicyLoss(NamedTuple):
    """
    The loss, and over the same tokens: share clipped, approximate KL (nats), mean, variance and maximum of the ratio.

    `clamped` counts the tokens whose log-ratio met the guard of `LOG_RATIO_LIMIT` nats (L-3).
    """

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor
    ratio_mean: Tensor
    ratio_var: Tensor
    ratio_max: Tensor
    clamped: Tensor


class ValueLoss(NamedTuple):
    """The loss and the share of tokens whose clipped branch is the larger."""

    loss: Tensor
    clip_fraction: Tensor


def policy_loss(
    new_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    epsilon_low: float,
    epsilon_high: float,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> PolicyLoss:
    """
    `mean of w max(-A rho, -A clamp(rho, 1 - epsilon_low, 1 + epsilon_high))`, with `rho = exp(new - old)`.

    Args:
        new_logprobs, old_logprobs: of the sampled tokens, `(B, T)`, nats; gradient through the first.
        advantages: `(B, T)`.
        mask: True for actions.
        dual_clip: for negative advantages the loss is at most `-dual_clip * A`; None leaves it open.
        weights: `w`, `(B, T)` without gradient, of `importance_weights` or `sequence_weights`; 1 when None.
        denominator: tokens of the whole optimizer step; the mask's own count when None.

    Source: Schulman et al. 2017 (1707.06347), equation 7; dual clip: Ye et al. 2020 (1912.09729), equation 5.
    """
    log_ratio = torch.where(mask, new_logprobs - old_logprobs, 0.0)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    loss = torch.maximum(free, clipped)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    with torch.no_grad():
        fraction, approx_kl, mean = (
            masked_mean(x, mask) for x in ((clipped > free).float(), log_ratio.square() / 2, ratio)
        )
        variance = masked_mean((ratio - mean).square(), mask)
        largest = torch.where(mask, ratio, 0.0).max()
        clamped = (log_ratio.abs() > LOG_RATIO_LIMIT).sum()
    loss = loss if weights is None else loss * weights
    whole = masked_mean(loss, mask, denominator)
    return PolicyLoss(whole, fraction, approx_kl, mean, variance, largest, clamped)


@torch.no_grad()
def importance_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, *, cap: float) -> Tensor:
    """
    `min(exp(log pi_old - log pi_sampler), cap)`: `(B, T)`, for tokens that another engine has sampled.

    Belongs on the policy loss alone; what a state is worth does not depend on who acted in it last.

    Source: truncated importance sampling, Ionides 2008; as used by Yao et al. 2025 between inference and training engines.
    """
    gap = (old_logprobs - sampler_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return gap.exp().clamp(max=cap)


@torch.no_grad()
def sequence_weights(mask: Tensor, *, tokens: Tensor | float, sequences: Tensor | float) -> Tensor:
    """
    Weights that turn a mean over tokens into a mean over responses of their own token means.

    Args:
        mask: True for actions, `(B, T)`.
        tokens, sequences: how many of each the whole optimizer step holds, over all processes.

    Returns:
        `(tokens / sequences) / length` at each action, `(B, T)`; the step's sum of weights is its number of tokens.
    """
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask, tokens / sequences / lengths, 0.0)


def value_loss(
    new_values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float | None,
    weights: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> ValueLoss:
    """
    `mean of 1/2 max((V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2)`.

    Args:
        new_values, old_values, returns: `(B, T)` in units of the score; gradient through the first.
        clip: in units of the score; None gives half the mean squared error.
        weights: of `sequence_weights`; never importance weights.
        denominator: as in `policy_loss`.

    Source: Huang et al. 2024 (2403.17031), section 3.
    """
    free = (new_values - returns).square()
    near = new_values if clip is None else torch.clamp(new_values, old_values - clip, old_values + clip)
    clipped = (near - returns).square()
    loss = torch.maximum(free, clipped) / 2
    with torch.no_grad():
        fraction = masked_mean((clipped > free).float(), mask)
    loss = loss if weights is None else loss * weights
    return ValueLoss(masked_mean(loss, mask, denominator), fraction)
