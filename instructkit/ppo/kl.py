"""KL to the reference, and the reward of each token."""

from __future__ import annotations

import torch
from torch import Tensor

from instructkit.ppo.masks import last_action_index

# exp of anything larger says nothing but overflows
LOG_RATIO_LIMIT = 20.0


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """`d = log pi - log ref` in nats: unbiased for KL(pi || ref), the only estimator right inside a reward (K-2)."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """`d^2 / 2` in nats: as a loss its gradient is that of KL(pi || ref) on-policy."""
    return k1(logprobs, ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """`exp(-d) - 1 + d` in nats: never negative, of low variance; a metric (Schulman, "Approximating KL divergence")."""
    d = k1(logprobs, ref_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(-d) + d


def token_rewards(
    scores: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    beta: float,
    per_token: Tensor | None = None,
) -> Tensor:
    """
    `r_t = -beta (log pi_old - log ref) + [t is the last action] score + given_t`.

    Args:
        scores: score of each response, `(B,)`.
        old_logprobs: of the sampled tokens under the sampling policy, `(B, T)`, nats.
        ref_logprobs: the same under the reference.
        mask: True for actions.
        beta: KL coefficient, score units per nat.
        per_token: rewards that a function gave to single tokens, `(B, T)`, in units of the score.

    Returns:
        `(B, T)`, zero outside the mask.

    Raises:
        ValueError: when a response has no action that could carry its score.

    Source: Stiennon et al. 2020 (2009.01325), section 3.4; Ouyang et al. 2022 (2203.02155), equation 2.
    """
    last = last_action_index(mask)
    if (last < 0).any():
        raise ValueError("a response without any action cannot carry a score")
    rewards = -beta * k1(old_logprobs, ref_logprobs)
    rewards = torch.where(mask, rewards if per_token is None else rewards + per_token, 0.0)
    return rewards.scatter_add(1, last.unsqueeze(1), scores.to(rewards.dtype).unsqueeze(1))


def next_beta(
    beta: float, observed_kl: float, *, target_kl_per_sequence: float, episodes: int, horizon: int = 10_000
) -> float:
    """
    Adaptive coefficient: `beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)`.

    Args:
        observed_kl: mean over responses of the KL summed over tokens, nats.
        target_kl_per_sequence: the same unit: nats a response, not a token.
        episodes: responses in this rollout, over all processes.

    Source: Ziegler et al. 2019 (1909.08593), section 2.2.
    """
    error = min(max(observed_kl / target_kl_per_sequence - 1, -0.2), 0.2)
    return beta * (1 + error * episodes / horizon)
