"""The PPO trainer on a real tiny model: the seams it stands on, its batch arithmetic, what moves and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ppo.small import PROMPTS, build, fixed_rollout, logged, step_of_eight, weights
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    TrainerCallback,
)
from trl import RLOOTrainer

from instructkit.ppo import rollout
from instructkit.ppo.config import PPOConfig
from instructkit.ppo.critic import SeparateCritic
from instructkit.ppo.trainer import SEAMS


def test_the_seams_of_trl_are_there() -> None:
    for name in SEAMS:
        assert callable(getattr(RLOOTrainer, name, None)), (
            f"RLOOTrainer has no {name} any more; PPOTrainer stands on it"
        )


def test_one_generation_is_allowed_and_other_faults_still_raise(tmp_path: Path) -> None:
    config = PPOConfig(
        output_dir=str(tmp_path),
        bf16=False,
        use_cpu=True,
        per_device_train_batch_size=2,
        steps_per_generation=4,
    )
    assert (config.num_generations, config.mini_batches, config.adam_epsilon) == (1, 4, 1e-5)
    with pytest.raises(ValueError, match="missing_eos_mode"):
        PPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, missing_eos_mode="no")
    with pytest.raises(ValueError, match="no optimizer step mixes two rollouts|so that no optimizer step"):
        PPOConfig(
            output_dir=str(tmp_path),
            bf16=False,
            use_cpu=True,
            steps_per_generation=3,
            gradient_accumulation_steps=2,
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", 0.9),
        ("top_k", 5),
        ("min_p", 0.1),
        ("repetition_penalty", 1.2),
        ("generation_kwargs", {"suppress_tokens": [3]}),
        ("mask_truncated_completions", True),
        ("reward_clip_range", (0.0, 1.0)),
        ("sync_ref_model", True),
    ],
)
def test_what_ppo_would_ignore_or_sample_wrongly_is_refused(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        PPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **{name: value})


def test_generation_settings_of_the_checkpoint_do_not_reach_the_rollout(tiny_folder, tmp_path) -> None:
    trainer = build(tiny_folder, tmp_path, per_device_train_batch_size=2, steps_per_generation=4)
    only = 7
    trainer.model.generation_config.suppress_tokens = [
        i for i in range(trainer.model.config.vocab_size) if i != only
    ]
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    ids = trainer._generate_and_score_completions(rows)["completion_ids"]
    assert len(set(ids.flatten().tolist()) - {only}) > 3


def test_the_reference_of_full_fine_tuning_is_the_policy_as_given(tiny_folder, tmp_path) -> None:
    """A parent merged into its base has weights that no folder of its name holds."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    trainer = build(tiny_folder, tmp_path, model=model, max_steps=1, num_iterations=1)
    trainer.train()
    assert abs(logged(trainer, "objective/kl")[0]) <= 1e-6
    assert trainer.beta == trainer.args.beta == 0.05


@pytest.mark.parametrize(
    ("lora", "critic"),
    [(False, "head"), (True, "head"), (False, "separate"), (True, "separate"), (True, "adapter")],
)
def test_policy_and_critic_move_and_the_reference_does_not(tiny_folder, tmp_path, lora, critic) -> None:
    trainer = build(tiny_folder, tmp_path, lora=lora, critic=critic)
    policy = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    value = {n: p.detach().clone() for n, p in trainer.critic.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, policy[n])}
    trainable = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert moved and moved <= trainable
    assert any(not torch.equal(p, value[n]) for n, p in trainer.critic.named_parameters())
    if lora:
        assert all("lora_" in name for name in moved)


