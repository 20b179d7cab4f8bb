"""The tensor maths of PPO against worked figures, brute force and properties."""

from __future__ import annotations

import math

import pytest
import torch

from instructkit.ppo import kl, losses, masks, metrics, scores
from instructkit.ppo.advantages import (
    advantages_and_returns,
    explained_variance,
    gae,
    length_adaptive_lam,
)

T = torch.tensor


def random_case(seed: int, *, gaps: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(3, 7, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(3, 7, generator=g) > 0.3 if gaps else torch.arange(7) < T([[7], [4], [1]])
    mask[:, 0] = True
    return rewards, values, mask


def brute_force(rewards, values, mask, gamma: float, lam: float) -> torch.Tensor:
    """A_t = sum over later actions k of (gamma lam)^k delta, the actions taken alone, gaps left out."""
    out = torch.zeros_like(rewards)
    for b in range(rewards.size(0)):
        steps = [t for t in range(rewards.size(1)) if mask[b, t]]
        r, v = [float(rewards[b, t]) for t in steps], [float(values[b, t]) for t in steps] + [0.0]
        deltas = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(steps))]
        for i, t in enumerate(steps):
            out[b, t] = sum((gamma * lam) ** k * d for k, d in enumerate(deltas[i:]))
    return out


@pytest.mark.parametrize("lam", [0.0, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_gae_equals_the_sum_over_later_actions(seed: int, gamma: float, lam: float) -> None:
    rewards, values, mask = random_case(seed)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    wanted = brute_force(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantages, wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(returns[mask], (wanted + values)[mask], atol=1e-12, rtol=0)


def test_gae_by_hand() -> None:
    """Three actions, lambda 0.95, V = 0, score 1 at the end: 0.95^2 = 0.9025, 0.95, 1 (specification S-8)."""
    advantages, _ = gae(
        T([[0.0, 0, 1, 0]]), torch.zeros(1, 4), T([[True, True, True, False]]), gamma=1, lam=0.95
    )
    torch.testing.assert_close(advantages, T([[0.9025, 0.95, 1.0, 0.0]]))


def test_a_perfect_constant_critic_leaves_no_advantage() -> None:
    rewards, values, mask = torch.zeros(2, 5), torch.full((2, 5), 3.0), torch.arange(5) < T([[5], [2]])
    rewards[0, 4] = rewards[1, 1] = 3.0
    assert gae(rewards, values, mask, gamma=1, lam=0.95)[0].abs().max() == 0


def test_what_lies_behind_the_mask_changes_nothing() -> None:
    rewards, values, mask = random_case(1)
    dirty = torch.where(mask, 0.0, float("nan"))
    clean = gae(rewards, values, mask, gamma=1, lam=0.95)
    noisy = gae(rewards + dirty, values + dirty, mask, gamma=1, lam=0.95)
    torch.testing.assert_close(clean[0], noisy[0], atol=0, rtol=0)
    torch.testing.assert_close(clean[1], noisy[1], atol=0, rtol=0)
    torch.testing.assert_close(masks.whiten(values, mask), masks.whiten(values + dirty, mask), atol=0, rtol=0)
    assert torch.isfinite(masks.masked_mean(values + dirty, mask))


def test_whitening_has_mean_0_and_variance_1_over_actions_alone() -> None:
    _, values, mask = random_case(2)
    white = masks.whiten(values, mask)
    assert abs(white[mask].mean()) < 1e-6
    assert abs(white[mask].var(correction=0) - 1) < 1e-6
    assert (white[~mask] == 0).all()
    torch.testing.assert_close(masks.whiten(3 * values + 5, mask), white, atol=1e-5, rtol=0)


def test_one_token_is_whitened_to_a_finite_zero() -> None:
    assert masks.whiten(T([[7.0]]), T([[True]])).item() == 0.0


def test_whitening_over_two_processes_equals_whitening_at_once() -> None:
    _, values, mask = random_case(3)
    whole = masks.whiten(values, mask)
    parts = [(values[:1], mask[:1]), (values[1:], mask[1:])]
    count = sum(m.sum().double() for _, m in parts)
    total = sum((v * m).sum() for v, m in parts)
    squares = sum((((v - total / count) * m) ** 2).sum() for v, m in parts)
    answers = iter([torch.stack([count, total]), squares.unsqueeze(0)])
    part = masks.whiten(*parts[1], reduce=lambda statistics: next(answers))
    torch.testing.assert_close(part, whole[1:], atol=1e-6, rtol=0)


def test_masks_and_positions() -> None:
    assert masks.response_mask_from_lengths(T([0, 2]), 3).tolist() == [[False] * 3, [True, True, False]]
    assert masks.position_ids(T([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert masks.last_action_index(T([[True, False, True], [False, False, False]])).tolist() == [2, -1]


def test_the_score_lands_on_the_last_action_and_kl_on_all() -> None:
    """beta 0.5, log ratios 1 and -2: rewards -0.5 and 1 + score 3 = 4; padding gets nothing."""
    rewards = kl.token_rewards(
        T([3.0]), T([[-1.0, -3.0, 9.0]]), T([[-2.0, -1.0, 0.0]]), T([[True, True, False]]), beta=0.5
    )
    torch.testing.assert_close(rewards, T([[-0.5, 4.0, 0.0]]))
    with pytest.raises(ValueError, match="without any action"):
        kl.token_rewards(
            T([1.0]), torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool), beta=1
        )


def test_kl_estimators_average_to_the_enumerated_kl() -> None:
    p, q = T([0.5, 0.3, 0.2], dtype=torch.float64), T([0.2, 0.2, 0.6], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * kl.k1(p.log(), q.log())).sum(), exact)
    torch.testing.assert_close((p * kl.k3(p.log(), q.log())).sum(), exact)
    assert (kl.k3(p.log(), q.log()) >= 0).all()
    torch.testing.assert_close(
        kl.k2(p.log(), q.log())[0], math.log(2.5) ** 2 / 2 * torch.ones((), dtype=torch.float64)
    )
    assert torch.isfinite(kl.k3(T([-1000.0]), T([0.0]))).all()


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("subtract", [2.0, 1.5, -1.5]),
        ("replace", [2.0, -0.5, -0.5]),
        ("scale", [2.0, 1.0, -1.0]),
        ("none", [2.0, 2.0, -1.0]),
        ("mask", [2.0, 2.0, -1.0]),
        ("overlong", [2.0, 2.0, -1.0]),
    ],
)
def test_missing_ends_by_hand(mode: str, wanted: list[float]) -> None:
    found = scores.penalise_missing_eos(T([2.0, 2.0, -1.0]), T([True, False, False]), penalty=0.5, mode=mode)
    assert found.tolist() == wanted


def test_an_overlong_penalty_by_hand() -> None:
    """DAPO, equation 13, with 10 tokens at most and a buffer of 4: behind the sixth a quarter of the penalty for each."""
    found = scores.overlong_penalty(torch.tensor([3, 6, 7, 9, 10]), longest=10, buffer=4, penalty=2.0)
    assert found.tolist() == [0.0, 0.0, 0.5, 1.5, 2.0]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="one of none, mask, overlong, subtract, replace, scale"):
        scores.penalise_missing_eos(T([1.0]), T([True]), penalty=1, mode="skip")


def test_adaptive_beta_by_hand() -> None:
    """Target 6: KL 12 gives error 1, clipped to 0.2: 0.1 (1 + 0.2 x 500 / 10000) = 0.101; 6.6 gives error 0.1."""
    step = {"target_kl_per_sequence": 6.0, "episodes": 500}
    assert kl.next_beta(0.1, 12.0, **step) == pytest.approx(0.101, abs=1e-12)
    assert kl.next_beta(0.1, 6.6, **step) == pytest.approx(0.1005, abs=1e-12)
    assert kl.next_beta(0.1, 0.0, **step) == pytest.approx(0.099, abs=1e-12)


@pytest.mark.parametrize(
    ("advantage", "ratio", "wanted", "clipped"),
    [
        (1.0, 1.5, -1.2, 1.0),  # gain clipped above: -1.2
        (1.0, 1.1, -1.1, 0.0),
        (1.0, 0.5, -0.5, 0.0),  # a good action made rarer is not clipped
        (-1.0, 1.5, 1.5, 0.0),  # a bad action made likelier is not clipped
        (-1.0, 0.5, 0.8, 1.0),
        (-1.0, 0.9, 0.9, 0.0),
    ],
)
def test_policy_loss_in_every_quadrant(advantage: float, ratio: float, wanted: float, clipped: float) -> None:
    new = T([[math.log(ratio)]])
    found = losses.policy_loss(
        new, torch.zeros(1, 1), T([[advantage]]), T([[True]]), epsilon_low=0.2, epsilon_high=0.2
    )
    assert found.loss.item() == pytest.approx(wanted, abs=1e-6)
    assert found.clip_fraction.item() == clipped
    assert found.ratio_mean.item() == pytest.approx(ratio, abs=1e-6)


def test_dual_clip_bounds_the_loss_of_bad_actions() -> None:
    found = losses.policy_loss(
        T([[math.log(10.0)]]),
        T([[0.0]]),
        T([[-1.0]]),
        T([[True]]),
        epsilon_low=0.2,
        epsilon_high=0.2,
        dual_clip=3.0,
    )
    assert found.loss.item() == pytest.approx(3.0, abs=1e-6)


def test_the_first_policy_gradient_is_reinforce() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=g, dtype=torch.float64, requires_grad=True)
    actions = torch.randint(5, (2, 3), generator=g)
    advantages, mask = (
        torch.randn(2, 3, generator=g, dtype=torch.float64),
        T([[True] * 3, [True, False, False]]),
    )
    logprobs = torch.log_softmax(logits, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    found = losses.policy_loss(
        logprobs, logprobs.detach(), advantages, mask, epsilon_low=0.2, epsilon_high=0.2
    )
    first = torch.autograd.grad(found.loss, logits, retain_graph=True)[0]
    second = torch.autograd.grad(-(advantages * logprobs * mask).sum() / 4, logits)[0]
    torch.testing.assert_close(first, second, atol=1e-12, rtol=0)
    assert (found.clip_fraction, found.approx_kl) == (0, 0)


@pytest.mark.parametrize("distance", [0.0, 0.5])
def test_without_critic_clip_and_penalty_ppo_is_plain_reinforce(distance: float) -> None:
    """
    O-7: with lambda 1, V = 0 and beta 0 every action's advantage is its response's score, and the clip is off.

    On the first pass the gradient is that of `-sum over actions of s log pi / N`; away from it each action weighs by its ratio.
    """
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 5, generator=g, dtype=torch.float64, requires_grad=True)
    actions, mask = torch.randint(5, (3, 4), generator=g), torch.arange(4) < T([[4], [1], [3]])
    score = T([1.5, -2.0, 0.25], dtype=torch.float64)
    logprobs = torch.log_softmax(logits, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    old = logprobs.detach() + distance * torch.randn(3, 4, generator=g, dtype=torch.float64)
    rewards = kl.token_rewards(score, old, old - 1, mask, beta=0.0)
    advantages, returns = gae(rewards, torch.zeros_like(rewards), mask, gamma=1, lam=1.0)
    of_response = score.unsqueeze(1).expand(3, 4)
    assert torch.equal(advantages[mask], of_response[mask])
    assert torch.equal(returns, advantages)

    off = math.inf
    found = losses.policy_loss(logprobs, old, advantages, mask, epsilon_low=off, epsilon_high=off).loss
    weights = (logprobs.detach() - old).exp() * of_response
    reinforce = -(weights[mask] * logprobs[mask]).sum() / 8
    first, second = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (found, reinforce))
    torch.testing.assert_close(first, second, atol=1e-10, rtol=0)
    assert second.norm() > 0.1
    if distance:
        clipped = losses.policy_loss(logprobs, old, advantages, mask, epsilon_low=0.2, epsilon_high=0.2).loss
        assert (torch.autograd.grad(clipped, logits)[0] - second).norm() > 0.1


