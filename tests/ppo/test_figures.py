"""What is told of a step and of a window of the log does not depend on how either was cut into parts."""

from __future__ import annotations

import pytest
import torch
from ppo.small import build, fixed_rollout, logged, step_of_eight
from transformers import AutoModelForCausalLM, Trainer

from instructkit.ppo import rollout
from instructkit.ppo.checkpoint import CRITIC_FILE


def figures_of_step(trainer, batch, size: int) -> dict[str, float]:
    """What is noted of one optimizer step over eight sequences in micro-batches of `size`."""
    pieces = 8 // size
    trainer.args.gradient_accumulation_steps = trainer.args.steps_per_generation = pieces
    trainer._metrics["train"].clear()
    parts = [{n: t[i : i + size] for n, t in batch.items()} for i in range(0, 8, size)]
    for step, part in enumerate(trainer._with_counts(parts)):
        trainer._step = step
        trainer._compute_loss(trainer.model, part)
    found = dict(trainer._metrics["train"])
    assert all(len(values) == 1 for values in found.values())
    return {name: values[0] for name, values in found.items()}


@pytest.mark.parametrize("masked", [False, True])
def test_figures_of_a_step_do_not_depend_on_its_micro_batches(tiny_folder, tmp_path, masked: bool) -> None:
    """Every figure of 8x1, 4x2, 2x4 and 1x8 against sums over all tokens by hand; responses cut off teach the critic alone."""
    trainer = step_of_eight(tiny_folder, tmp_path, 8)
    trainer.model.train()
    batch = fixed_rollout(trainer)
    batch["old_logprobs"] = batch["old_logprobs"] - 0.3
    mask = batch["response_mask"]
    if masked:
        batch["policy_mask"] = mask & (torch.arange(8).unsqueeze(1) >= 5)
    acts = batch.get("policy_mask", mask)
    with torch.no_grad():
        new = rollout.read(trainer.model, batch, temperature=1.0).logprobs.double()
    ratio, a = (new - batch["old_logprobs"]).exp()[acts], batch["advantages"].double()[acts]
    low, high = trainer.epsilon_low, trainer.epsilon_high
    wanted = {
        "val/ratio": ratio.mean(),
        "val/ratio_var": ratio.var(correction=0),
        "policy/ratio_max": ratio.max(),
        "policy/ratios_clamped": torch.tensor(0.0),
        "policy/approxkl_avg": ratio.log().square().mean() / 2,
        "policy/clipfrac_avg": (((ratio > 1 + high) & (a > 0)) | ((ratio < 1 - low) & (a < 0)))
        .double()
        .mean(),
        "loss/policy_avg": torch.maximum(-a * ratio, -a * ratio.clamp(1 - low, 1 + high)).mean(),
        "policy/first_pass_ratio_error": ((new - batch["old_logprobs"]).exp()[mask] - 1).abs().max(),
    }
    values, old, returns = (x.double()[mask] for x in (0 * new, batch["old_values"], batch["returns"]))
    near = values.clamp(old - 0.2, old + 0.2)
    free, clipped = (values - returns).square(), (near - returns).square()
    wanted["loss/value_avg"] = torch.maximum(free, clipped).mean() / 2
    wanted["val/clipfrac_avg"] = (clipped > free).double().mean()
    for size in (8, 4, 2, 1):
        found = figures_of_step(trainer, batch, size)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found[name] == pytest.approx(float(value), rel=2e-5, abs=1e-6), (name, size)


def test_figures_of_a_step_are_those_of_all_processes(tiny_folder, tmp_path, monkeypatch) -> None:
    """Another process is as far from its old policy as can be: this one leaves the rollout too (K-6)."""
    trainer = step_of_eight(tiny_folder, tmp_path, 8, target_kl=1.0)
    trainer.model.train()
    batch = trainer._with_counts([fixed_rollout(trainer)])[0]
    trainer._compute_loss(trainer.model, batch)
    assert trainer._left_early is False
    alone = {name: values[0] for name, values in trainer._metrics["train"].items()}
    trainer._metrics["train"].clear()
    n = float(batch["response_mask"].sum())
    other = torch.tensor([[n, 2.0, n, n, -1.0, 0.0, 10 * n, 2 * n, 6 * n, 3.0, 9.0, -1.0]]).double()
    gather = trainer.accelerator.gather
    # The figures of a step are the one thing gathered as a row of twelve.
    monkeypatch.setattr(
        trainer.accelerator,
        "gather",
        lambda x: torch.cat([x, other]) if x.shape == other.shape else gather(x),
    )
    trainer._compute_loss(trainer.model, batch)
    told = {name: values[0] for name, values in trainer._metrics["train"].items()}
    assert trainer._left_early is True
    assert told["policy/approxkl_avg"] == pytest.approx((alone["policy/approxkl_avg"] + 10) / 2, rel=1e-5)
    assert told["val/ratio"] == pytest.approx((alone["val/ratio"] + 3) / 2, rel=1e-5)
    assert told["loss/policy_avg"] == pytest.approx(alone["loss/policy_avg"] - 1, rel=1e-5)
    assert (told["policy/ratio_max"], told["policy/ratios_clamped"]) == (9.0, 3.0)