@pytest.mark.parametrize("critic", ["head", "separate"])
def test_every_optimizer_step_starts_without_gradients_of_the_last(tiny_folder, tmp_path, critic) -> None:
    trainer = build(
        tiny_folder, tmp_path, critic=critic, gradient_accumulation_steps=2, steps_per_generation=2
    )
    left: list[float] = []
    original = trainer._compute_loss

    def spy(model, inputs):
        if trainer._step % 2 == 0:
            both = [*model.parameters(), *trainer.critic.parameters()]
            left.append(sum(float(p.grad.abs().sum()) for p in both if p.grad is not None))
        return original(model, inputs)

    trainer._compute_loss = spy
    trainer.train()
    assert left == [0.0] * 4


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("pieces", "tolerance"), [(1, 1e-6), (2, 1e-5), (8, 1e-5)])
def test_before_the_first_update_kl_is_zero_and_ratios_are_one(
    tiny_folder, tmp_path, lora: bool, pieces: int, tolerance: float
) -> None:
    """
    O-6, O-9: the whole rollout is one optimizer step, in so many micro-batches.

    One micro-batch lies as the rollout was read, and is held to the specification's 1e-6 (measured 0). In another layout
    float32 rounds log-probabilities of -8 nats by 5e-7, and ratios with them: measured 9.5e-7 with rows one by one.
    """
    trainer = build(
        tiny_folder,
        tmp_path,
        lora=lora,
        critic="separate",
        per_device_train_batch_size=8 // pieces,
        steps_per_generation=pieces,
        gradient_accumulation_steps=pieces,
        num_iterations=1,
        max_steps=1,
    )
    trainer.train()
    assert abs(logged(trainer, "objective/kl")[0]) <= 1e-6
    assert logged(trainer, "policy/first_pass_ratio_error")[0] <= tolerance
    assert abs(logged(trainer, "val/ratio")[0] - 1) <= tolerance
    assert logged(trainer, "policy/approxkl_avg")[0] <= tolerance**2
    assert logged(trainer, "policy/clipfrac_avg")[0] == 0.0


