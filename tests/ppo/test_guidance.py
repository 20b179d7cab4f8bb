"""Advice: each sign is told once, after enough evidence, and a healthy run is told nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from instructkit.ppo.advice import RULES, WINDOW, Guidance

CONFIG = {"value_warmup_steps": 0, "cliprange_value": 0.2, "gamma": 1.0, "bf16": False, "fp16": False}
STEPS = {"num_iterations": 2, "mini_batches": 2}  # of a rollout: 4
HEALTHY = {
    "objective/kl": 3.0,
    "objective/scores": 1.0,
    "policy/first_pass_ratio_error": 1e-6,
    "completions/truncated_fraction": 0.05,
    "policy/clipfrac_avg": 0.1,
    "policy/approxkl_avg": 0.002,
    "val/explained_variance": 0.4,
    "policy/entropy_avg": 1.5,
    "policy/score_decay": 0.3,
    "val/return_std": 0.6,
}


def told(
    figures: dict[str, float],
    *,
    times: int = 3 * WINDOW,
    first: dict[str, float] | None = None,
    every: int = 4,
    **config,
) -> list[str]:
    said: list[str] = []
    guidance = Guidance(said.append)
    settings = SimpleNamespace(**{**CONFIG, **STEPS, **config})
    for i in range(times):
        logs = {**HEALTHY, **((first if i == 0 and first else None) or figures)}
        guidance.on_log(settings, SimpleNamespace(global_step=(i + 1) * every), None, logs=logs)
    return said


def test_a_healthy_run_is_told_nothing() -> None:
    assert told({}) == []


@pytest.mark.parametrize(
    ("figures", "config", "says"),
    [
        ({"policy/first_pass_ratio_error": 0.1}, {}, "dropout"),
        ({"objective/kl": -0.5}, {}, "sampling filters"),
        ({"completions/truncated_fraction": 0.5}, {}, "max_completion_length"),
        ({"policy/clipfrac_avg": 0.5}, {}, "learning_rate"),
        ({"policy/approxkl_avg": 0.5}, {}, "target_kl"),
        ({"val/explained_variance": -0.2}, {}, "value_warmup_steps"),
        ({"policy/score_decay": 0.001}, {}, "length_adaptive_alpha"),
        ({"policy/score_decay": 0.0}, {}, "length_adaptive_alpha"),  # lam 0: nothing at all arrives
        ({"val/return_std": 3.0}, {}, "cliprange_value"),
        ({}, {"gamma": 0.99}, "gamma: 1"),
    ],
)
def test_each_sign_is_told_once_with_what_to_change(figures: dict, config: dict, says: str) -> None:
    said = told(figures, **config)
    assert len(said) == 1
    assert says in said[0]


def test_the_self_check_names_its_four_causes_and_lets_rounding_pass() -> None:
    """1.7e-5: SmolLM2-135M in float32, read in two layouts of a batch."""
    (said,) = told({"policy/first_pass_ratio_error": 0.1})
    assert all(cause in said for cause in ("dropout", "temperature", "positions", "number formats"))
    assert told({"policy/first_pass_ratio_error": 1.7e-5}) == []
    assert told({"policy/first_pass_ratio_error": 2e-4})
    assert told({"policy/first_pass_ratio_error": 5e-3}, bf16=True) == []


def test_a_resumed_run_goes_on_from_what_was_logged_and_told_before() -> None:
    said: list[str] = []
    guidance, settings = Guidance(said.append), SimpleNamespace(**CONFIG, **STEPS)
    before = [
        {**HEALTHY, "policy/entropy_avg": 2.0, "policy/clipfrac_avg": 0.5, "step": i} for i in range(WINDOW)
    ]
    guidance.on_train_begin(
        settings, SimpleNamespace(log_history=[*before, {"eval_loss": 1.0, "step": 9}]), None
    )
    assert said == []
    for step in range(WINDOW):
        logs = {**HEALTHY, "policy/entropy_avg": 0.05, "policy/clipfrac_avg": 0.5}
        guidance.on_log(settings, SimpleNamespace(global_step=10 + step), None, logs=logs)
    assert len(said) == 1 and "entropy" in said[0]


def test_entropy_is_compared_with_its_start() -> None:
    assert "beta" in told({"policy/entropy_avg": 0.05}, first={"policy/entropy_avg": 2.0})[0]
    assert told({"policy/entropy_avg": 0.05}, first={"policy/entropy_avg": 0.06}) == []


def test_one_bad_figure_is_not_yet_a_sign() -> None:
    assert told({}, first={"objective/kl": -5.0, "completions/truncated_fraction": 0.7}) == []


def test_a_critic_is_given_its_warm_up() -> None:
    assert told({"val/explained_variance": -0.2}, times=WINDOW + 1) == []
    assert told({"val/explained_variance": -0.2}, value_warmup_steps=50) == []


def test_a_switched_off_value_clip_throttles_nothing() -> None:
    assert told({"val/return_std": 3.0}, cliprange_value=None) == []


def test_a_rollout_is_not_a_line_of_the_log() -> None:
    """16 rollouts, told in 8 lines: past the warm-up of 5 and the 10 beyond it."""
    blind = {"val/explained_variance": -0.2}
    assert told(blind, times=8, every=8, value_warmup_steps=5)
    assert told(blind, times=16, every=2, value_warmup_steps=5) == []


def test_every_rule_was_seen_to_speak() -> None:
    everything = {
        "policy/first_pass_ratio_error": 0.1,
        "objective/kl": -0.5,
        "completions/truncated_fraction": 0.5,
        "policy/clipfrac_avg": 0.5,
        "policy/approxkl_avg": 0.5,
        "val/explained_variance": -0.2,
        "policy/entropy_avg": 0.05,
        "policy/score_decay": 0.0,
        "val/return_std": 3.0,
    }
    said = told(everything, first={"policy/entropy_avg": 2.0}, gamma=0.9)
    assert {text.split(":")[0] for text in said} == {rule.name for rule in RULES}
    assert len(said) == len(RULES)