def test_a_ratio_that_meets_the_guard_is_counted(tiny_folder, tmp_path) -> None:
    """L-3: clamped, and said so."""
    trainer = step_of_eight(tiny_folder, tmp_path, 8)
    trainer.model.train()
    batch = fixed_rollout(trainer)
    batch["old_logprobs"][0, 0] -= 50.0
    assert figures_of_step(trainer, batch, 2)["policy/ratios_clamped"] == 1


def test_a_line_of_the_log_keeps_maxima_and_counters(tiny_folder, tmp_path) -> None:
    trainer = build(tiny_folder, tmp_path)
    trainer.model.train()
    notes = {
        "episode": [8.0, 16.0],
        "policy/ratio_max": [1.5, 92.6, 1.0],
        "policy/first_pass_ratio_error": [0.25, float("nan"), 0.0],
        "policy/ratios_clamped": [2.0, 3.0],
        "val/ratio": [1.0, 2.0, float("nan")],
        "objective/scores": [float("nan")],
    }
    for name, values in notes.items():
        trainer._metrics["train"][name].extend(values)
    trainer.log({})
    told = trainer.state.log_history[-1]
    assert [told[name] for name in notes] == [16.0, 92.6, 0.25, 5.0, 1.5, None]


def test_episodes_are_counted_by_rollouts_and_not_by_lines(tiny_folder, tmp_path) -> None:
    """Two lines over four rollouts of eight: 16 and 32 episodes."""
    trainer = build(tiny_folder, tmp_path, max_steps=16, logging_steps=8)
    trainer.train()
    assert logged(trainer, "episode") == [16.0, 32.0]
    assert logged(trainer, "lr") == pytest.approx(
        [1e-3 * 9 / 16 + 1e-3 * 7 / 32, 1e-3 * 1 / 16 + 1e-3 * 7 / 32]
    )


def test_the_critic_is_saved_before_older_checkpoints_go(tiny_folder, tmp_path, monkeypatch) -> None:
    trainer = build(
        tiny_folder, tmp_path, save_strategy="steps", save_steps=4, save_total_limit=1, max_steps=8
    )
    seen: list[bool] = []
    original = Trainer._save_checkpoint

    def spy(self, model, trial):
        folder = tmp_path / "out" / f"checkpoint-{self.state.global_step}"
        seen.append((folder / CRITIC_FILE).is_file())
        return original(self, model, trial)

    monkeypatch.setattr(Trainer, "_save_checkpoint", spy)
    trainer.train()
    assert seen == [True, True]
    assert [folder.name for folder in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-8"]
    assert not list((tmp_path / "out").glob("*/*.part"))


def test_a_checkpoint_without_the_critic_is_refused_by_name(tiny_folder, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint-8 has no critic\.pt"):
        build(tiny_folder, tmp_path)._load_critic(str(tmp_path / "checkpoint-8"))


def test_a_kept_first_pass_is_compared_with_another_reading(tiny_folder, tmp_path) -> None:
    """With dropout on, a reading that is compared with itself would find nothing wrong."""
    errors = {}
    for dropout in (0.0, 0.5):
        model = AutoModelForCausalLM.from_pretrained(tiny_folder, attention_dropout=dropout)
        trainer = build(
            tiny_folder,
            tmp_path,
            model=model,
            disable_dropout=False,
            per_device_train_batch_size=8,
            steps_per_generation=1,
            max_steps=1,
        )
        trainer.train()
        errors[dropout] = logged(trainer, "policy/first_pass_ratio_error")[0]
    assert 0 <= errors[0.0] < 1e-5
    assert errors[0.5] > 1e-4


def test_kl_is_told_without_a_penalty_where_the_reference_costs_nothing(tiny_folder, tmp_path) -> None:
    trainer = build(tiny_folder, tmp_path, lora=True, critic="adapter", beta=0.0, max_steps=8)
    trainer.train()
    first, second = logged(trainer, "objective/kl")
    assert abs(first) < 1e-6 < abs(second)
    assert logged(trainer, "objective/non_score_reward") == [0.0, 0.0]
