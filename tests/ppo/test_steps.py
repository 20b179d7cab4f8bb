"""From a rollout to an optimizer step in the real trainer: what reaches the losses, and what reaches the weights."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from ppo.small import PROMPTS, build, logged
from transformers import AutoModelForCausalLM, TrainerCallback

from instructkit.models import adapters
from instructkit.ppo import kl, losses, rollout

ROWS = [{"prompt": prompt} for prompt in PROMPTS]
T = torch.tensor


def test_returns_are_the_unwhitened_reward_to_go(tiny_folder, tmp_path) -> None:
    """A-2, S-8: with lambda 1 and no KL penalty every action's return is the score; the advantages are whitened."""
    trainer = build(
        tiny_folder,
        tmp_path,
        per_device_train_batch_size=2,
        steps_per_generation=4,
        lam=1.0,
        beta=0.0,
        missing_eos_penalty=0.0,
        critic="separate",
    )
    trainer.model.train()
    torch.nn.init.normal_(trainer.critic.classifier.score.weight)
    kept = {}
    trainer._policy_masks = lambda sampled, old: kept.update(sampled=sampled) or {}
    found = trainer._generate_and_score_completions(ROWS)
    mask = found["response_mask"]
    wanted = kept["sampled"].raw.unsqueeze(1).expand(mask.shape)[mask]
    torch.testing.assert_close(found["returns"][mask], wanted, atol=1e-5, rtol=0)
    assert found["old_values"][mask].std() > 0.01
    plain = (wanted - found["old_values"][mask]).flatten()
    white = (plain - plain.mean()) / plain.std(correction=0)
    torch.testing.assert_close(found["advantages"][mask], white, atol=1e-4, rtol=0)
    assert (found["returns"][~mask] == 0).all()


def test_without_critic_clip_and_penalty_the_first_gradient_is_plain_reinforce(tiny_folder, tmp_path) -> None:
    """O-7 through the trainer. Its kernel works in float32, so not to 1e-10 (`test_maths.py`): measured 4e-7 of 0.6."""
    trainer = build(
        tiny_folder,
        tmp_path,
        per_device_train_batch_size=8,
        steps_per_generation=1,
        lam=1.0,
        beta=0.0,
        epsilon=1e6,
        missing_eos_mode="none",
        normalize_advantages=False,
    )
    trainer.model.train()
    kept = {}
    trainer._policy_masks = lambda sampled, old: kept.update(sampled=sampled) or {}
    found = trainer._generate_and_score_completions(ROWS)
    assert (
        found["old_values"] == 0
    ).all()  # a head that knows nothing, through which no gradient reaches the body
    trainer._compute_loss(trainer.model, trainer._with_counts([found])[0]).backward()
    gradient = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}

    trainer.model.zero_grad()
    ids, attention, positions = rollout.joined(found)
    mask, answers = found["response_mask"], found["completion_ids"]
    logits = trainer.model(input_ids=ids, attention_mask=attention, position_ids=positions).logits
    said = logits[:, -answers.size(1) - 1 : -1].log_softmax(-1).gather(-1, answers.unsqueeze(-1)).squeeze(-1)
    score = kept["sampled"].raw.unsqueeze(1).expand(mask.shape)
    (-(score[mask] * said[mask]).sum() / mask.sum()).backward()
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(gradient[name], parameter.grad, atol=2e-6, rtol=0)
    assert max(float(x.abs().max()) for x in gradient.values()) > 0.1


def test_the_controller_counts_kl_by_response(tiny_folder, tmp_path) -> None:
    """O-17: each coefficient follows from the last one and the logged KL, in nats a response."""
    trainer = build(
        tiny_folder,
        tmp_path,
        max_steps=16,
        beta=0.1,
        target_kl_per_sequence=0.3,
        kl_horizon=50,
        learning_rate=5e-3,
    )
    trainer.train()
    betas, kls = logged(trainer, "objective/kl_coef"), logged(trainer, "objective/kl")
    assert len(betas) == 4
    for i in range(3):
        error = min(max(kls[i] / 0.3 - 1, -0.2), 0.2)
        assert betas[i + 1] == pytest.approx(betas[i] * (1 + error * 8 / 50), rel=1e-6)
    assert len({round(b / a, 6) for a, b in zip(betas, betas[1:], strict=False)}) > 1


def test_the_controller_does_not_count_kl_by_token(tiny_folder, tmp_path) -> None:
    """0.1 nats on each of 4 tokens is 0.4 a response: against 0.38 that is 5.3 % too much, well within the clip."""
    trainer = build(tiny_folder, tmp_path, beta=0.1, target_kl_per_sequence=0.38, kl_horizon=50)
    logprobs, mask = torch.full((8, 5), -1.0), torch.arange(5).expand(8, 5) < 4
    trainer._adapt_beta(logprobs, logprobs - 0.1, mask)
    assert trainer.state_of_ppo.beta == pytest.approx(0.1 * (1 + (0.4 / 0.38 - 1) * 8 / 50), rel=1e-5)


