"""
The maths of PPO against one rollout of TRL 1.12's own PPOTrainer, the last release that had one (specification 8.3).

`golden_trl112.json` holds numbers only; `benchmarks/golden_trl112.py` recorded them from TRL's code as it was released: one
process, one mini-batch, a pad token that is not EOS, k1, float32. `ACTIONS` and `VALUES` are TRL's two masks, inverted: True
counts. Where the two trainers differ on purpose, the difference is undone here, in words and in code, and the test also
asserts that without the adjustment the numbers do not agree:

1. The score's place. 1.12 puts it one position after EOS when there is room, and reads a value there; instructkit puts it on
   the EOS. Adjustment: our functions get `VALUES`, which has that one slot more a row, instead of `ACTIONS`.
2. Whitening. 1.12 divides by the deviation with n - 1 (Bessel), instructkit by that with n. Adjustment: sqrt((n - 1) / n).
3. The value loss of 1.12 also averages over the slot after EOS. Adjustment: `VALUES` again.
4. 1.12 averages each micro-batch over its own tokens and then the micro-batches; instructkit divides by the tokens of the
   whole step. Adjustment: no `denominator`, and half of the gradient for two micro-batches.
5. The approximate KL and the mean ratio of 1.12 are taken over padding too, where they are 0 and 1. Adjustment: so are ours.

Needed no adjustment: the sign and scale of the KL term, the two clips, the half in the value loss. Adam's epsilon and the
gradient clipping that 1.12 leaves out belong to the optimizer and do not show in these numbers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from instructkit.ppo import kl, losses, masks
from instructkit.ppo.advantages import gae

GOLDEN = json.loads(Path(__file__).with_name("golden_trl112.json").read_text(encoding="utf-8"))
SETTINGS, ROLLOUT = GOLDEN["settings"], GOLDEN["rollout"]
ONE, TWO = GOLDEN["one_micro_batch"], GOLDEN["two_micro_batches"]
# gradients are of the order of 1e-2; what differs, differs by a hundred times the tolerance
TOLERANCE, GRADIENT_TOLERANCE, CLEARLY = 1e-6, 1e-7, 1e-4


def theirs(name: str, part: dict = ROLLOUT) -> Tensor:
    """What TRL 1.12 computed, float32 or integer."""
    return torch.tensor(part[name])


ACTIONS, VALUES = ~theirs("padding_mask").bool(), ~theirs("padding_mask_p1").bool()
LENGTHS, LIMIT = theirs("sequence_lengths") + 1, SETTINGS["response_length"]
EARLY = LENGTHS < LIMIT  # responses with room for a score after their EOS
OLD, REF, SCORES, V = (theirs(name) for name in ("logprobs", "ref_logprobs", "scores", "values"))
VF = SETTINGS["vf_coef"]
GAE = {"gamma": SETTINGS["gamma"], "lam": SETTINGS["lam"]}
CLIP = {"epsilon_low": SETTINGS["cliprange"], "epsilon_high": SETTINGS["cliprange"]}


def agree(ours: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(ours, wanted, atol=TOLERANCE, rtol=0)


def agree_in_gradient(loss: Tensor, of: Tensor, wanted: Tensor, *, factor: float = 1.0) -> None:
    torch.testing.assert_close(gradient(loss, of) * factor, wanted, atol=GRADIENT_TOLERANCE, rtol=0)


def differ(ours: Tensor, wanted: Tensor) -> None:
    assert (ours - wanted).abs().max() > CLEARLY


def rewards_over(mask: Tensor) -> Tensor:
    return kl.token_rewards(SCORES, OLD, REF, mask, beta=SETTINGS["kl_coef"])


def bessel(count: Tensor | int) -> float:
    """What turns a division by the deviation with n into one by that with n - 1."""
    return float(((count - 1) / count) ** 0.5)


def policy(update: dict, new: Tensor, advantages: Tensor, **options) -> losses.PolicyLoss:
    rows = theirs("rows", update)
    return losses.policy_loss(new, OLD[rows], advantages[rows], ACTIONS[rows], **CLIP, **options)


def value(update: dict, new: Tensor, mask: Tensor, returns: Tensor, **options) -> losses.ValueLoss:
    rows = theirs("rows", update)
    clip = SETTINGS["cliprange_value"]
    return losses.value_loss(new, V[rows], returns[rows], mask[rows], clip=clip, **options)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of, retain_graph=True)[0]


def test_the_rollout_reaches_every_branch() -> None:
    """Responses end early, just before the limit, at it or not at all; both signs of the advantage on each side of the clips."""
    assert GOLDEN["about"]["trl"] == "1.12.0"
    ended = theirs("contain_eos_token").bool()
    assert (LENGTHS < LIMIT - 1).sum() >= 2
    assert (LENGTHS == LIMIT - 1).any()
    assert (ended & (LENGTHS == LIMIT)).any()
    assert (~ended).sum() >= 2
    assert (SETTINGS["num_ppo_epochs"], len(ONE), len(TWO)) == (2, 2, 4)
    rows = theirs("rows", ONE[1])
    ratio = (theirs("new_logprobs", ONE[1]) - OLD[rows]).exp()
    moved = theirs("new_values", ONE[1]) - V[rows]
    signs = ((ratio, 1, theirs("advantages")), (moved, 0, (theirs("returns") - V)))
    for change, centre, wanted in signs:
        for side in (change < centre - 0.2, (change - centre).abs() < 0.2, change > centre + 0.2):
            assert (side & ACTIONS[rows] & (wanted[rows] > 0)).any()
            assert (side & ACTIONS[rows] & (wanted[rows] < 0)).any()


def test_masks_are_those_of_the_lengths() -> None:
    assert torch.equal(masks.response_mask_from_lengths(LENGTHS, LIMIT), ACTIONS)
    assert torch.equal(masks.response_mask_from_lengths(LENGTHS + 1, LIMIT), VALUES)
    assert torch.equal(masks.last_action_index(ACTIONS), theirs("sequence_lengths"))


def test_kl_needs_no_adjustment() -> None:
    agree(kl.k1(OLD, REF), theirs("kl"))
    agree(-SETTINGS["kl_coef"] * kl.k1(OLD, REF), theirs("non_score_reward"))


def test_token_rewards_with_the_score_one_position_late() -> None:
    """1.12 writes one placeholder into both log-probabilities behind EOS, so the KL of the additional slot is 0."""
    agree(rewards_over(VALUES), theirs("rewards"))


def test_token_rewards_as_they_are_differ_by_the_move_of_the_score_alone() -> None:
    plain = rewards_over(ACTIONS)
    differ(plain, theirs("rewards"))
    agree(plain[~EARLY], theirs("rewards")[~EARLY])
    rows = EARLY.nonzero().squeeze(1)
    plain[rows, LENGTHS[rows] - 1] -= SCORES[rows]
    plain[rows, LENGTHS[rows]] += SCORES[rows]
    agree(plain, theirs("rewards"))


def test_advantages_and_returns_over_the_mask_of_values() -> None:
    """1.12 writes 0 behind the mask; ours does not look there, so it may be anything."""
    rewards, values = (torch.where(VALUES, x, 7.0) for x in (theirs("rewards"), V))
    advantages, returns = gae(rewards, values, VALUES, **GAE)
    agree(advantages, theirs("advantages_before_whitening"))
    agree(returns, theirs("returns"))


def test_advantages_without_the_additional_slot_differ_where_a_response_ends_early() -> None:
    wanted = theirs("advantages_before_whitening")
    for rewards in (rewards_over(ACTIONS), theirs("rewards")):  # score on EOS; score lost behind the mask
        advantages, returns = gae(rewards, V, ACTIONS, **GAE)
        for row in EARLY.nonzero().squeeze(1):
            differ(advantages[row, : LENGTHS[row]], wanted[row, : LENGTHS[row]])
            differ(returns[row], theirs("returns")[row])
        agree(advantages[~EARLY], wanted[~EARLY])
        agree(returns[~EARLY], theirs("returns")[~EARLY])


def test_whitening_with_bessels_correction_over_actions() -> None:
    before, after = theirs("advantages_before_whitening"), theirs("advantages")
    ours = masks.whiten(before, ACTIONS)
    agree(ours * bessel(ACTIONS.sum()), after)
    differ(ours, after)
    # the additional slot is no action and takes no part in the statistics
    differ(masks.whiten(before, VALUES)[ACTIONS] * bessel(VALUES.sum()), after[ACTIONS])


@pytest.mark.parametrize("update", ONE)
def test_policy_loss_and_its_gradient_need_no_adjustment(update: dict) -> None:
    """One micro-batch is the whole step: its own count of tokens and that of the step are the same."""
    new = theirs("new_logprobs", update).requires_grad_()
    advantages = theirs("advantages")
    for options in ({}, {"denominator": ACTIONS.sum()}):
        found = policy(update, new, advantages, **options)
        agree(found.loss.detach(), theirs("policy_loss", update))
        agree_in_gradient(found.loss, new, theirs("grad_new_logprobs", update))
        agree(found.clip_fraction, theirs("pg_clipfrac", update))


def test_approximate_kl_and_ratio_over_padding_too() -> None:
    """In the first epoch both policies are one: the ratio is 1 with and without padding. The second shows the difference."""
    actions, all_positions = int(ACTIONS.sum()), ACTIONS.numel()
    for update in ONE:
        found = policy(update, theirs("new_logprobs", update), theirs("advantages"))
        agree(found.approx_kl * actions / all_positions, theirs("approxkl", update))
        padded = found.ratio_mean * actions + (all_positions - actions)
        agree(padded / all_positions, theirs("ratio", update))
    differ(found.approx_kl, theirs("approxkl", ONE[1]))
    differ(found.ratio_mean, theirs("ratio", ONE[1]))


@pytest.mark.parametrize("update", ONE)
def test_value_loss_and_its_gradient_over_the_mask_of_values(update: dict) -> None:
    new = theirs("new_values", update).requires_grad_()
    found = value(update, new, VALUES, theirs("returns"))
    agree(found.loss.detach(), theirs("value_loss", update))
    agree_in_gradient(found.loss, new, theirs("grad_new_values", update), factor=VF)
    agree(found.clip_fraction, theirs("vf_clipfrac", update))
    plain = value(update, new, ACTIONS, theirs("returns"))
    differ(plain.loss.detach(), theirs("value_loss", update))
    differ(VF * gradient(plain.loss, new), theirs("grad_new_values", update))


@pytest.mark.parametrize("update", TWO)
def test_each_of_two_micro_batches_is_averaged_over_its_own_tokens(update: dict) -> None:
    """
    The gradient of each is halved; with the tokens of the whole step as denominator the gradients differ.

    All four losses are compared at the weights that 1.12 had: on the last batch of its data it steps after each micro-batch.
    """
    new = theirs("new_logprobs", update).requires_grad_()
    values = theirs("new_values", update).requires_grad_()
    own = policy(update, new, theirs("advantages")).loss
    whole = policy(update, new, theirs("advantages"), denominator=ACTIONS.sum()).loss
    agree(own.detach(), theirs("policy_loss", update))
    agree_in_gradient(own, new, theirs("grad_new_logprobs", update), factor=1 / 2)
    differ(gradient(whole, new), theirs("grad_new_logprobs", update))
    own = value(update, values, VALUES, theirs("returns")).loss
    agree(own.detach(), theirs("value_loss", update))
    agree_in_gradient(own, values, theirs("grad_new_values", update), factor=VF / 2)


def test_from_the_rollout_to_the_loss_by_our_functions_alone() -> None:
    """Nothing of TRL's in between: a chain of the adjusted functions ends in TRL's loss and gradients."""
    advantages, returns = gae(rewards_over(VALUES), V, VALUES, **GAE)
    advantages = masks.whiten(advantages, ACTIONS) * bessel(ACTIONS.sum())
    for update in ONE:
        new = theirs("new_logprobs", update).requires_grad_()
        values = theirs("new_values", update).requires_grad_()
        loss = policy(update, new, advantages).loss
        loss = loss + VF * value(update, values, VALUES, returns).loss
        agree(loss.detach(), theirs("loss", update))
        agree_in_gradient(loss, new, theirs("grad_new_logprobs", update))
        agree_in_gradient(loss, values, theirs("grad_new_values", update))


def test_unadjusted_the_whole_chain_differs() -> None:
    advantages, returns = gae(rewards_over(ACTIONS), V, ACTIONS, **GAE)
    advantages = masks.whiten(advantages, ACTIONS)
    for update in ONE:
        new, values = theirs("new_logprobs", update), theirs("new_values", update)
        loss = policy(update, new, advantages).loss
        loss = loss + VF * value(update, values, ACTIONS, returns).loss
        differ(loss, theirs("loss", update))
