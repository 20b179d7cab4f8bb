"""The settings of PPO: TRL's online settings under their own names, plus what PPO adds."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import RLOOConfig

from instructkit.ppo import limits

# What a pass keeps for its backward pass grows with its tokens, while on a CPU speed does not: with SmolLM2-135M (LoRA, 16 rows
# of 129 tokens, two cores) a step takes as long in halves, and PPO's peak falls from 6.1 to 4.4 GiB, with the critic's adapter
# from 7.0 to 5.5 (benchmarks/results/ppo_profile.md).
TOKENS_PER_PASS_ON_CPU = 1_536


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

    learning_rate: float = field(
        default=3e-6, metadata={"help": "Learning rate of the policy; a recipe with `lora:` begins at 1e-5."}
    )
    value_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate of the critic; a recipe with `lora:` begins at 5e-5."}
    )
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
    lam_value: float | None = field(
        default=None, metadata={"help": "Lambda of the critic's targets; null takes `lam` for both."}
    )
    length_adaptive_alpha: float | None = field(
        default=None,
        metadata={"help": "Instead of `lam`, 1 - 1/(alpha x length) for each response (VAPO: 0.05)."},
    )
    dual_clip: float | None = field(
        default=None,
        metadata={
            "help": "Bound on the loss of bad actions, in advantages (3 is usual); null switches it off."
        },
    )
    loss_aggregation: str = field(
        default="token",
        metadata={
            "help": "Mean over the tokens of an optimizer step, or over its responses: token or sequence."
        },
    )
    entropy_coef: float = field(
        default=0.0, metadata={"help": "Weight of an entropy bonus, score units per nat."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float | None = field(
        default=0.2,
        metadata={"help": "Clip range of the value, in units of the score; null switches it off."},
    )
    normalize_advantages: bool = field(
        default=True, metadata={"help": "Whiten advantages over all response tokens of the rollout."}
    )
    whiten_rewards: bool = field(
        default=False, metadata={"help": "Divide token rewards by their deviation, keeping their mean."}
    )
    kl_estimator: str = field(
        default="k1", metadata={"help": "Estimator of the KL penalty in the reward; only k1 is right there."}
    )
    target_kl_per_sequence: float | None = field(
        default=None,
        metadata={
            "help": "KL that an adaptive `beta` steers to, in nats a response; null keeps `beta` fixed."
        },
    )
    kl_horizon: int = field(
        default=10_000,
        metadata={"help": "Episodes over which the adaptive `beta` reacts (Ziegler et al. 2019)."},
    )
    target_kl: float | None = field(
        default=None,
        metadata={
            "help": "Leave the other epochs of a rollout when KL(old, new) per token exceeds 1.5 times this."
        },
    )
    missing_eos_penalty: float = field(
        default=1.0,
        metadata={
            "help": "Penalty for a response that did not end, in units of the used score; 0 in a recipe whose rewards are all "
            "functions and that names neither this nor a mode."
        },
    )
    missing_eos_mode: str = field(
        default="subtract", metadata={"help": "One of subtract, replace, scale, mask, overlong, none."}
    )
    overlong_buffer: int | None = field(
        default=None,
        metadata={
            "help": "For overlong: the last tokens before max_completion_length, within which the penalty grows from 0."
        },
    )
    length_penalty: float = field(
        default=0.0, metadata={"help": "Taken from the used score for each token of a response."}
    )
    score_clip: float | None = field(
        default=None, metadata={"help": "Scores are clamped to plus or minus this; null switches it off."}
    )
    score_scaling: bool = field(
        default=False,
        metadata={"help": "Divide scores by the deviation of all scores so far, before clipping."},
    )
    score_norm: bool = field(
        default=False,
        metadata={"help": "With score_scaling, subtract the mean of all scores so far as well."},
    )
    value_warmup_steps: int = field(
        default=0,
        metadata={"help": "First rollouts in which only the critic learns; the policy stays untouched."},
    )
    ptx_coef: float = field(
        default=0.0, metadata={"help": "Weight of the loss on pretraining or SFT text mixed in (PPO-ptx)."}
    )
    ptx_rows_per_episode: int = field(
        default=1, metadata={"help": "Rows of that text for each episode (InstructGPT: 8)."}
    )
    max_length_of_text: int = field(
        default=512, metadata={"help": "Longest row of that text, in tokens; what is longer is cut."}
    )
    reading_batch_size: int = field(
        default=32, metadata={"help": "Responses that are scored at once where no gradients are kept."}
    )
    tokens_per_pass: int | None = field(
        default=None,
        metadata={
            "help": "Tokens, padding included, that one backward pass holds; a micro-batch with more is read in parts, with "
            "the same gradient. null: 1536 on a CPU, no bound on a GPU."
        },
    )
    vllm_importance_sampling_correction: bool = field(
        default=True,
        metadata={"help": "Weigh tokens that vLLM sampled by policy over sampler (off-policy, 3.9)."},
    )
    vllm_importance_sampling_cap: float = field(default=2.0, metadata={"help": "Largest such weight."})

    def __post_init__(self) -> None:
        """
        Check the batch arithmetic of PPO on top of TRL's own checks.

        Raises:
            ValueError: when a setting contradicts another or lies outside its range.
        """
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "objective/rlhf_reward", True
        try:
            super().__post_init__()
        except ValueError as error:
            # RLOO's last check asks for two generations, because its baseline is the other answers. PPO's baseline
            # is the critic. Every other check of TRL has run by then; a contract test holds that order.
            if self.num_generations != 1 or "at least 2 generations" not in str(error):
                raise
        for _, told in limits.faults(vars(self)):
            raise ValueError(told)

    @property
    def mini_batches(self) -> int:
        """Optimizer steps in one epoch over a rollout."""
        return self.steps_per_generation // self.gradient_accumulation_steps

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts that one rollout answers, over all processes."""
        return self.generation_batch_size // self.num_generations

    def rollouts(self, prompts: int | None) -> float:
        """How many rollouts a run over so many prompts makes; `prompts` is None where nobody can count them."""
        if self.max_steps > 0:
            return self.max_steps / (self.num_iterations * self.mini_batches)
        return (
            float("inf") if prompts is None else self.num_train_epochs * (prompts // self.prompts_per_rollout)
        )