def test_an_exploding_ratio_stays_finite() -> None:
    found = losses.policy_loss(
        T([[500.0]]), T([[0.0]]), T([[-1.0]]), T([[True]]), epsilon_low=0.2, epsilon_high=0.2
    )
    assert torch.isfinite(found.loss)


def test_value_loss_by_hand() -> None:
    """V 1, R 3, V_old 0, clip 0.2: clipped V 0.2, errors 4 and 7.84, loss 3.92; without clip 2."""
    arguments = (T([[1.0]]), T([[0.0]]), T([[3.0]]), T([[True]]))
    clipped = losses.value_loss(*arguments, clip=0.2)
    assert clipped.loss.item() == pytest.approx(3.92, abs=1e-6)
    assert clipped.clip_fraction.item() == 1.0
    assert losses.value_loss(*arguments, clip=None).loss.item() == pytest.approx(2.0, abs=1e-6)


def test_a_value_beyond_its_clip_towards_the_target_has_no_gradient() -> None:
    value = T([[1.0]], requires_grad=True)
    losses.value_loss(value, T([[0.0]]), T([[3.0]]), T([[True]]), clip=0.2).loss.backward()
    assert value.grad.item() == 0.0


def test_losses_of_micro_batches_add_up_to_the_loss_of_the_step() -> None:
    g = torch.Generator().manual_seed(4)
    new, old, adv = (torch.randn(4, 5, generator=g) for _ in range(3))
    mask = torch.arange(5) < T([[5], [1], [3], [2]])
    options = {"epsilon_low": 0.2, "epsilon_high": 0.2}
    whole = losses.policy_loss(new, old, adv, mask, **options).loss
    parts = [
        losses.policy_loss(
            new[i : i + 2], old[i : i + 2], adv[i : i + 2], mask[i : i + 2], **options, denominator=11
        ).loss
        for i in (0, 2)
    ]
    torch.testing.assert_close(sum(parts), whole, atol=1e-6, rtol=0)


