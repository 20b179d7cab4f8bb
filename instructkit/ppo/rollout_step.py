"""The first half of PPO's loop: responses, their scores, and everything that stays fixed while the policy is updated on them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import get_callable_name, is_async_callable, use_adapter

from instructkit.ppo import kl, losses, metrics, rollout, scores
from instructkit.ppo.advantages import advantages_and_returns, length_adaptive_lam
from instructkit.ppo.masks import whiten
from instructkit.ppo.rollout import Reading
from instructkit.ppo.scores import weighted


class TokenRewards:
    """
    What reward functions gave to single tokens in the rollout at hand, function by function.

    TRL takes one number a response. A function that returns a list for a response is asked through `wrapped`, which
    keeps the list and hands on its sum.
    """

    def __init__(self) -> None:
        self._kept: dict[int, list[list[float] | None]] = {}

    def wrapped(self, function: Callable[..., Any], index: int) -> Callable[..., Any]:
        """The function as TRL wants it: a number a response, sync or async as before, under the same name."""
        if isinstance(function, torch.nn.Module):
            return function
        if is_async_callable(function):

            async def ask(**arguments: Any) -> list[Any]:
                return self._summed(index, await function(**arguments))

        else:

            def ask(**arguments: Any) -> list[Any]:
                return self._summed(index, function(**arguments))

        ask.__name__ = get_callable_name(function)
        return ask

    def _summed(self, index: int, answers: Sequence[Any]) -> list[float | None]:
        lists = [list(map(float, answer)) if _is_list(answer) else None for answer in answers]
        self._kept[index] = lists
        return [answer if found is None else sum(found) for answer, found in zip(answers, lists, strict=True)]

    def take(
        self, lengths: Sequence[int], total: int, weights: Sequence[float], names: Sequence[str]
    ) -> Tensor | None:
        """
        The weighted rewards of single tokens, and forget them.

        Args:
            lengths: tokens of each response, its end token included.
            total: T.
            weights, names: of the reward functions.

        Returns:
            `(B, T)` float32, or None when no function gave any.

        Raises:
            ValueError: when a list is not as long as its response.
        """
        kept, self._kept = self._kept, {}
        if not any(found for lists in kept.values() for found in lists):
            return None
        rewards = torch.zeros(len(lengths), total)
        for index, lists in kept.items():
            for row, found in enumerate(lists):
                if found is None:
                    continue
                if len(found) != lengths[row]:
                    raise ValueError(
                        f"the reward function {names[index]} gave {len(found)} rewards for a response of {lengths[row]} "
                        "tokens; give one number for the whole response, or one for each of `completion_ids`"
                    )
                rewards[row, : len(found)] += weights[index] * torch.tensor(found)
        return rewards


def _is_list(answer: Any) -> bool:
    return isinstance(answer, list | tuple) or (isinstance(answer, Tensor) and answer.dim() == 1)


class Sampling:
    """Part of `PPOTrainer`: from prompts to a rollout."""

    def sample(self, inputs: list[dict[str, Any]]) -> rollout.Sampled:
        """One response a prompt from the policy, and what the reward functions say of it."""
        prompts = [row["prompt"] for row in inputs]
        started = time.perf_counter()
        policy = self.accelerator.unwrap_model(self.model)
        with rollout.own_law(policy, list(self.eos_token_ids)), self._for_sampling(policy):
            prompt_ids, completion_ids, completions = self._generate(prompts)
        self._note("time/rollout", time.perf_counter() - started)
        batch = rollout.collate(prompt_ids, completion_ids, pad_id=self._tokenizer.pad_token_id)
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
        ended = rollout.finished(completion_ids, self.eos_token_ids).to(self.accelerator.device)
        started = time.perf_counter()
        raw, per_token = self._raw_scores(inputs, prompts, completions, completion_ids)
        self._note("time/score", time.perf_counter() - started)
        given = 0.0 if per_token is None else per_token.sum(1)
        used = self._used_scores(raw - given, ended, batch["response_mask"].sum(1)) + given
        return rollout.Sampled(batch, prompts, completions, raw, used, per_token, ended)

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any) -> list[list[int]]:
        """As TRL; where vLLM samples, keep what it says the tokens' log-probabilities were (3.9)."""
        self._sampler_logprobs = None
        if not (self.use_vllm and self.args.vllm_importance_sampling_correction):
            return super()._generate_single_turn(prompt_ids, *rest)
        return self._from_vllm(prompt_ids, *rest)

    def _from_vllm(self, prompt_ids: Any, *rest: Any) -> list[list[int]]:
        """Sample with vLLM as TRL does, and keep the log-probabilities that TRL drops; `(B)` lists of one number a token."""
        kept: list[Any] = []
        engine, generate = self.vllm_generation, self.vllm_generation.generate

        def keep(**arguments: Any) -> Any:
            found = generate(**arguments)
            kept.append(found[2])
            return found

        engine.logprobs, engine.generate = 0, keep
        try:
            completion_ids = super()._generate_single_turn(prompt_ids, *rest)
        finally:
            engine.generate = generate
        self._sampler_logprobs = [[float(x[0] if isinstance(x, list) else x) for x in row] for row in kept[0]]
        return completion_ids

    def _raw_scores(self, inputs, prompts, completions, completion_ids) -> tuple[Tensor, Tensor | None]:
        """Weighted score of each local response, `(B,)`, and weighted rewards of single tokens, `(B, T)` or None."""
        per_function = self._calculate_rewards(inputs, prompts, completions, completion_ids)
        for i, name in enumerate(self.reward_func_names):
            self._note(f"rewards/{name}/mean", per_function[:, i].nanmean())
            self._note(
                f"rewards/{name}/std", per_function[:, i][~per_function[:, i].isnan()].std(correction=0)
            )
        for name, values in self._pending_metrics.items():  # what functions told by TRL's `log_metric`
            self._note(name, sum(values) / len(values))
        self._pending_metrics.clear()
        self._pending_extra_logs.clear()  # columns of TRL's table of completions, which PPO does not print
        lengths = [len(ids) for ids in completion_ids]
        per_token = self._token_rewards.take(
            lengths, max(lengths), self.reward_weights.tolist(), self.reward_func_names
        )
        start = self.accelerator.process_index * len(prompts)
        raw = weighted(per_function[start : start + len(prompts)], self.reward_weights)
        return raw, None if per_token is None else per_token.to(raw.device)

    def _used_scores(self, raw: Tensor, ended: Tensor, lengths: Tensor) -> Tensor:
        """
        The score that is learned from: scaled, clipped, then charged for a missing end and for length (S-5, S-6).

        Rewards of single tokens stay as they were given: no scale of whole responses is theirs.
        """
        args, used = self.args, raw
        if args.score_scaling:
            if self.model.training:
                self.state_of_ppo.scores.update(raw, self._sum_over_processes)
            used = scores.normalise(used, self.state_of_ppo.scores, centre=args.score_norm)
        if args.score_clip is not None:
            used = used.clamp(-args.score_clip, args.score_clip)
        used = scores.penalise_missing_eos(
            used, ended, penalty=args.missing_eos_penalty, mode=args.missing_eos_mode
        )
        if args.missing_eos_mode == "overlong":
            limits = {"longest": args.max_completion_length, "buffer": args.overlong_buffer}
            used = used - scores.overlong_penalty(lengths, **limits, penalty=args.missing_eos_penalty)
        return used - scores.length_penalty(lengths, per_token=args.length_penalty)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Sample one response a prompt and work out everything that stays fixed while the policy is updated on it."""
        self.state_of_ppo.rollouts += 1
        sampled = self.sample(inputs)
        batch, mask = sampled.batch, sampled.batch["response_mask"]
        started = time.perf_counter()
        old, values, reference = self._read_rollout(batch)
        self._note("time/read", time.perf_counter() - started)
        rewards = self._token_level(sampled, old.logprobs, reference)
        lam = self.args.lam
        if self.args.length_adaptive_alpha:
            lam = length_adaptive_lam(mask, alpha=self.args.length_adaptive_alpha)
        estimates = {"gamma": self.args.gamma, "lam": lam, "lam_value": self.args.lam_value}
        if self._warming_up():
            estimates.update(lam_value=1.0)  # warm-up fits the critic to what really came
        advantages, returns = advantages_and_returns(rewards, values, mask, **estimates)
        self._record_rollout(sampled, old, reference)
        read = (values, advantages, returns, old.entropies, mask)
        self._note_all(metrics.of_estimates(*read, lam, self._sum_over_processes))
        if self.normalize_advantages:
            advantages = whiten(advantages, mask, reduce=self._sum_over_processes)
        self._adapt_beta(old.logprobs, reference, mask)
        fixed = {
            "old_logprobs": old.logprobs,
            "old_values": values,
            "advantages": advantages,
            "returns": returns,
        }
        return {**batch, **fixed, **self._policy_masks(sampled, old.logprobs)}

    def _token_level(self, sampled: rollout.Sampled, logprobs: Tensor, reference: Tensor) -> Tensor:
        """Rewards `(B, T)`: the KL penalty, what functions gave to tokens, and the rest of the score at the end."""
        mask, per_token = sampled.batch["response_mask"], sampled.per_token
        at_end = sampled.used if per_token is None else sampled.used - per_token.sum(1)
        rewards = kl.token_rewards(
            at_end, logprobs, reference, mask, beta=self.state_of_ppo.beta, per_token=per_token
        )
        if self.args.whiten_rewards:
            rewards = whiten(rewards, mask, keep_mean=True, reduce=self._sum_over_processes)
        return rewards

    def _policy_masks(self, sampled: rollout.Sampled, old_logprobs: Tensor) -> dict[str, Tensor]:
        """What the policy loss alone looks at: which tokens, and with which weight."""
        found, mask = {}, sampled.batch["response_mask"]
        if self.args.missing_eos_mode == "mask":
            found["policy_mask"] = mask & sampled.ended.unsqueeze(1)
        if self._sampler_logprobs is not None:
            theirs = rollout.padded(self._sampler_logprobs, mask)
            cap = self.args.vllm_importance_sampling_cap
            found["sampler_weights"] = losses.importance_weights(old_logprobs, theirs, cap=cap)
            gap = torch.where(mask, (old_logprobs - theirs).abs(), 0.0)
            told = {
                "sampling/logp_difference_max": gap.max(),
                "sampling/logp_difference_mean": gap.sum() / mask.sum().clamp(min=1),
                "sampling/importance_ratio": found["sampler_weights"][mask].mean(),
            }
            self._note_all(told, weight=mask.sum())
        return found

    def _adapt_beta(self, logprobs: Tensor, reference: Tensor, mask: Tensor) -> None:
        """Steer the coefficient towards the wanted KL, equally on all processes (K-3)."""
        if (
            self.args.target_kl_per_sequence is None or self._warming_up()
        ):  # a frozen policy has no KL to steer
            return
        observed = self.accelerator.gather(torch.where(mask, kl.k1(logprobs, reference), 0.0).sum(1))
        self.state_of_ppo.beta = kl.next_beta(
            self.state_of_ppo.beta,
            float(observed.mean()),
            target_kl_per_sequence=self.args.target_kl_per_sequence,
            episodes=len(observed),
            horizon=self.args.kl_horizon,
        )

    def _read_rollout(self, batch: dict[str, Tensor]) -> tuple[Reading, Tensor, Tensor]:
        """
        Old log-probabilities, old values and the reference's log-probabilities, `(B, T)` each.

        Where one pass holds a whole rollout and the critic is a head on the policy, the first pass of the update would
        read the same tokens with the same weights again; so this reading keeps its graph and is that pass (R-7).
        """
        alone = self.accelerator.num_processes == 1  # several processes need the update's own pass to meet
        whole = self.args.steps_per_generation == 1 and self._passes_needed(batch) == 1
        once = alone and whole and self._unwrapped_critic().reads == "policy"
        with self.accelerator.autocast():
            if once and not self._warming_up():
                reading = self._read(self.model, batch, entropy=True)
                values = self._values(self.model, batch, reading)
                self._kept = (reading, values)
                if (
                    not self._checked
                ):  # this reading would be compared with itself: read once more, in another layout
                    with torch.no_grad():
                        self._second_reading, self._checked = self._read_in_parts(batch)[0].logprobs, True
                read = Reading(*(x.detach() for x in reading)), values.detach()
            else:
                with torch.no_grad():
                    read = self._read_in_parts(batch)
            started = time.perf_counter()
            reference = self.reference_logprobs(batch) if self.has_reference() else read[0].logprobs
            self._note("time/reference", time.perf_counter() - started)
            return *read, reference

    def _read_in_parts(self, batch: dict[str, Tensor]) -> tuple[Reading, Tensor]:
        parts, shape = [], batch["response_mask"].shape
        for index, part in rollout.by_length(batch, self.args.reading_batch_size):
            reading = self._read(self.model, part, entropy=True)
            parts.append(
                (index, reading.logprobs, reading.entropies, self._values(self.model, part, reading))
            )
        whole = [rollout.put_back([(part[0], part[i]) for part in parts], shape) for i in (1, 2, 3)]
        return Reading(whole[0], whole[1], None), whole[2]

    def _read(self, model: Any, batch: dict[str, Tensor], **wanted: Any) -> Reading:
        return rollout.read(model, batch, temperature=self.temperature, **wanted)

    def _values(self, model: Any, batch: dict[str, Tensor], reading: Reading | None) -> Tensor:
        """The critic's values `(B, T)`: of the policy's states, of its own role's, or of its own body's."""
        critic = self._unwrapped_critic()
        if critic.reads == "policy":
            return self.critic(reading.hidden).float()
        if critic.reads == "role":
            with critic.role(self.accelerator.unwrap_model(self.model)):
                return self.critic(rollout.read_states(model, batch)).float()
        return self.critic(*rollout.joined(batch), batch["completion_ids"].size(1)).float()

    def _unwrapped_critic(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.critic)

    def has_reference(self) -> bool:
        """Whether a KL can be told: with a penalty, and without one where the reference is the policy's own base."""
        return bool(self.beta) or self._reference is not None

    def reference_logprobs(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-probabilities `(B, T)` of the responses of a batch under the frozen reference, in nats."""
        model = self.ref_model if self.ref_model is not None else self.model
        with torch.no_grad(), self._as_reference():
            parts = [
                (index, self._read(model, part).logprobs)
                for index, part in rollout.by_length(batch, self.args.reading_batch_size)
            ]
        return rollout.put_back(parts, batch["response_mask"].shape)

    def _as_reference(self) -> contextlib.AbstractContextManager:
        if self.ref_model is not None:
            return contextlib.nullcontext()
        policy = self.accelerator.unwrap_model(self.model)
        if self._reference is not None:
            return self._reference(policy)
        return use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None)
