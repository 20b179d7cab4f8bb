"""What has to last: held-out measurements, checkpoints to go on from, and figures for the log."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from instructkit.ppo import evaluation, metrics, rollout
from instructkit.ppo.advice import Guidance
from instructkit.ppo.critic import copy_state, load_state
from instructkit.ppo.rollout import Reading
from instructkit.ppo.scores import RunningMoments


@dataclass
class State:
    """
    Counters and coefficients of a run; saved on rollout borders, so that no half-used rollout need be kept.

    Attributes:
        beta: the KL coefficient in force.
        rollouts, episodes: done so far, episodes over all processes.
        scores: moments of all raw scores seen in training.
    """

    beta: float
    rollouts: int = 0
    episodes: int = 0
    scores: RunningMoments = field(default_factory=RunningMoments)

    def saved(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> State:
        """The state that `saved` wrote down."""
        return cls(**{**saved, "scores": RunningMoments(**saved["scores"])})


CRITIC_FILE = "critic.pt"


class Keeping:
    """Part of `PPOTrainer`: evaluation, checkpoints and the log."""

    def watch(self) -> None:
        """Save and evaluate between rollouts only, and advise, unless the caller brought an adviser of its own."""
        self.add_callback(_OnRolloutBorders(self.args.num_iterations * self.args.mini_batches))
        if not any(isinstance(callback, Guidance) for callback in self.callback_handler.callbacks):
            self.add_callback(Guidance())

    # -- held-out prompts ---------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """
        Answer held-out prompts and tell score, KL and length as `eval_NAME`; training goes on as if nothing had been asked.

        Args:
            eval_dataset: rows with a `prompt`, or several such sets by name; the trainer's own when None.
            ignore_keys: of no use here; part of Trainer's interface.
            metric_key_prefix: in front of each name.

        Raises:
            ValueError: when there are no held-out prompts.
        """
        asked = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(asked, dict):
            found = [
                self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
                for name, part in asked.items()
            ]
            return {name: value for told in found for name, value in told.items()}
        rows = list(asked or [])
        if not rows:
            raise ValueError("there are no held-out prompts to answer; give the trainer an eval_dataset")
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), evaluation.own_randomness(self.args.seed + self.accelerator.process_index):
                found, answers = evaluation.measure(self, rows, self.judges)
            self._metrics["eval"].clear()  # TRL's notes of them, averaged by batch instead of by response
            told = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
            self.log(dict(told))
            if self._keep_answers is not None and self.accelerator.is_main_process:
                place = {"step": self.state.global_step, "set": metric_key_prefix}
                self._keep_answers([{**place, **answer} for answer in answers])
        finally:
            self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, told)
        return told

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The critic's file first: Trainer's last act is to delete older checkpoints, so this one has to be whole by then."""
        if self.accelerator.is_main_process:
            folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            saved = {"critic": copy_state(self._unwrapped_critic()), "state": self.state_of_ppo.saved()}
            _write_whole({**saved, "step": self._step}, folder / CRITIC_FILE)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = self._load_critic(resume_from_checkpoint)
        self.state_of_ppo, self._step = State.restored(saved["state"]), saved["step"]

    def _load_best_model(self) -> None:
        """The policy of the best checkpoint, and the critic that belongs to it; Trainer would load one adapter alone."""
        super()._load_from_checkpoint(self.state.best_model_checkpoint)
        self._load_critic(self.state.best_model_checkpoint)

    def _load_critic(self, checkpoint: str) -> dict[str, Any]:
        if not (Path(checkpoint) / CRITIC_FILE).is_file():
            raise ValueError(f"{checkpoint} has no {CRITIC_FILE}: it is half a checkpoint, or not one of PPO")
        saved = torch.load(Path(checkpoint) / CRITIC_FILE, map_location="cpu", weights_only=True)
        load_state(self._unwrapped_critic(), saved["critic"])
        if self._settle is not None:
            self._settle(self.model)
        return saved

    # -- the log ------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL, but for maxima and counters, of which it would tell the mean since the last line."""
        noted = self._metrics["train" if self.model.training else "eval"]
        for name, values in noted.items():
            noted[name] = metrics.over_a_window(name, values)
        super().log(logs, start_time)

    def _note(self, name: str, value: Any) -> None:
        self._metrics["train" if self.model.training else "eval"][name].append(float(value))

    def _note_all(self, found: dict[str, Any], weight: Tensor | float = 1.0) -> None:
        """Note figures of all processes: weighted means, and the largest of what is called a maximum, in one exchange."""
        numbers = [float(value) for value in found.values()]
        device = self.accelerator.device
        rows = self.accelerator.gather(torch.tensor([[float(weight), *numbers]], device=device))
        weights = rows[:, :1] / rows[:, :1].sum().clamp(min=1e-12)
        means = torch.where(weights > 0, weights * rows[:, 1:], 0.0).sum(0)
        largest = rows[:, 1:].amax(0)
        for name, mean, most in zip(found, means.tolist(), largest.tolist(), strict=True):
            self._note(name, most if name.endswith(metrics.LARGEST) else mean)

    def _sum_over_processes(self, statistics: Tensor) -> Tensor:
        return self.accelerator.reduce(statistics, reduction="sum")

    def _record_rollout(self, sampled: rollout.Sampled, old: Reading, reference: Tensor) -> None:
        """The figures of one rollout that need every response."""
        gather, mask = self.accelerator.gather, sampled.batch["response_mask"]
        told = metrics.of_scores(sampled.raw, sampled.used, mask.sum(1), sampled.ended, gather)
        told |= metrics.of_entropy(old.logprobs, mask, gather)
        if self.has_reference():
            told |= metrics.of_penalty(old.logprobs, reference, mask, self.state_of_ppo.beta, gather)
        told["objective/rlhf_reward"] = told["objective/scores"] + told.get("objective/non_score_reward", 0.0)
        told["completions/distinct_2"] = gather(
            metrics.distinct_pairs(sampled.batch["completion_ids"], mask)
        ).mean()
        self.state_of_ppo.episodes += len(sampled.raw) * self.accelerator.num_processes
        told["episode"] = self.state_of_ppo.episodes
        now = time.perf_counter()
        told["eps"] = len(sampled.raw) * self.accelerator.num_processes / (now - self._started)
        self._started = now
        self._note_all(told)


def _write_whole(saved: dict[str, Any], path: Path) -> None:
    """A file that is all there or not at all, whenever the machine stops."""
    beside = path.with_name(f"{path.name}.part")
    with beside.open("wb") as file:
        torch.save(saved, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


class _OnRolloutBorders(TrainerCallback):
    """A checkpoint holds no rollout: saving, measuring and stopping, asked for within a rollout, wait for its end."""

    ASKED = ("should_save", "should_evaluate", "should_training_stop")

    def __init__(self, steps_per_rollout: int) -> None:
        self.steps_per_rollout = steps_per_rollout
        self.asked = dict.fromkeys(self.ASKED, False)

    def on_step_end(self, args, state, control, **kwargs):
        return self._held_back(control, self._is_border(state))

    def on_substep_end(self, args, state, control, **kwargs):
        return self._held_back(control, border=False)

    def _is_border(self, state):
        return state.global_step % self.steps_per_rollout == 0 or state.global_step == state.max_steps

    def _held_back(self, control, border):
        for name, before in self.asked.items():
            asked = before or getattr(control, name)
            setattr(control, name, asked and border)
            self.asked[name] = asked and not border
        return control