def test_explained_variance() -> None:
    returns, mask = T([[1.0, 2.0, 3.0, 99.0]]), T([[True, True, True, False]])
    assert explained_variance(returns, returns, mask).item() == 1.0
    assert explained_variance(returns, torch.zeros(1, 4), mask).item() == 0.0
    assert explained_variance(returns, -returns, mask).item() == pytest.approx(-3.0, abs=1e-6)


def test_returns_may_have_a_lambda_of_their_own() -> None:
    """lam_value 1 makes every return the reward-to-go, whatever the policy's lambda (O-2)."""
    rewards, values, mask = random_case(5, gaps=False)
    advantages, returns = advantages_and_returns(rewards, values, mask, gamma=1, lam=0.5, lam_value=1.0)
    torch.testing.assert_close(advantages, brute_force(rewards, values, mask, 1, 0.5), atol=1e-12, rtol=0)
    to_go = torch.where(mask, (rewards * mask).flip(1).cumsum(1).flip(1), 0.0)
    torch.testing.assert_close(returns, to_go, atol=1e-12, rtol=0)
    same = advantages_and_returns(rewards, values, mask, gamma=1, lam=0.5, lam_value=None)
    torch.testing.assert_close(
        same[1], (brute_force(rewards, values, mask, 1, 0.5) + values) * mask, atol=1e-12, rtol=0
    )


