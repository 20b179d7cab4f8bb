"""The second half of PPO's loop: a rollout becomes gradients, for the policy and for the critic."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from instructkit.ppo import losses, metrics, rollout
from instructkit.ppo.config import TOKENS_PER_PASS_ON_CPU
from instructkit.ppo.masks import masked_mean
from instructkit.ppo.ptx import learned_tokens
from instructkit.ppo.rollout import Reading

EARLY_STOP_FACTOR = 1.5  # of `target_kl`, as in TRL 0.11


class Updating:
    """Part of `PPOTrainer`: from micro-batches to optimizer steps."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch; Trainer clears the gradients of its model after a step, and the critic's are ours to clear."""
        if self._opens_a_step():
            self.critic.zero_grad()
        return super().training_step(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """
        `policy loss + vf_coef * value loss`, each a sum over tokens by the tokens of the optimizer step.

        A micro-batch that is too large for one pass is learned in parts; the last part's backward pass is Trainer's.
        """
        if self._left_early:  # no gradient at all, so the optimizer leaves every weight where it is
            return self._nothing()
        if self._opens_a_step():
            self._of_step = metrics.OfStep()
            if self.args.ptx_coef and not self._warming_up():
                # Before all others: DDP takes one forward pass and its backward at a time.
                self._learn_text(model)
        parts = [inputs] if self._kept is not None else self._in_passes(inputs)
        done = 0.0
        for part in parts:
            # DDP averages gradients, and the denominators are those of all processes.
            loss = self._learn(model, part) * self.accelerator.num_processes
            if part is not parts[-1]:
                self.accelerator.backward(loss)
                done = done + loss.detach()
        if self._closes_a_step():
            self._tell_step()
        return loss + done

    def _opens_a_step(self) -> bool:
        return self._step % self.args.gradient_accumulation_steps == 0

    def _closes_a_step(self) -> bool:
        return (self._step + 1) % self.args.gradient_accumulation_steps == 0

    def _in_passes(self, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """A micro-batch in parts that each fit one pass; as many on every process, since DDP meets in each."""
        count = torch.tensor(self._passes_needed(batch), device=self.accelerator.device)
        return rollout.in_passes(batch, int(self.accelerator.gather(count).max()))

    def _passes_needed(self, batch: dict[str, Tensor]) -> int:
        on_cpu = self.accelerator.device.type == "cpu"
        most = self.args.tokens_per_pass or (TOKENS_PER_PASS_ON_CPU if on_cpu else None)
        return rollout.passes_needed(batch, most)

    def _learn(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of what one pass holds; its figures are kept for those of the step."""
        if self._unwrapped_critic().reads == "role":
            value = self._learn_in_role(
                model, inputs
            )  # its gradient is there already; the figure is of the whole loss
            loss = self._nothing() + self.args.vf_coef * value.loss
            reading = None if self._warming_up() else self._read_for_update(model, inputs)
            kept = None
        else:
            kept = self._first_pass()
            reading, values = kept or self._read_both(model, inputs)
            value = self._value_loss(values, inputs)
            loss = self.args.vf_coef * value.loss
        policy = None
        if not self._warming_up():
            policy = self._policy_loss(reading, inputs)
            loss = loss + policy.loss
            if self.args.entropy_coef:
                loss = loss - self.args.entropy_coef * self._entropy(reading, inputs)
        mask, _ = self._policy_tokens(inputs)
        gap = None if policy is None else self._first_gap(reading, inputs, itself=kept is not None)
        self._of_step.add(policy, value, mask.sum(), inputs["response_mask"].sum(), gap)
        return loss

    def _nothing(self) -> Tensor:
        return torch.zeros((), device=self.accelerator.device, requires_grad=True)

    def _warming_up(self) -> bool:
        """Whether this rollout trains the critic alone."""
        return self.model.training and 0 < self.state_of_ppo.rollouts <= self.args.value_warmup_steps

    # -- readings with gradients --------------------------------------------------------------------------------------

    def _first_pass(self) -> tuple[Reading, Tensor] | None:
        """The rollout's own reading, once, where it was kept with its graph."""
        kept, self._kept = self._kept, None
        return kept

    def _read_for_update(self, model: Any, inputs: dict[str, Tensor]) -> Reading:
        return self._read(model, inputs, entropy=self.args.entropy_coef != 0)

    def _read_both(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Reading, Tensor]:
        with torch.no_grad() if self._warming_up() else contextlib.nullcontext():
            reading = self._read_for_update(model, inputs)
        return reading, self._values(model, inputs, reading)

    def _learn_in_role(self, model: Any, inputs: dict[str, Tensor]) -> losses.ValueLoss:
        """
        The backward pass of a critic that shares the backbone, before the backbone is the policy again.

        Gradient checkpointing repeats a forward pass in whatever role the backbone is in when the gradient arrives: with
        both losses in one backward pass the policy's gradient would be computed under the critic's adapter, silently.
        """
        critic = self._unwrapped_critic()
        with critic.role(self.accelerator.unwrap_model(model)):
            values = self.critic(rollout.read_states(model, inputs)).float()
            value = self._value_loss(values, inputs)
            self.accelerator.backward(self.args.vf_coef * value.loss * self.accelerator.num_processes)
        return losses.ValueLoss(value.loss.detach(), value.clip_fraction)

    # -- losses -------------------------------------------------------------------------------------------------------

    def _value_loss(self, values: Tensor, inputs: dict[str, Tensor]) -> losses.ValueLoss:
        mask, tokens = inputs["response_mask"], inputs["tokens_in_step"]
        return losses.value_loss(
            values,
            inputs["old_values"],
            inputs["returns"],
            mask,
            clip=self.args.cliprange_value,
            weights=self._weights(mask, tokens, inputs["responses_in_step"]),
            denominator=tokens,
        )

    def _policy_loss(self, reading: Reading, inputs: dict[str, Tensor]) -> losses.PolicyLoss:
        mask, tokens = self._policy_tokens(inputs)
        weights = self._weights(mask, tokens, inputs["policy_responses_in_step"])
        if "sampler_weights" in inputs:
            weights = inputs["sampler_weights"] * (1.0 if weights is None else weights)
        return losses.policy_loss(
            reading.logprobs,
            inputs["old_logprobs"],
            inputs["advantages"],
            mask,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            dual_clip=self.args.dual_clip,
            weights=weights,
            denominator=tokens,
        )

    def _entropy(self, reading: Reading, inputs: dict[str, Tensor]) -> Tensor:
        """Entropy of the policy in nats, over the same mean of tokens or responses as its loss."""
        mask, tokens = self._policy_tokens(inputs)
        weights = self._weights(mask, tokens, inputs["policy_responses_in_step"])
        return masked_mean(reading.entropies * (1.0 if weights is None else weights), mask, tokens)

    def _policy_tokens(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The actions that the policy learns from, and how many the optimizer step holds."""
        return inputs.get("policy_mask", inputs["response_mask"]), inputs["policy_tokens_in_step"]

    def _weights(self, mask: Tensor, tokens: Tensor, responses: Tensor) -> Tensor | None:
        if self.args.loss_aggregation == "token":
            return None
        return losses.sequence_weights(mask, tokens=tokens, sequences=responses.clamp(min=1))

    def _learn_text(self, model: Any) -> None:
        """PPO-ptx: the negative log-likelihood of the step's text, with backward passes of its own."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        count = self._text_rows_of_step()
        first = self._step // self.args.gradient_accumulation_steps * world * count
        tokens = learned_tokens(self.text.draw(first, world * count))
        told = torch.zeros((), device=self.accelerator.device)
        for start in range(0, count, self.args.per_device_train_batch_size):
            size = min(self.args.per_device_train_batch_size, count - start)
            batch = self.text.batch(self.text.draw(first + rank * count + start, size))
            batch = {name: x.to(self.accelerator.device) for name, x in batch.items()}
            for part in self._in_passes(batch):
                logprobs = rollout.read(model, part, temperature=1.0).logprobs
                loss = -masked_mean(logprobs, part["response_mask"], tokens)
                self.accelerator.backward(self.args.ptx_coef * loss * world)
                told = told + loss.detach()
        self._note("loss/ptx", self._sum_over_processes(told))
        self._norm_of_text = self._norm_over_processes()
        self._note("grad_norm/ptx", self._norm_of_text)

    def _text_rows_of_step(self) -> int:
        """Rows of text on each process: `ptx_rows_per_episode` an episode, spread over its visits, rounded up."""
        episodes = self.args.gradient_accumulation_steps * self.args.per_device_train_batch_size
        return math.ceil(episodes * self.args.ptx_rows_per_episode / self.num_iterations)

    def _norm_over_processes(self) -> float:
        """Norm of the policy's gradient as it stands, averaged over processes whether or not they have met already."""
        gradients = [p.grad for p in self.policy_parameters() if p.grad is not None]
        squares = [self.accelerator.reduce(g.detach().clone(), "mean").square().sum() for g in gradients]
        return float(torch.stack(squares).sum().sqrt())

    # -- optimizer ----------------------------------------------------------------------------------------------------

    def policy_parameters(self) -> list[torch.nn.Parameter]:
        """What the policy trains: everything trainable in its model but the critic's adapter."""
        theirs = {id(p) for p in self.critic_parameters()}
        return [p for p in self.model.parameters() if p.requires_grad and id(p) not in theirs]

    def critic_parameters(self) -> list[torch.nn.Parameter]:
        """What the critic trains: its own module, and its adapter where it stands on the policy's backbone."""
        own = [p for p in self.critic.parameters() if p.requires_grad]
        critic = self._unwrapped_critic()
        return own + (critic.adapter_parameters(self.model) if critic.reads == "role" else [])

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """One optimizer, two learning rates: the policy's groups as Trainer makes them, then the critic's."""
        if self.optimizer is None:
            theirs = self.critic_parameters()
            for parameter in theirs:
                parameter.requires_grad_(False)
            super().create_optimizer(*args, **kwargs)
            for parameter in theirs:
                parameter.requires_grad_(True)
            settings = {"lr": self.args.value_learning_rate, "weight_decay": self.args.weight_decay}
            self.optimizer.add_param_group({"params": theirs, **settings})
        return self.optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        """
        Clip policy and critic each by their own norm, so that neither shrinks the other's step.

        The specification (O-opt-4) asks for one norm over both. This departs from it: the two losses have units of their own,
        and under one norm a critic far from its targets would slow the policy down.
        """
        policy = self.accelerator.clip_grad_norm_(self.policy_parameters(), self.args.max_grad_norm)
        value = self.accelerator.clip_grad_norm_(self.critic_parameters(), self.args.max_grad_norm)
        if not self._left_early:  # after that no step is taken, and norms of 0 would drown those that were
            if not self._warming_up():
                self._note("grad_norm/policy", policy)
            self._note("grad_norm/value", value)
        if self._norm_of_text:
            self._note("grad_norm/ptx_ratio", self._norm_of_text / float(policy))
            self._norm_of_text = 0.0
        self._note("lr", self.optimizer.param_groups[0]["lr"])
        self._note("lr/value", self.optimizer.param_groups[-1]["lr"])
        return policy

    # -- what is logged -----------------------------------------------------------------------------------------------

    def _tell_step(self) -> None:
        """
        The figures of an optimizer step, once; after one that went too far, no further one on this rollout.

        All processes have the same figures, so they decide alike.
        """
        told = self._of_step.told(self.accelerator.gather)
        for name, value in told.items():
            self._note(name, value)
        if self.args.target_kl is not None and not self._warming_up():
            far = float(told.get("policy/approxkl_avg", 0.0))
            self._left_early = far > EARLY_STOP_FACTOR * self.args.target_kl
            self._note("policy/left_early", self._left_early)

    def _first_gap(self, reading: Reading, inputs: dict[str, Tensor], *, itself: bool) -> Tensor | None:
        """
        How far the ratios of a rollout's first step are from 1, which is how sampling and training differ (3.12).

        Args:
            itself: whether this is the very reading that the old log-probabilities come from: it shows nothing beside itself.
        """
        into_rollout = self._step % (self.args.steps_per_generation * self.num_iterations)
        if into_rollout >= self.args.gradient_accumulation_steps:
            return None
        before, self._second_reading = self._second_reading, None
        if before is None:
            if itself:
                return None
            before = inputs["old_logprobs"]
        gap = torch.where(inputs["response_mask"], reading.logprobs.detach() - before, 0.0)
        return torch.expm1(gap).abs().max()