@pytest.mark.parametrize(("epochs", "pieces", "accumulation"), [(1, 2, 1), (2, 2, 1), (3, 4, 2), (2, 2, 2)])
def test_optimizer_steps_and_visits_are_exact(tiny_folder, tmp_path, epochs, pieces, accumulation) -> None:
    rows = [
        {"prompt": PROMPTS[i % 8][:1]} for i in range(9)
    ]  # O-12: a ninth prompt makes a last, short batch of data
    trainer = build(
        tiny_folder,
        tmp_path,
        rows=rows,
        max_steps=-1,
        num_train_epochs=2,
        per_device_train_batch_size=2,
        steps_per_generation=pieces,
        num_iterations=epochs,
        gradient_accumulation_steps=accumulation,
    )
    visits: list[tuple] = []
    original = trainer._compute_loss

    def spy(model, inputs):
        pairs = zip(inputs["old_logprobs"], inputs["response_mask"], strict=True)
        visits.extend(tuple(row[real].tolist()) for row, real in pairs)
        return original(model, inputs)

    trainer._compute_loss = spy
    trainer.train()
    rollouts = 2 * (len(rows) // (2 * pieces))
    assert trainer.state.global_step == rollouts * epochs * pieces // accumulation
    assert trainer.args.rollouts(len(rows)) == rollouts
    assert len(visits) == rollouts * epochs * pieces * 2
    assert all(visits.count(row) == epochs for row in visits)


def test_each_epoch_over_a_rollout_has_an_order_of_its_own(tiny_folder, tmp_path) -> None:
    trainer = build(
        tiny_folder,
        tmp_path,
        per_device_train_batch_size=1,
        steps_per_generation=8,
        num_iterations=3,
        max_steps=24,
    )
    orders: list[tuple] = []
    original = trainer._compute_loss

    def spy(model, inputs):
        orders.append(tuple(inputs["old_logprobs"][0].tolist()))
        return original(model, inputs)

    trainer._compute_loss = spy
    trainer.train()
    epochs = [orders[i : i + 8] for i in range(0, 24, 8)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_whole_step_of_the_trainer_does_not_depend_on_accumulation(tiny_folder, tmp_path) -> None:
    """O-11 through the real loop: the gradient norms of one step over eight sequences, in micro-batches of each size."""
    norms = []
    for size in (8, 4, 2, 1):
        trainer = step_of_eight(tiny_folder, tmp_path, size, max_steps=1)
        trainer.train()
        norms.append((logged(trainer, "grad_norm/policy")[0], logged(trainer, "grad_norm/value")[0]))
    for other in norms[1:]:
        assert other == pytest.approx(norms[0], rel=1e-6)


def test_value_warmup_leaves_the_policy_bit_identical(tiny_folder, tmp_path) -> None:
    """O-18: one rollout of warm-up moves the critic alone; the next one moves both."""
    seen: dict[int, dict] = {}

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen[state.global_step] = weights(trainer)

    trainer = build(
        tiny_folder, tmp_path, value_warmup_steps=1, weight_decay=0.1, max_steps=8, callbacks=[Look()]
    )
    start = weights(trainer)
    trainer.train()

    def moved(first: dict, second: dict) -> set[bool]:
        return {name.startswith("critic.") for name in first if not torch.equal(first[name], second[name])}

    assert moved(start, seen[4]) == {True}
    assert moved(seen[4], seen[8]) == {True, False}


def test_beta_stays_while_the_policy_does(tiny_folder, tmp_path) -> None:
    """Of a frozen policy the KL is 0, which says nothing of the coefficient; from the third rollout on it is steered."""
    settings = {"num_iterations": 1, "steps_per_generation": 2, "max_steps": 8, "learning_rate": 1e-2}
    trainer = build(
        tiny_folder, tmp_path, value_warmup_steps=2, target_kl_per_sequence=6.0, kl_horizon=40, **settings
    )
    trainer.train()
    first, second, third, fourth = logged(trainer, "objective/kl_coef")
    assert (first, second, third) == pytest.approx((0.05, 0.05, 0.05)) and fourth < 0.0495


@pytest.mark.parametrize("critic", ["head", "separate"])
def test_a_reading_is_not_compared_with_itself(tiny_folder, tmp_path, critic: str) -> None:
    """Where the rollout's own reading is the first pass, its error is measured once, by reading again, and else not told."""
    trainer = build(
        tiny_folder,
        tmp_path,
        critic=critic,
        per_device_train_batch_size=8,
        steps_per_generation=1,
        num_iterations=1,
        max_steps=3,
    )
    trainer.train()
    told = [row for row in trainer.state.log_history if "policy/first_pass_ratio_error" in row]
    assert [row["step"] for row in told] == ([1] if critic == "head" else [1, 2, 3])
    assert all(row["policy/first_pass_ratio_error"] <= 1e-5 for row in told)


@pytest.mark.parametrize(("lora", "critic"), [(True, "head"), (True, "adapter"), (False, "separate")])
def test_the_loss_that_is_told_is_of_policy_and_critic(
    tiny_folder, tmp_path, lora: bool, critic: str
) -> None:
    trainer = build(tiny_folder, tmp_path, lora=lora, critic=critic, vf_coef=0.5, max_steps=2)
    trainer.train()
    both = zip(logged(trainer, "loss/policy_avg"), logged(trainer, "loss/value_avg"), strict=True)
    wanted = [policy + 0.5 * value for policy, value in both]
    assert logged(trainer, "loss") == pytest.approx(wanted, abs=1.1e-4)  # Trainer tells four digits


def test_norms_are_those_of_steps_that_were_taken(tiny_folder, tmp_path) -> None:
    trainer = build(tiny_folder, tmp_path, value_warmup_steps=1, max_steps=8, target_kl=1e-9)
    trainer.train()
    by_step = {row["step"]: row for row in trainer.state.log_history}
    assert [("grad_norm/policy" in by_step[i], "grad_norm/value" in by_step[i]) for i in (1, 4, 5, 8)] == [
        (False, True),
        (False, True),
        (True, True),
        (False, False),
    ]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("max_steps", 4, "never be trained"), ("steps_per_generation", 4, "fewer than one rollout")],
)
def test_a_run_that_would_train_nothing_is_refused(
    tiny_folder, tmp_path, name: str, value: int, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        build(tiny_folder, tmp_path, **{"value_warmup_steps": 1, name: value})


@pytest.mark.parametrize(
    ("lora", "critic"), [(False, "head"), (True, "head"), (True, "adapter"), (False, "separate")]
)
def test_loss_and_gradient_do_not_depend_on_the_micro_batch_size(
    tiny_folder, tmp_path, lora: bool, critic: str
) -> None:
    """
    O-11: eight sequences as 8 x 1, 4 x 2, 2 x 4 and 1 x 8 give one loss, and one gradient to 1e-6 of its length.

    Measured in float32: 6e-7, with one thread and with two. The largest single entry is 0.9, and off by 9e-7 at most.
    """
    found = []
    for size in (8, 4, 2, 1):
        trainer = step_of_eight(tiny_folder, tmp_path, size, lora=lora, critic=critic)
        trainer.model.train()
        torch.manual_seed(1)
        head = trainer.critic.classifier.score if critic == "separate" else trainer.critic.head
        torch.nn.init.normal_(head.weight, std=0.02)
        batch = fixed_rollout(trainer)
        pieces = [{n: t[i : i + size] for n, t in batch.items()} for i in range(0, 8, size)]
        loss = 0.0
        for step, piece in enumerate(trainer._with_counts(pieces)):
            trainer._step = step
            part = trainer._compute_loss(trainer.model, piece)
            part.backward()
            loss += part.item()
        gradients = [*trainer.policy_parameters(), *trainer.critic_parameters()]
        found.append((loss, torch.cat([p.grad.flatten() for p in gradients])))
    assert found[0][1].abs().max() > 0.1
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        assert (gradient - found[0][1]).norm() <= 1e-6 * found[0][1].norm()


def test_temperature_is_part_of_the_scored_law(tiny_folder) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    batch = rollout.collate([[5, 6]], [[11, 12]], pad_id=0)
    with torch.no_grad():
        found = rollout.read(model, batch, temperature=0.5).logprobs[0]
        logits = model(torch.tensor([[5, 6, 11, 12]])).logits[0, 1:3] / 0.5
    wanted = torch.log_softmax(logits, -1)[torch.arange(2), torch.tensor([11, 12])]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_value_is_read_before_its_action(tiny_folder) -> None:
    """V_t may depend on tokens before action t, never on the action itself or what follows."""
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1).eval()
    critic = SeparateCritic(classifier)
    values = []
    for last in (11, 12):
        batch = rollout.collate([[5, 6]], [[9, last]], pad_id=0)
        with torch.no_grad():
            values.append(critic(*rollout.joined(batch), 2))
    torch.testing.assert_close(values[0], values[1], atol=0, rtol=0)