def test_lambda_zero_is_the_one_step_error() -> None:
    """O-2: A = r + V_next - V; values 1, 2 and rewards 0, 3 give 0 + 2 - 1 = 1 and 3 - 2 = 1."""
    advantages, _ = gae(T([[0.0, 3.0]]), T([[1.0, 2.0]]), T([[True, True]]), gamma=1, lam=0.0)
    assert advantages.tolist() == [[1.0, 1.0]]


def test_each_response_may_have_its_lambda() -> None:
    rewards, values, mask = random_case(6)
    both = gae(rewards, values, mask, gamma=1, lam=T([0.2, 0.9, 1.0]))[0]
    for row, lam in enumerate((0.2, 0.9, 1.0)):
        one = gae(rewards[row : row + 1], values[row : row + 1], mask[row : row + 1], gamma=1, lam=lam)[0]
        torch.testing.assert_close(both[row : row + 1], one)


def test_long_responses_get_a_larger_lambda() -> None:
    """alpha 0.05: 1 - 1 / (0.05 x 100) = 0.8; 10 actions would give -1, so 0."""
    mask = torch.arange(100) < T([[100], [10]])
    torch.testing.assert_close(length_adaptive_lam(mask, alpha=0.05), T([0.8, 0.0]))


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_whitened_advantages_forget_the_scale_of_the_score(beta: float) -> None:
    """O-4: s to a s + c and V to a V + c at gamma 1; with a penalty, beta to a beta."""
    gaps, values, mask = random_case(7, gaps=False)
    score, zero = T([1.0, -2.0, 0.5], dtype=torch.float64), torch.zeros_like(values)

    def white(a: float, c: float) -> torch.Tensor:
        rewards = kl.token_rewards(a * score + c, gaps, zero, mask, beta=a * beta)
        return masks.whiten(gae(rewards, a * values + c, mask, gamma=1, lam=0.95)[0], mask)

    torch.testing.assert_close(white(3.0, 5.0), white(1.0, 0.0), atol=1e-6, rtol=0)


def test_rewards_keep_their_mean_when_only_their_scale_is_whitened() -> None:
    _, values, mask = random_case(8)
    white = masks.whiten(values + 4, mask, keep_mean=True)
    torch.testing.assert_close(white[mask].mean(), (values + 4)[mask].mean(), atol=1e-5, rtol=0)
    assert abs(white[mask].var(correction=0) - 1) < 1e-4
    assert (white[~mask] == 0).all()


