"""
Proximal policy optimisation for language models, on TRL's online-trainer core.

Prompts, reward functions, generation, PEFT, data order, checkpoints and logging are `trl.RLOOTrainer`'s. What PPO adds
stands here: the critic, the KL penalty per token, generalised advantage estimation and the two clipped losses, each from the pure
functions beside this file. The trainer knows neither recipes nor run folders.

Sources: Schulman et al. 2017 (1707.06347); Stiennon et al. 2020 (2009.01325); Ouyang et al. 2022 (2203.02155);
Huang et al. 2024 (2403.17031).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import RLOOTrainer
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict, use_adapter

from instructkit.ppo import kl, losses, rollout
from instructkit.ppo.advantages import explained_variance, gae
from instructkit.ppo.config import PPOConfig
from instructkit.ppo.critic import copy_state, load_state
from instructkit.ppo.masks import masked_mean, whiten
from instructkit.ppo.reference import frozen_copy, without_reference

CRITIC_FILE = "critic.pt"
SEAMS = (
    "_generate",
    "_calculate_rewards",
    "_generate_and_score_completions",
    "_prepare_inputs",
    "_compute_loss",
    "create_optimizer",
    "_clip_grad_norm",
    "_save_checkpoint",
    "_load_from_checkpoint",
)


class PPOTrainer(RLOOTrainer):
    """
    PPO with a critic on prompts of text or messages.

    Args:
        critic: a `HeadCritic` or a `SeparateCritic`.
        reference: context manager factory under which the policy's model is the reference; None takes TRL's way
            (a frozen copy after full fine-tuning, the adapter switched off or its copy under PEFT).
        settle: called once the trainer is built, to undo what TRL did to the adapters; needed with `reference`.
        **kwargs: as for `trl.RLOOTrainer`; `args` is a `PPOConfig`.

    Raises:
        TypeError: when `args` is not a `PPOConfig`, or this TRL lacks a seam that PPO stands on.
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
        **kwargs: Any,
    ) -> None:
        missing = [name for name in SEAMS if not hasattr(RLOOTrainer, name)]
        if missing:
            raise TypeError(f"this TRL has no RLOOTrainer.{missing[0]}; PPO needs trl>=1.16,<1.17")
        if not isinstance(kwargs.get("args"), PPOConfig):
            raise TypeError("PPOTrainer needs args=PPOConfig(...)")
        config = kwargs["args"]
        # TRL would reload the reference by the model's name, which is the bare base where a parent was merged into it.
        frozen = frozen_copy(kwargs.get("model")) if config.beta else None
        with without_reference(config) if frozen is not None else contextlib.nullcontext():
            super().__init__(*args, **kwargs)
        self.beta = config.beta
        if frozen is not None:
            self.ref_model = self.accelerator.prepare_model(frozen, evaluation_mode=True)
        if settle is not None:
            settle(self.model)
        self._reference = reference
        self.critic = self.accelerator.prepare_model(critic.to(self.accelerator.device))
        self._rollout: dict[str, Tensor] | None = None
        self._rollouts_done = 0
        self._episodes = 0
        self.add_callback(_SaveOnRolloutBorders(self.args.num_iterations * self.args.mini_batches))

    # -- rollout ------------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Tensor]:
        """Hand out micro-batches of the current rollout, shuffled afresh for every epoch over it."""
        if not self.model.training:
            scored = self._generate_and_score_completions(generation_batch)
            return {**scored, "tokens_in_step": scored["response_mask"].sum()}
        pieces = self.args.steps_per_generation
        if self._rollout is None or self._step % (pieces * self.num_iterations) == 0:
            self._rollout = self._generate_and_score_completions(generation_batch)
            self._rollouts_done += 1
        if self._step % pieces == 0 or self._buffered_inputs is None:
            shuffled = shuffle_sequence_dict(self._rollout)
            self._buffered_inputs = self._with_token_counts(split_tensor_dict(shuffled, pieces))
        return self._buffered_inputs[self._step % pieces]

    def _with_token_counts(self, pieces: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Tell every micro-batch how many response tokens its whole optimizer step holds, on all processes (L-5)."""
        size = self.args.gradient_accumulation_steps
        counts = torch.stack([piece["response_mask"].sum() for piece in pieces]).view(-1, size).sum(1)
        counts = self.accelerator.reduce(counts, reduction="sum")
        return [{**piece, "tokens_in_step": counts[i // size]} for i, piece in enumerate(pieces)]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Sample one response a prompt and work out everything that stays fixed while the policy is updated on it."""
        prompts = [row["prompt"] for row in inputs]
        with rollout.own_law(self.accelerator.unwrap_model(self.model), list(self.eos_token_ids)):
            prompt_ids, completion_ids, completions = self._generate(prompts)
        batch = rollout.collate(prompt_ids, completion_ids, pad_id=self._tokenizer.pad_token_id)
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
        raw, used = self._scores(inputs, prompts, completions, completion_ids)
        with torch.no_grad():
            old, values, reference = self._read_in_pieces(batch)
        mask = batch["response_mask"]
        rewards = kl.token_rewards(used, old.logprobs, reference, mask, beta=self.beta)
        advantages, returns = gae(rewards, values, mask, gamma=self.args.gamma, lam=self.args.lam)
        self._record_rollout(raw, used, old, reference, values, advantages, returns, mask)
        if self.normalize_advantages:
            advantages = whiten(advantages, mask, reduce=self._sum_over_processes)
        return {
            **batch,
            "old_logprobs": old.logprobs,
            "old_values": values,
            "advantages": advantages,
            "returns": returns,
        }

    def _scores(self, inputs, prompts, completions, completion_ids) -> tuple[Tensor, Tensor]:
        """Raw and used score of each local response, `(B,)`: weighted sum, clipped, then the penalty for no end."""
        per_function = self._calculate_rewards(inputs, prompts, completions, completion_ids)
        for i, name in enumerate(self.reward_func_names):
            self._note(f"rewards/{name}/mean", per_function[:, i].nanmean())
        weighted = (per_function * self.reward_weights.to(per_function.device)).nansum(dim=1)
        start = self.accelerator.process_index * len(prompts)
        raw = weighted[start : start + len(prompts)]
        clip = self.args.score_clip
        used = raw if clip is None else raw.clamp(-clip, clip)
        ended = rollout.finished(completion_ids, self.eos_token_ids).to(raw.device)
        used = kl.penalise_missing_eos(
            used, ended, penalty=self.args.missing_eos_penalty, mode=self.args.missing_eos_mode
        )
        self._note("completions/eos_fraction", ended.float().mean())
        return raw, used

    def _read_in_pieces(self, batch: dict[str, Tensor]) -> tuple[rollout.Reading, Tensor, Tensor]:
        """Old log-probabilities, old values and the reference's log-probabilities, micro-batch by micro-batch."""
        pieces = rollout.in_micro_batches(batch, self.args.per_device_train_batch_size)
        with self.accelerator.autocast():
            read = [self._read(self.model, piece) for piece in pieces]
            values = torch.cat(
                [self._values(piece, reading) for piece, reading in zip(pieces, read, strict=True)]
            )
            reference = self._penalised_against(pieces, read)
        logprobs = torch.cat([reading.logprobs for reading in read])
        entropies = torch.cat([reading.entropies for reading in read])
        return rollout.Reading(logprobs, entropies, None), values.float(), reference

    def _read(self, model: Any, batch: dict[str, Tensor]) -> rollout.Reading:
        hidden = self._unwrapped_critic().reads_policy_hidden
        return rollout.read(model, batch, temperature=self.temperature, hidden=hidden)

    def _values(self, batch: dict[str, Tensor], reading: rollout.Reading) -> Tensor:
        """The critic's values `(B, T)`, from the policy's hidden states or from its own reading of the tokens."""
        if self._unwrapped_critic().reads_policy_hidden:
            return self.critic(reading.hidden)
        return self.critic(*rollout.joined(batch), batch["completion_ids"].size(1))

    def _unwrapped_critic(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.critic)

    def _penalised_against(self, pieces: list[dict[str, Tensor]], read: list[rollout.Reading]) -> Tensor:
        """The reference's log-probabilities, `(B, T)`; the policy's own when there is no KL penalty."""
        if self.beta == 0.0:
            return torch.cat([reading.logprobs for reading in read])
        return torch.cat([self.reference_logprobs(piece) for piece in pieces])

    def reference_logprobs(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-probabilities `(B, T)` of the responses of a batch under the frozen reference, in nats."""
        model = self.ref_model if self.ref_model is not None else self.model
        with torch.no_grad(), self._as_reference():
            return rollout.read(model, batch, temperature=self.temperature).logprobs

    def _as_reference(self) -> contextlib.AbstractContextManager:
        if self.ref_model is not None:
            return contextlib.nullcontext()
        policy = self.accelerator.unwrap_model(self.model)
        if self._reference is not None:
            return self._reference(policy)
        return use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None)

    # -- update -------------------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch; Trainer clears the gradients of its model after a step, and the critic's are ours to clear."""
        if self._step % self.args.gradient_accumulation_steps == 0:
            self.critic.zero_grad()
        return super().training_step(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """`policy loss + vf_coef * value loss`, each a sum over tokens by the tokens of the optimizer step."""
        warming_up = self.model.training and 0 < self._rollouts_done <= self.args.value_warmup_steps
        with torch.no_grad() if warming_up else contextlib.nullcontext():
            reading = self._read(model, inputs)
        values = self._values(inputs, reading).float()
        mask, tokens = inputs["response_mask"], inputs["tokens_in_step"]
        value = losses.value_loss(
            values,
            inputs["old_values"],
            inputs["returns"],
            mask,
            clip=self.args.cliprange_value,
            denominator=tokens,
        )
        policy = losses.policy_loss(
            reading.logprobs,
            inputs["old_logprobs"],
            inputs["advantages"],
            mask,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            denominator=tokens,
        )
        self._record_update(policy, value, reading, inputs)
        loss = self.args.vf_coef * value.loss + (0.0 if warming_up else policy.loss)
        return (
            loss * self.accelerator.num_processes
        )  # DDP averages gradients; the denominator is already global

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """One optimizer, two learning rates: the policy's groups as Trainer makes them, then the critic's."""
        if self.optimizer is None:
            super().create_optimizer(*args, **kwargs)
            trained = [p for p in self.critic.parameters() if p.requires_grad]
            self.optimizer.add_param_group({"params": trained, "lr": self.args.value_learning_rate})
        return self.optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip policy and critic each by their own norm, so that neither shrinks the other's step."""
        policy = super()._clip_grad_norm(model)
        value = self.accelerator.clip_grad_norm_(self.critic.parameters(), self.args.max_grad_norm)
        self._note("grad_norm/policy", policy)
        self._note("grad_norm/value", value)
        return policy

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.accelerator.is_main_process:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            counters = {"step": self._step, "rollouts": self._rollouts_done, "episodes": self._episodes}
            torch.save({"critic": copy_state(self._unwrapped_critic()), **counters}, folder / CRITIC_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = torch.load(Path(resume_from_checkpoint) / CRITIC_FILE, map_location="cpu", weights_only=True)
        load_state(self._unwrapped_critic(), saved["critic"])
        self._step, self._rollouts_done, self._episodes = saved["step"], saved["rollouts"], saved["episodes"]

    # -- what is logged -----------------------------------------------------------------------------------------------

    def _note(self, name: str, value: Any) -> None:
        mode = "train" if self.model.training else "eval"
        self._metrics[mode][name].append(float(value))

    def _sum_over_processes(self, statistics: Tensor) -> Tensor:
        return self.accelerator.reduce(statistics, reduction="sum")

    def _record_rollout(self, raw, used, old, reference, values, advantages, returns, mask) -> None:
        """The figures of one rollout, under TRL 1.12's names with corrected definitions (all masked)."""
        log_ratio = (old.logprobs - reference) * mask
        sequence_kl = log_ratio.sum(1)
        gather = self.accelerator.gather
        self._episodes += len(gather(raw))
        penalty = -self.beta * gather(sequence_kl).mean()
        score = gather(used).mean()
        self._note("objective/kl", gather(sequence_kl).mean())
        self._note("objective/entropy", gather((-old.logprobs * mask).sum(1)).mean())
        self._note("objective/non_score_reward", penalty)
        self._note("objective/scores", score)
        self._note("objective/scores_raw", gather(raw).mean())
        self._note("objective/scores_std", gather(used).std(correction=0))
        self._note("objective/rlhf_reward", score + penalty)
        self._note("objective/kl_coef", self.beta)
        self._note("val/explained_variance", explained_variance(returns, values, mask))
        self._note("val/value_mean", masked_mean(values, mask))
        self._note("val/return_mean", masked_mean(returns, mask))
        self._note("policy/advantage_mean", masked_mean(advantages, mask))
        self._note("policy/entropy_avg", masked_mean(old.entropies, mask))
        self._note("episode", self._episodes)

    def _record_update(
        self, policy: Any, value: Any, reading: rollout.Reading, inputs: dict[str, Tensor]
    ) -> None:
        """The figures of one micro-batch of the update."""
        share = float(inputs["tokens_in_step"] / inputs["response_mask"].sum().clamp(min=1))
        self._note("loss/policy_avg", policy.loss.detach() * share)
        self._note("loss/value_avg", value.loss.detach() * share)
        self._note("policy/clipfrac_avg", policy.clip_fraction)
        self._note("policy/approxkl_avg", policy.approx_kl)
        self._note("val/clipfrac_avg", value.clip_fraction)
        self._note("val/ratio", policy.ratio_mean)
        if self.model.training and self._step % (self.args.steps_per_generation * self.num_iterations) == 0:
            gap = ((reading.logprobs - inputs["old_logprobs"]).abs() * inputs["response_mask"]).max()
            self._note("policy/first_pass_ratio_error", gap.detach())


class _SaveOnRolloutBorders(TrainerCallback):
    """A checkpoint holds no rollout, so one asked for within a rollout waits for its end."""

    def __init__(self, steps_per_rollout: int) -> None:
        self.steps_per_rollout = steps_per_rollout
        self.waiting = False

    def on_step_end(self, args, state, control, **kwargs):
        self.waiting = self.waiting or control.should_save
        control.should_save = self.waiting and state.global_step % self.steps_per_rollout == 0
        self.waiting = self.waiting and not control.should_save
        return control