def test_resume_continues_from_a_rollout_border(tiny_folder, tmp_path) -> None:
    first = build(tiny_folder, tmp_path, max_steps=8, save_strategy="steps", save_steps=3)
    first.train()
    saved = sorted(p.name for p in (tmp_path / "out").glob("checkpoint-*"))
    assert saved and all(int(name.split("-")[1]) % 4 == 0 for name in saved)
    second = build(tiny_folder, tmp_path, max_steps=12)
    second.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))
    assert second.state.global_step == 12
    assert logged(second, "episode")[-1] == 3 * 8


def test_figures_of_several_processes_count_their_tokens_alike(tiny_folder, tmp_path, monkeypatch) -> None:
    """A process with three times the tokens has three times the say in a mean; of maxima the largest is told."""
    trainer = build(tiny_folder, tmp_path)
    trainer.model.train()
    other = torch.tensor([[30.0, 4.0, 1.5]])
    monkeypatch.setattr(trainer.accelerator, "gather", lambda mine: torch.cat([mine, other]))
    trainer._note_all({"val/ratio": 8.0, "policy/ratio_max": 1.2}, weight=torch.tensor(10))
    assert trainer._metrics["train"]["val/ratio"] == [5.0]
    assert trainer._metrics["train"]["policy/ratio_max"] == [1.5]