def test_running_moments_equal_those_of_all_scores_at_once() -> None:
    g = torch.Generator().manual_seed(0)
    batches = [3 * torch.randn(n, generator=g) + 5 for n in (1, 7, 30)]
    running = scores.RunningMoments()
    for batch in batches:
        running.update(batch)
    everything = torch.cat(batches).double()
    assert running.mean == pytest.approx(everything.mean().item(), abs=1e-9)
    assert running.std == pytest.approx(everything.std(correction=0).item(), abs=1e-9)
    assert running.count == 38


def test_scores_of_no_spread_are_not_divided() -> None:
    running = scores.RunningMoments()
    running.update(T([2.0, 2.0]))
    assert scores.normalise(T([2.0]), running, centre=False).tolist() == [2.0]
    assert scores.normalise(T([2.0]), running, centre=True).tolist() == [0.0]


def test_rewards_of_tokens_add_to_the_penalty_inside_the_mask_alone() -> None:
    rewards = kl.token_rewards(
        T([3.0]),
        T([[-1.0, -3.0, 9.0]]),
        T([[-2.0, -1.0, 0.0]]),
        T([[True, True, False]]),
        beta=0.5,
        per_token=T([[0.25, 0.5, 7.0]]),
    )
    torch.testing.assert_close(rewards, T([[-0.25, 4.5, 0.0]]))


def test_variance_and_maximum_of_the_ratio() -> None:
    """Ratios 1 and 3 among actions: mean 2, variance 1, maximum 3; the one behind the mask is not seen."""
    found = losses.policy_loss(
        T([[0.0, math.log(3.0), 5.0]]),
        torch.zeros(1, 3),
        torch.ones(1, 3),
        T([[True, True, False]]),
        epsilon_low=0.2,
        epsilon_high=0.2,
    )
    assert (found.ratio_mean.item(), found.ratio_var.item()) == pytest.approx((2.0, 1.0), abs=1e-5)
    assert found.ratio_max.item() == pytest.approx(3.0, abs=1e-5)


def test_importance_weights_by_hand() -> None:
    """exp(-1 + 1) = 1, exp(-1 + 3) = 7.4 clamped to 2, exp(-3 + 1) = 0.1353."""
    found = losses.importance_weights(T([[-1.0, -1.0, -3.0]]), T([[-1.0, -3.0, -1.0]]), cap=2.0)
    torch.testing.assert_close(found, T([[1.0, 2.0, math.exp(-2)]]))


def test_pairs_that_are_said_twice_are_counted_once() -> None:
    """1 2 1 2 1 has the pairs 12, 21, 12, 21: half are different; one token has none to repeat."""
    ids, mask = T([[1, 2, 1, 2, 1], [7, 0, 0, 0, 0]]), T([[True] * 5, [True] + [False] * 4])
    assert metrics.distinct_pairs(ids, mask).tolist() == [0.5, 1.0]


def test_figures_of_the_penalty_by_hand() -> None:
    """Two responses of 2 and 1 tokens, log ratios 1, -0.5 and 2: KL 0.5 and 2, mean 1.25; the reference says -1 throughout."""
    reference, mask = torch.full((2, 2), -1.0), T([[True, True], [True, False]])
    logprobs = reference + T([[1.0, -0.5], [2.0, 50.0]])
    told = metrics.of_penalty(logprobs, reference, mask, 0.1, lambda x: x)
    k3 = sum(math.exp(-d) - 1 + d for d in (1.0, -0.5, 2.0)) / 3
    assert told["objective/kl"].item() == pytest.approx(1.25)
    assert told["objective/kl_k3"].item() == pytest.approx(k3, rel=1e-6)
    assert told["objective/non_score_reward"].item() == pytest.approx(-0.125)
    entropy = metrics.of_entropy(logprobs, mask, lambda x: x)["objective/entropy"]
    assert entropy.item() == pytest.approx((1.5 - 1.0) / 2)
    assert told["objective/ref_perplexity"].item() == pytest.approx(math.e)


def test_score_and_length_are_correlated_over_responses() -> None:
    """Scores 1, 2, 3 with lengths 2, 4, 6 lie on a line: r = 1; the used scores do not enter."""
    told = metrics.of_scores(
        T([1.0, 2.0, 3.0]), T([0.0, 0.0, 9.0]), T([2, 4, 6]), T([True, False, True]), lambda x: x
    )
    assert told["completions/score_length_corr"].item() == pytest.approx(1.0)
    assert told["completions/truncated_fraction"].item() == pytest.approx(1 / 3)
    assert (told["objective/scores"].item(), told["objective/scores_raw"].item()) == (3.0, 2.0)
