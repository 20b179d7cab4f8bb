"""
Signs that a run goes wrong, told once each, with what to change.

The thresholds are rules of thumb, from the first updates that Huang et al. measured ("The N Implementation Details of RLHF with
PPO", 2023) and from common practice; each can be wrong for a run, so they advise and never stop one.
"""

from __future__ import annotations

import logging
import statistics
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger(__name__)

WINDOW = 5  # logged figures that must agree before anything is said
# Of a ratio from 1, the largest over the tokens of a rollout. In float32, rounding alone between two layouts of a batch was
# measured as 1.2e-5 to 1.7e-5 (SmolLM2-135M); on the embedded model bfloat16 as 0.02, a temperature of 0.95 in place of 1 as
# 0.11, attention dropout of 0.05 as 0.57.
FIRST_PASS, FIRST_PASS_OF_16_BITS = 1e-4, 1e-2

Figures = dict[str, deque]


@dataclass(frozen=True)
class Rule:
    """A sign, and what to do about it; `broken` sees the last logged values of every figure."""

    name: str
    broken: Callable[[Figures, Any], bool]
    advice: str


def _mean(figures: Figures, name: str) -> float | None:
    """Mean of the last `WINDOW` values; None before there are so many."""
    values = figures[name]
    return statistics.fmean(values) if len(values) == WINDOW else None


def _above(name: str, limit: float) -> Callable[[Figures, Any], bool]:
    return lambda figures, config: (_mean(figures, name) or 0.0) > limit


def _negative_kl(figures: Figures, config: Any) -> bool:
    values = figures["objective/kl"]
    return len(values) == WINDOW and all(value < -0.05 for value in values)


def _critic_blind(figures: Figures, config: Any) -> bool:
    warm = (figures["rollouts"] or [0])[-1] > config.value_warmup_steps + 2 * WINDOW
    mean = _mean(figures, "val/explained_variance")
    return warm and mean is not None and mean < 0


def _entropy_gone(figures: Figures, config: Any) -> bool:
    first, mean = figures["first policy/entropy_avg"], _mean(figures, "policy/entropy_avg")
    return bool(first) and mean is not None and mean < 0.1 * first[0]


def _values_throttled(figures: Figures, config: Any) -> bool:
    clip, mean = config.cliprange_value, _mean(figures, "val/return_std")
    return clip is not None and mean is not None and mean > 5 * clip


def _score_fades(figures: Figures, config: Any) -> bool:
    mean = _mean(figures, "policy/score_decay")
    return mean is not None and mean < 0.01


def _first_pass(figures: Figures, config: Any) -> bool:
    values = figures["policy/first_pass_ratio_error"]
    return bool(values) and max(values) > (
        FIRST_PASS_OF_16_BITS if config.bf16 or config.fp16 else FIRST_PASS
    )


RULES = (
    Rule(
        "the first pass over a rollout has ratios other than 1",
        _first_pass,
        "the rollout and its update do not score alike. The usual causes: dropout is on, the temperatures differ, positions "
        "are wrong under padding, or the number formats differ",
    ),
    Rule(
        "the KL to the reference stays negative",
        _negative_kl,
        "a KL cannot be: responses are not drawn from the policy that scores them; look for sampling filters (top-k, top-p, "
        "penalties) or a wrong mask",
    ),
    Rule(
        "more than 20 % of responses are cut off",
        _above("completions/truncated_fraction", 0.2),
        "raise max_completion_length, or missing_eos_penalty if answers should be shorter",
    ),
    Rule(
        "more than 20 % of tokens are clipped",
        _above("policy/clipfrac_avg", 0.2),
        "the policy moves too far on one rollout: lower learning_rate or num_iterations, or enlarge the batch",
    ),
    Rule(
        "the approximate KL of one update is above 0.1 nats a token",
        _above("policy/approxkl_avg", 0.1),
        "lower learning_rate or num_iterations, or set target_kl",
    ),
    Rule(
        "the critic explains less than nothing of the returns",
        _critic_blind,
        "raise value_learning_rate, or give it value_warmup_steps; advantages are noise until it is above 0",
    ),
    Rule(
        "the policy's entropy has fallen below a tenth of its start",
        _entropy_gone,
        "it says one thing always: raise beta, lower learning_rate, or look at the samples for a hacked reward",
    ),
    Rule(
        "a score at the end hardly reaches the first token (lam ** length below 0.01)",
        _score_fades,
        "raise lam towards 1, or set length_adaptive_alpha",
    ),
    Rule(
        "returns spread over more than 5 times cliprange_value",
        _values_throttled,
        "the critic cannot follow: raise cliprange_value to the spread of the scores, set it to null, or set score_scaling",
    ),
    Rule(
        "gamma is not 1",
        lambda figures, config: config.gamma != 1.0,
        "a discount rewards brevity and changes the objective; set gamma: 1",
    ),
)


class Guidance(TrainerCallback):
    """
    Watches what a trainer logs.

    Args:
        warn: told each piece of advice, once a run.
    """

    def __init__(self, warn: Callable[[str], None] = logger.warning) -> None:
        self.warn = warn
        self.told: set[str] = set()
        self.figures: Figures = defaultdict(lambda: deque(maxlen=WINDOW))

    def on_train_begin(self, args, state, control, **kwargs):
        """Of a run that is resumed, take in what was logged before it was interrupted, and told then."""
        for logs in state.log_history:
            self._take_in(args, logs["step"], logs)
            self.told.update(rule.name for rule in self._broken(args))

    def on_log(self, args, state, control, logs=None, **kwargs):  # noqa: D102 - transformers' signature
        if not self._take_in(args, state.global_step, logs or {}):
            return
        for rule in self._broken(args):
            self.told.add(rule.name)
            self.warn(f"{rule.name}: {rule.advice}")

    def _broken(self, args: Any) -> list[Rule]:
        return [rule for rule in RULES if rule.name not in self.told and rule.broken(self.figures, args)]

    def _take_in(self, args: Any, step: int, logs: dict[str, Any]) -> bool:
        """Keep the figures of a line of the log, if it is one of a rollout."""
        if "objective/scores" not in logs:
            return False
        for name, value in logs.items():
            if isinstance(value, int | float) and value == value:
                self.figures[name].append(value)
                if not self.figures["first " + name]:
                    self.figures["first " + name].append(value)
        self.figures["rollouts"].append(step / (args.num_iterations * args.mini_batches))
        return True
