"""
Proximal policy optimisation for language models, on TRL's online-trainer core.

Prompts, reward functions, generation, PEFT, data order, checkpoints and logging are `trl.RLOOTrainer`'s. PPO adds three parts:
`rollout_step` turns responses into a rollout, `update_step` turns a rollout into gradients, and `checkpoint` evaluates, saves and
logs. The trainer knows neither recipes nor run folders.

Sources: Schulman et al. 2017 (1707.06347); Stiennon et al. 2020 (2009.01325); Ouyang et al. 2022 (2203.02155);
Huang et al. 2024 (2403.17031).
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Sampler
from trl import RLOOTrainer

from instructkit.ppo import limits, metrics, rollout
from instructkit.ppo.checkpoint import Keeping, State
from instructkit.ppo.config import PPOConfig
from instructkit.ppo.ptx import Row, TextRows
from instructkit.ppo.rollout import Reading, add_reader
from instructkit.ppo.rollout_step import Sampling, TokenRewards
from instructkit.ppo.update_step import Updating


def frozen_copy(model: Any) -> Any:
    """A frozen copy of the policy; None where the policy is an adapter, or only a name that TRL will load."""
    if not isinstance(model, nn.Module) or hasattr(model, "peft_config"):
        return None
    return copy.deepcopy(model).requires_grad_(False).eval()


@contextlib.contextmanager
def without_reference(config: PPOConfig) -> Iterator[None]:
    """TRL builds no reference of its own while the coefficient is 0."""
    beta, config.beta = config.beta, 0.0
    try:
        yield
    finally:
        config.beta = beta


SEAMS = (
    "_generate",
    "_generate_single_turn",
    "_calculate_rewards",
    "_generate_and_score_completions",
    "_get_train_sampler",
    "_prepare_inputs",
    "_compute_loss",
    "create_optimizer",
    "evaluate",
    "_clip_grad_norm",
    "_save_checkpoint",
    "_load_from_checkpoint",
    "_load_best_model",
)


class PPOTrainer(Sampling, Updating, Keeping, RLOOTrainer):
    """
    PPO with a critic on prompts of text or messages.

    Args:
        critic: a `HeadCritic`, an `AdapterCritic` or a `SeparateCritic`.
        reference: context manager factory under which the policy's model is the reference; None takes TRL's way
            (a frozen copy after full fine-tuning, the adapter switched off or its copy under PEFT).
        settle: called once the trainer is built, to undo what TRL did to the adapters; needed with `reference`.
        for_sampling: context manager factory under which the policy's model samples faster, without being another policy.
        text_rows: token rows for PPO-ptx, `input_ids` and `labels` each; needed when `ptx_coef` is above 0.
        judges: functions of prompts and answers, asked about held-out prompts alone, under the name `eval_NAME`.
        keep_answers: told, on the first process, what was answered in each evaluation: the step, the held-out set, and the
            fields of `evaluation.Measured.answers`, a row a prompt.
        **kwargs: as for `trl.RLOOTrainer`; `args` is a `PPOConfig`.

    Raises:
        TypeError: when `args` is not a `PPOConfig`, or this TRL lacks a seam that PPO stands on.
        ValueError: when `ptx_coef` is above 0 and there is no text, when nothing would be trained, or when a vLLM server tells
            log-probabilities of another law than the one it samples from.
    """

    _tag_names = ["trl", "ppo"]
    _name = "PPO"
    # The losses divide by the tokens of the whole optimizer step, so Trainer must not divide by the accumulation again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        critic: nn.Module,
        reference: Callable[[Any], contextlib.AbstractContextManager] | None = None,
        settle: Callable[[Any], None] | None = None,
        for_sampling: Callable[[Any], contextlib.AbstractContextManager] | None = None,
        text_rows: Sequence[Row] = (),
        judges: dict[str, Callable[..., list[float]]] | None = None,
        keep_answers: Callable[[list[dict[str, Any]]], None] | None = None,
        **kwargs: Any,
    ) -> None:
        config = _checked(kwargs, text_rows)
        if critic.reads == "role" and config.ddp_find_unused_parameters is None:
            config.ddp_find_unused_parameters = True  # each backward pass reaches one role's adapter alone
        # TRL would reload the reference by the model's name, which is the bare base where a parent was merged into it.
        frozen = frozen_copy(args[0] if args else kwargs.get("model")) if config.beta else None
        with without_reference(config) if frozen is not None else contextlib.nullcontext():
            super().__init__(*args, **kwargs)
        self.beta = config.beta
        self._reference, self._settle, self.judges = reference, settle, judges or {}
        self._for_sampling = for_sampling or contextlib.nullcontext
        self._keep_answers = keep_answers
        self._refuse_what_would_train_nothing()
        self._refuse_logprobs_of_another_law()
        self._take_models(critic, frozen)
        self._token_rewards = TokenRewards()
        self.reward_funcs = [self._token_rewards.wrapped(f, i) for i, f in enumerate(self.reward_funcs)]
        self.state_of_ppo = State(beta=config.beta)
        self.text = TextRows(text_rows, seed=config.seed, pad_id=self._tokenizer.pad_token_id)
        self._begin()
        self.watch()

    def _take_models(self, critic: nn.Module, frozen: Any) -> None:
        """Policy, reference and critic as PPO needs them: taught to read, without dropout, what is trained in float32."""
        if self._settle is not None:
            self._settle(self.model)
        is_peft = hasattr(self.model, "peft_config")
        if is_peft:  # TRL casts adapters of a quantised base to bfloat16
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        if self.args.disable_dropout:
            for model in (self.model, critic, *([frozen] if frozen is not None else [])):
                rollout.silence_dropout(model)
        add_reader(self.model.get_base_model() if is_peft else self.model)
        if frozen is not None:
            add_reader(frozen)
            self.ref_model = self.accelerator.prepare_model(frozen, evaluation_mode=True)
        if self.args.gradient_checkpointing and critic.reads == "tokens":
            critic.checkpoint()
        self.critic = self.accelerator.prepare_model(critic.to(self.accelerator.device))

    def _begin(self) -> None:
        """What is known of the rollout and the optimizer step at hand: nothing yet."""
        self._rollout: dict[str, Tensor] | None = None
        # A rollout's own reading with its graph, where that is the first pass of its update (see `_read_rollout`).
        self._kept: tuple[Reading, Tensor] | None = None
        # Of the first rollout, where its own was kept: what the first pass is compared with.
        self._second_reading: Tensor | None = None
        self._checked = False
        self._of_step = metrics.OfStep()
        self._left_early, self._norm_of_text = False, 0.0
        self._started = self._rollout_done = time.perf_counter()

    def _refuse_what_would_train_nothing(self) -> None:
        """Fewer prompts than a rollout, or a warm-up as long as the run: Trainer would end without a word."""
        prompts = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        size, rollouts = self.args.prompts_per_rollout, self.args.rollouts(prompts)
        if prompts is not None and prompts < size:
            raise ValueError(
                f"{prompts} prompts are fewer than one rollout of {size} (per_device_train_batch_size x "
                "steps_per_generation x processes): nothing would be trained"
            )
        if 0 < rollouts <= self.args.value_warmup_steps:
            raise ValueError(
                f"value_warmup_steps is {self.args.value_warmup_steps} and the run has {rollouts:g} rollouts: the policy "
                "would never be trained; lower the one or raise max_steps"
            )

    def _refuse_logprobs_of_another_law(self) -> None:
        """A colocated engine is built by TRL with the right ones; a server is asked, and all processes refuse alike."""
        weighs = self.use_vllm and self.args.vllm_importance_sampling_correction
        if not weighs or self.vllm_mode != "server":
            return
        told = []
        if self.accelerator.is_main_process:  # the only one with a client
            told.append(self.vllm_generation.vllm_client.get_server_info()["model_config"]["logprobs_mode"])
        fault = limits.fault_of_sampler(self.gather_rows(told)[0], self.temperature)
        if fault is not None:
            raise ValueError(fault)

    def gather_rows(self, mine: list[Any]) -> list[Any]:
        """Plain values of all processes, those of the first before those of the second."""
        return gather_object(mine)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """TRL's order of prompts, drawn for each pass from seed and pass alone, so that a resumed run meets the same prompts."""
        sampler = super()._get_train_sampler(dataset)
        return _ByPass(sampler, self.args.seed, lambda: int(self.state.epoch or 0))

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Tensor]:
        """Hand out micro-batches of the current rollout, shuffled afresh for every epoch over it."""
        pieces = self.args.steps_per_generation
        if self._rollout is None or self._step % (pieces * self.num_iterations) == 0:
            started = time.perf_counter()
            if self._rollout is None:
                self._started = (
                    started  # what was done before the first rollout is no part of its episodes' time
                )
            else:
                self._note("time/update", started - self._rollout_done)
            self._rollout = self._generate_and_score_completions(generation_batch)
            self._rollout_done, self._left_early = time.perf_counter(), False
        if self._step % pieces == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._epoch(self._rollout)
        return self._buffered_inputs[self._step % pieces]

    def _epoch(self, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The micro-batches of one epoch, each told how much its whole optimizer step holds, on all processes (L-5)."""
        if self._kept is not None:  # one micro-batch, in the order in which it was read
            return self._with_counts([batch])
        pieces, size = self.args.steps_per_generation, self.args.gradient_accumulation_steps
        return self._with_counts(rollout.mini_batches(batch, pieces=pieces, accumulation=size))

    def _with_counts(self, parts: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        size = self.args.gradient_accumulation_steps
        masks = [(part["response_mask"], part.get("policy_mask", part["response_mask"])) for part in parts]
        counted = [
            torch.stack([x for mask in pair for x in (mask.sum(), mask.any(1).sum())]) for pair in masks
        ]
        counts = self.accelerator.reduce(torch.stack(counted).view(-1, size, 4).sum(1), reduction="sum")
        names = ("tokens_in_step", "responses_in_step", "policy_tokens_in_step", "policy_responses_in_step")
        return [{**part, **dict(zip(names, counts[i // size], strict=True))} for i, part in enumerate(parts)]


def _checked(given: dict[str, Any], text_rows: Sequence[Row]) -> PPOConfig:
    """The settings among the arguments of a trainer, once nothing is known that would stop it."""
    missing = [name for name in SEAMS if not hasattr(RLOOTrainer, name)]
    if missing:
        raise TypeError(f"this TRL has no RLOOTrainer.{missing[0]}; PPO needs trl>=1.16,<1.17")
    config = given.get("args")
    if not isinstance(config, PPOConfig):
        raise TypeError("PPOTrainer needs args=PPOConfig(...)")
    if config.ptx_coef and not text_rows:
        raise ValueError("ptx_coef is above 0, and there is no text to learn beside PPO")
    if given.get("optimizers", (None, None)) != (None, None):
        raise ValueError("PPOTrainer makes its own optimizer, which has the critic's weights in it")
    return config


class _ByPass(Sampler):
    """A sampler whose order depends on the pass over the data, however often and by whom it was wrapped or restarted."""

    def __init__(self, inner: Any, seed: int, current: Callable[[], int]) -> None:
        self.inner, self.seed, self.current = inner, seed, current

    def __iter__(self) -> Iterator[int]:
        if self.inner.shuffle:
            self.inner.generator.manual_seed(self.seed + self.current())
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)