def test_gradients_of_both_are_within_their_norm(tiny_folder, tmp_path) -> None:
    """O-20."""
    norms: list[tuple[float, float]] = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            both = trainer.policy_parameters(), trainer.critic_parameters()
            norms.append(tuple(float(torch.stack([p.grad.norm() for p in part]).norm()) for part in both))

    trainer = build(
        tiny_folder, tmp_path, lora=True, critic="adapter", max_grad_norm=1e-3, callbacks=[Look()]
    )
    torch.nn.init.normal_(trainer.critic.head.weight)
    trainer.train()
    assert len(norms) == 4
    assert all(value == pytest.approx(1e-3, rel=1e-3) for pair in norms for value in pair)
    assert min(logged(trainer, "grad_norm/policy")) > 1e-2
    assert logged(trainer, "grad_norm/value")[0] > 1e-2


def test_rates_follow_the_schedule_to_zero(tiny_folder, tmp_path) -> None:
    trainer = build(tiny_folder, tmp_path, max_steps=4, value_learning_rate=8e-3, lr_scheduler_type="linear")
    trainer.train()
    assert logged(trainer, "lr/value") == pytest.approx([8e-3, 6e-3, 4e-3, 2e-3])
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.0] * len(
        trainer.optimizer.param_groups
    )


def test_a_response_has_ended_at_any_of_the_stops() -> None:
    """O-21: two end tokens; a response cut off by length, and an empty one, have not ended."""
    assert rollout.finished([[5, 2], [5, 9], [5], []], [2, 9]).tolist() == [True, True, False, False]


def test_dropout_is_off_in_rollout_and_update(tiny_folder, tmp_path) -> None:
    """R-6: with half of everything dropped the first pass could not say what the rollout said."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.5)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, attention_dropout=0.5)
    model = adapters.add_lora(base, config, None)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    trainer = build(tiny_folder, tmp_path, model=model, lora=None, more=roles(), max_steps=1)
    trainer.train()
    assert logged(trainer, "policy/first_pass_ratio_error")[0] < 1e-5


def roles() -> dict:
    return {"reference": adapters.as_parent, "settle": adapters.settle, "for_sampling": adapters.folded}


def test_dual_clip_is_for_bad_actions_alone() -> None:
    """Ratio 10: a good action's loss is -1.2 whatever the dual clip, a bad one's is bounded by 3."""
    ratio = T([[2.302585, 2.302585]])
    found = losses.policy_loss(
        ratio,
        torch.zeros(1, 2),
        T([[1.0, -1.0]]),
        T([[True, True]]),
        epsilon_low=0.2,
        epsilon_high=0.2,
        dual_clip=3.0,
    )
    assert found.loss.item() == pytest.approx((-1.2 + 3.0) / 2, abs=1e-5)


def test_clip_higher_leaves_more_room_above() -> None:
    """epsilon_high 0.5: ratio 1.4 of a good action is not clipped, 1.6 is, at 1.5."""
    found = losses.policy_loss(
        T([[1.4, 1.6]]).log(),
        torch.zeros(1, 2),
        torch.ones(1, 2),
        T([[True, True]]),
        epsilon_low=0.2,
        epsilon_high=0.5,
    )
    assert found.loss.item() == pytest.approx(-(1.4 + 1.5) / 2, abs=1e-5)


def test_the_penalty_in_the_log_is_the_one_in_the_rewards(tiny_folder, tmp_path) -> None:
    """TRL issue 1180: the KL that is told is the KL that is penalised."""
    trainer = build(tiny_folder, tmp_path, learning_rate=5e-3, max_steps=9)
    seen: list[tuple[float, float]] = []
    original = kl.token_rewards

    def spy(scores, logprobs, reference, mask, *, beta, per_token=None):
        found = original(scores, logprobs, reference, mask, beta=beta, per_token=per_token)
        seen.append(
            (float(((logprobs - reference) * mask).sum(1).mean()), float(found.sum(1).mean() - scores.mean()))
        )
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kl, "token_rewards", spy)
        trainer.train()
    assert [pair[0] for pair in seen] == pytest.approx(logged(trainer, "objective/kl"), abs=1e-5)
    assert [pair[1] for pair in seen] == pytest.approx(
        logged(trainer, "objective/non_score_reward"), abs=1e-5
    )
    assert abs(seen[-1][0]) > 1e-3
