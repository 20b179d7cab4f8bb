"""The settings of PPO: TRL's online settings under their own names, plus what PPO adds."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import RLOOConfig

MISSING_EOS_MODES = ("subtract", "replace", "scale", "none")


@dataclass
class PPOConfig(RLOOConfig):
    """
    Settings of [`PPOTrainer`]: those of `trl.RLOOConfig`, with PPO's defaults, plus the fields below.

    Names inherited from TRL carry PPO's meaning: `beta` is the KL coefficient (of the k1 penalty in each token's
    reward, score units per nat), `epsilon`/`epsilon_high` the clip range of the policy ratio, `num_iterations` the
    epochs over one rollout, `steps_per_generation` over `gradient_accumulation_steps` the mini-batches of one epoch,
    `max_completion_length` the longest response in tokens.

    Defaults follow Huang et al. 2024 (2403.17031), "The N+ Implementation Details of RLHF with PPO", section 3;
    Adam's epsilon of 1e-5 follows "The N Implementation Details of RLHF with PPO" (2023).
    """

    learning_rate: float = field(default=3e-6, metadata={"help": "Learning rate of the policy."})
    value_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of the critic."})
    adam_epsilon: float = field(default=1e-5, metadata={"help": "Epsilon of Adam, both parameter groups."})
    max_grad_norm: float = field(
        default=1.0, metadata={"help": "Largest gradient norm; policy and critic each."}
    )
    beta: float = field(
        default=0.05, metadata={"help": "KL coefficient of the k1 penalty in each token's reward."}
    )
    num_iterations: int = field(
        default=4, metadata={"help": "Epochs over each rollout, freshly shuffled each."}
    )
    num_generations: int | None = field(
        default=1, metadata={"help": "Responses per prompt; PPO needs only one."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Dropout off in rollout and update (R-6)."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token; other than 1 rewards brevity."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float | None = field(
        default=0.2,
        metadata={"help": "Clip range of the value, in units of the score; null switches it off."},
    )
    normalize_advantages: bool = field(
        default=True, metadata={"help": "Whiten advantages over all response tokens of the rollout."}
    )
    missing_eos_penalty: float = field(
        default=1.0, metadata={"help": "Penalty for a response that did not end, in units of the used score."}
    )
    missing_eos_mode: str = field(
        default="subtract", metadata={"help": f"One of {', '.join(MISSING_EOS_MODES)}."}
    )
    score_clip: float | None = field(
        default=None, metadata={"help": "Scores are clamped to plus or minus this; null switches it off."}
    )
    value_warmup_steps: int = field(
        default=0,
        metadata={"help": "First rollouts in which only the critic learns; the policy stays untouched."},
    )

    def __post_init__(self) -> None:
        """
        Check the batch arithmetic of PPO on top of TRL's own checks.

        Raises:
            ValueError: when a setting contradicts another or lies outside its range.
        """
        try:
            super().__post_init__()
        except ValueError as error:
            # RLOO's last check asks for two generations, because its baseline is the other answers. PPO's baseline
            # is the critic. Every other check of TRL has run by then; a contract test holds that order.
            if self.num_generations != 1 or "at least 2 generations" not in str(error):
                raise
        if self.missing_eos_mode not in MISSING_EOS_MODES:
            raise ValueError(
                f"missing_eos_mode is {self.missing_eos_mode!r}; one of {', '.join(MISSING_EOS_MODES)}"
            )
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation ({self.steps_per_generation}) must be a multiple of "
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}), so that no optimizer step "
                "mixes two rollouts"
            )
        self._refuse_what_ppo_would_ignore_or_missample()
        if not (0 <= self.lam <= 1 and 0 < self.gamma <= 1):
            raise ValueError(f"lam ({self.lam}) must lie in [0, 1] and gamma ({self.gamma}) in (0, 1]")

    def _refuse_what_ppo_would_ignore_or_missample(self) -> None:
        """Fields of TRL that PPO would ignore, and filters that make the sampled law another than the scored one (R-3)."""
        extra = self.generation_kwargs or {}
        filters = {
            "top_p": self.top_p != 1.0,
            "top_k": self.top_k not in (0, None),
            "min_p": self.min_p is not None,
            "repetition_penalty": self.repetition_penalty != 1.0,
            "generation_kwargs": isinstance(extra, str) or bool(set(extra) - {"cache_implementation"}),
        }
        for name in (name for name, is_on in filters.items() if is_on):
            raise ValueError(
                f"{name} is set; PPO scores the whole distribution, so it must sample from all of it: leave {name} out"
            )
        instead = {
            "mask_truncated_completions": (self.mask_truncated_completions, "use missing_eos_penalty"),
            "reward_clip_range": (self.reward_clip_range is not None, "use score_clip"),
            "sync_ref_model": (self.sync_ref_model, "the reference of PPO stays where it is; leave it out"),
        }
        for name, (is_on, remedy) in instead.items():
            if is_on:
                raise ValueError(f"{name} has no effect in PPO: {remedy}")

    @property
    def mini_batches(self) -> int:
        """Optimizer steps in one epoch over a rollout."""
        return self.steps_per_generation // self.gradient_accumulation_steps
