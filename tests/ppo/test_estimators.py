"""The estimators of KL against enumeration: their means, and which gradient each gives where (O-10, K-2)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from instructkit.ppo import kl

OUTCOMES = 6
Estimator = Callable[[Tensor, Tensor], Tensor]


def random_logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def policy_and_reference(seed: int, distance: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits with a gradient, and the log-probabilities of a reference that lies `distance` away from them."""
    reference = random_logits(seed, OUTCOMES)
    logits = reference + distance * random_logits(seed + 100, OUTCOMES)
    return logits.requires_grad_(), reference.log_softmax(-1)


def gradient(of: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(of, at, retain_graph=True)[0]


def exact_gradients(logits: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Of KL(pi || ref) and of KL(ref || pi), by torch.distributions and autograd: nothing of ours takes part."""
    policy, other = (torch.distributions.Categorical(logits=x) for x in (logits, reference))
    return (
        gradient(torch.distributions.kl_divergence(policy, other), logits),
        gradient(torch.distributions.kl_divergence(other, policy), logits),
    )


def as_a_reward(estimator: Estimator, logits: Tensor, reference: Tensor) -> Tensor:
    """Policy gradient of a penalty, `sum_a pi_a  grad log pi_a  penalty_a`, the penalty itself a constant."""
    logprobs = logits.log_softmax(-1)
    penalty = estimator(logprobs, reference).detach()
    return gradient((logprobs.exp().detach() * logprobs * penalty).sum(), logits)


def as_a_loss(estimator: Estimator, logits: Tensor, reference: Tensor) -> Tensor:
    """Expected gradient of a loss term, `sum_a pi_a  grad penalty_a`, the actions drawn from the policy."""
    logprobs = logits.log_softmax(-1)
    return gradient((logprobs.exp().detach() * estimator(logprobs, reference)).sum(), logits)


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("seed", range(4))
def test_sums_over_sampled_tokens_average_to_the_kl_of_whole_responses(seed: int) -> None:
    """Two tokens, the second law given the first: by the chain rule both estimators sum to the KL of all 36 pairs."""
    laws = [random_logits(seed + offset, OUTCOMES + 1, OUTCOMES).log_softmax(-1) for offset in (0, 50)]
    policy, reference = (law[0][:, None] + law[1:] for law in laws)
    exact = (policy.exp() * (policy - reference)).sum()
    samples = 100_000
    draws = torch.multinomial(
        policy.exp().flatten(), samples, replacement=True, generator=torch.Generator().manual_seed(seed)
    )
    first, second = draws // OUTCOMES, draws % OUTCOMES
    logprobs, ref_logprobs = (torch.stack([law[0][first], law[1 + first, second]], 1) for law in laws)
    for estimator in (kl.k1, kl.k3):
        found = estimator(logprobs, ref_logprobs).sum(1)
        assert abs(found.mean() - exact) < 3 * found.std() / samples**0.5
    assert (kl.k3(logprobs, ref_logprobs) >= 0).all()
    assert (kl.k1(logprobs, ref_logprobs) < 0).any()


@pytest.mark.parametrize("seed", range(3))
def test_k1_is_exact_in_the_reward_and_teaches_nothing_as_a_loss(seed: int) -> None:
    logits, reference = policy_and_reference(seed)
    forward, _ = exact_gradients(logits, reference)
    torch.testing.assert_close(as_a_reward(kl.k1, logits, reference), forward, atol=1e-12, rtol=0)
    assert forward.norm() > 0.01
    assert as_a_loss(kl.k1, logits, reference).norm() < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_k2_is_exact_as_a_loss_and_wrong_in_the_reward(seed: int) -> None:
    logits, reference = policy_and_reference(seed, distance=0.1)
    forward, _ = exact_gradients(logits, reference)
    torch.testing.assert_close(as_a_loss(kl.k2, logits, reference), forward, atol=1e-12, rtol=0)
    assert relative_error(as_a_reward(kl.k2, logits, reference), forward) > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_k3_gives_the_other_direction_as_a_loss_and_the_difference_in_the_reward(seed: int) -> None:
    logits, reference = policy_and_reference(seed)
    forward, backward = exact_gradients(logits, reference)
    torch.testing.assert_close(as_a_loss(kl.k3, logits, reference), backward, atol=1e-12, rtol=0)
    in_reward = as_a_reward(kl.k3, logits, reference)
    torch.testing.assert_close(in_reward, forward - backward, atol=1e-12, rtol=0)
    assert relative_error(backward, forward) > 0.1  # the two directions are not one here


@pytest.mark.parametrize("seed", range(3))
def test_k3_in_the_reward_vanishes_beside_the_true_gradient_near_the_reference(seed: int) -> None:
    shares = []
    for distance in (1.0, 0.1, 0.01):
        logits, reference = policy_and_reference(seed, distance)
        forward, _ = exact_gradients(logits, reference)
        shares.append(float(as_a_reward(kl.k3, logits, reference).norm() / forward.norm()))
    # the share is of first order in the distance, the true gradient too: ten times nearer, ten times too weak
    assert shares[1] < shares[0] / 2
    assert shares[2] == pytest.approx(shares[1] / 10, rel=0.3)
    assert shares[2] < 0.02
