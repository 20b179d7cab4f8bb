"""What every stage hands to its TRL trainer: arguments, progress, checkpoints."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from instructkit.errors import InputError, InstructKitError
from instructkit.models.adapters import SettleOnTrainBegin
from instructkit.models.machine import Machine
from instructkit.recipe import trainer
from instructkit.runs import processes
from instructkit.stages import checkpoints
from instructkit.stages.base import CHECKPOINTS, Frame, metrics_writer, uses_default_checkpoints
from instructkit.stages.contention import EVERY_SECONDS
from instructkit.stages.preflight import refuse_before_a_step
from instructkit.stages.stopping import Stopped

FIRST_CHECKPOINT_SECONDS = 60
FIRST_CHECKPOINT_SHARE = 0.05  # of all steps


class Stopping(TrainerCallback):
    """
    End training on a request to `Stop`: finish the micro-step, write a checkpoint and raise `Stopped`.

    Within an optimizer step no weight has changed since the last step. So the checkpoint is that of the last step, with its
    random state. A resumed run repeats the micro-steps and ends with the same bits as an undisturbed one.
    """

    def __init__(self, frame: Frame) -> None:
        self.stop, self.early = frame.stop, uses_default_checkpoints(frame.recipe)
        self.started = 0.0
        self.saved_at = self.began_at = 0
        self.asked = False  # what all processes agree on
        self.random: dict[str, Any] | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Note where training begins."""
        self.started = time.monotonic()
        self.saved_at = self.began_at = state.global_step
        self.random, self.asked = None, False

    def on_step_end(self, args, state, control, **kwargs):
        """Ask all processes for the first checkpoint, or for the one before the end."""
        self.stop.note_step()
        self.asked, soon = _agreed(self.stop.reason is not None, self._is_time(args, state))
        if self.asked:
            self.stop.ask("another process of this run was stopped", 130)
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False
        control.should_save = control.should_save or soon
        if args.gradient_accumulation_steps > 1:
            self.random = _random_state()
        return control

    def on_substep_end(self, args, state, control, **kwargs):
        """End training within an optimizer step, in a run of one process."""
        if self.stop.reason is not None and args.world_size == 1:
            self.asked = control.should_training_stop = True
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        """Save the state of the last step if training ends within an optimizer step."""
        if not (self.asked and control.should_training_stop):
            return control
        if self.saved_at == state.global_step:  # nothing was learned since
            raise Stopped(self.stop.reason)
        if self.random is not None:
            _restore(self.random)
        control.should_save, control.should_evaluate, control.should_log = True, False, False
        return control

    def on_save(self, args, state, control, **kwargs):
        """End training once the checkpoint is written."""
        self.saved_at = state.global_step
        if self.asked or (args.world_size == 1 and self.stop.reason is not None):
            raise Stopped(self.stop.reason)

    def _is_time(self, args: Any, state: Any) -> bool:
        """Return whether the first checkpoint is due: after a minute or a twentieth of the steps."""
        if not self.early or args.save_strategy == "no" or self.saved_at != self.began_at:
            return False
        taken = state.global_step - self.began_at
        return (
            taken >= FIRST_CHECKPOINT_SHARE * state.max_steps
            or time.monotonic() - self.started >= FIRST_CHECKPOINT_SECONDS
        )


def _agreed(*asked: bool) -> list[bool]:
    """Return what any process asked for. All of them must stop and save at the same step."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(asked)
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    votes = torch.tensor(asked, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
    return [bool(vote) for vote in votes]


def _random_state() -> dict[str, Any]:
    """Return the random states that a checkpoint holds."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _restore(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


_SHOWN = {
    "loss": "loss",
    "reward": "reward",
    "objective/scores": "score",
    "objective/kl": "kl",
    "accuracy": "accuracy",
    "rewards/accuracies": "accuracy",
}

# Trainer divides the losses since a resumption by all steps, so of a resumed run this figure would be too small.
_OF_ALL_STEPS = "train_loss"


def arguments(config: type, frame: Frame, given: dict[str, Any], **defaults: Any) -> Any:
    """
    Build a TRL config: TRL's own defaults, then ours for this machine, then whatever the recipe says.

    Args:
        config: the TRL config class of the stage.
        given: the recipe's `trainer:` section.
        defaults: what this stage prefers where the recipe is silent.

    Raises:
        InputError: when TRL refuses a combination of values.
    """
    ours = {
        **trainer.FIXED,
        **of_machine(frame.machine),
        "output_dir": str(frame.folder / CHECKPOINTS),
        "seed": frame.seed,
    }
    try:
        return config(**{**ours, **defaults, **given})
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise InputError(
            f"{frame.recipe.source}: TRL refuses the `trainer:` section: {error}",
            hint="change the fields it names; `--plan --resolved` prints the resolved recipe",
        ) from error


def of_machine(machine: Machine) -> dict[str, bool]:
    """The defaults that depend on the machine; `recipe/run_defaults.py` tells them in words."""
    return {
        "use_cpu": machine.on_cpu,
        "bf16": machine.dtype == "bfloat16",
        "fp16": machine.dtype == "float16",
        "gradient_checkpointing": not machine.on_cpu,
        "dataloader_pin_memory": not machine.on_cpu,
    }


def build(trainer_class: type, frame: Frame, **options: Any) -> Any:
    """
    Build a trainer, its adapters in the format that the run computes in.

    TRL casts the adapters of a quantised base to bfloat16, which a CPU run must not compute in: it has said float32, and
    some CPUs have no such instruction.

    Raises:
        InputError: when TRL refuses a combination of values, or the model.
    """
    try:
        trainer = trainer_class(**options)
    except (
        ValueError,
        TypeError,
        RuntimeError,
    ) as error:  # a tracker that is not installed is a RuntimeError
        raise InputError(
            f"{frame.recipe.source}: TRL refuses this run: {error}",
            hint="change the fields of `trainer:` that it names, or the data",
        ) from error
    refuse_before_a_step(trainer, frame.recipe, options["processing_class"])
    if frame.machine.dtype == "float32":
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainer


def callbacks(frame: Frame) -> list[TrainerCallback]:
    """Return the callbacks of every trainer: adapters after a resume, early ending, progress and `metrics.jsonl`."""
    return [SettleOnTrainBegin(), Stopping(frame), *([_Progress(frame)] if processes.is_first() else [])]


def fit(trainer: Any, frame: Frame, *, fresh: bool = False) -> dict[str, float]:
    """
    Train, from the last whole checkpoint when the run is resumed.

    Args:
        fresh: begin this trainer anew even so: what was interrupted came before it.

    Raises:
        InputError: when there is nothing to resume from.
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if frame.resume:
        _remove_halves(trainer, frame)
        trainer.accelerator.wait_for_everyone()
    checkpoint = _last_checkpoint(trainer, frame) if frame.resume and not fresh else None
    _no_step_behind_the_last(trainer)
    frame.reporter.stage_started(frame.recipe.stage, None)
    try:
        with frame.stop.deferred():
            output = frame.timed("train", lambda: trainer.train(resume_from_checkpoint=checkpoint))
    finally:
        frame.reporter.finished()
    frame.stop.check()
    if not all(bool(p.isfinite().all()) for p in trainer.model.parameters() if p.requires_grad):
        raise InstructKitError(
            "the weights are not finite after training, so there is no model to keep",
            hint="lower trainer.learning_rate, and look at the losses in metrics.jsonl",
        )
    told = _row(output.metrics)
    if checkpoint is not None:
        told.pop(_OF_ALL_STEPS, None)
    return told


def _row(logs: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in logs.items() if isinstance(value, int | float)}


def _no_step_behind_the_last(trainer: Any) -> None:
    """Trainer looks for its end behind a step alone: a run that was interrupted after its last one would take another."""
    begin = trainer._init_training_state

    def told(*args: Any, **kwargs: Any) -> tuple[int, int]:
        epochs, batches = begin(*args, **kwargs)
        state = trainer.state
        return (epochs, batches) if state.global_step < state.max_steps else (sys.maxsize, 0)

    trainer._init_training_state = told


def _last_checkpoint(trainer: Any, frame: Frame) -> str:
    found = checkpoints.newest(Path(trainer.args.output_dir), frame.recipe.stage)
    if found is None:
        raise InputError(
            f"{frame.folder} has no checkpoint to resume from", hint="start again with --overwrite"
        )
    frame.reporter.note(f"resuming from {found.name}")
    return str(found)


def _remove_halves(trainer: Any, frame: Frame) -> None:
    if not trainer.accelerator.is_main_process:
        return
    if told := checkpoints.remove_halves(Path(trainer.args.output_dir), frame.recipe.stage):
        frame.reporter.note(told)


class _Progress(TrainerCallback):
    """Passes what the trainer logs to the reporter and to `metrics.jsonl`."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.reporter = frame, frame.reporter
        self.writer = metrics_writer(frame)
        self.started = self.tokens = 0.0
        self.resumed = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.resumed = time.perf_counter(), state.global_step > 0
        if self.resumed and state.log_history:  # the steps behind the checkpoint are taken once more
            self.writer.cut_after(_row(state.log_history[-1]))

    def on_step_end(self, args, state, control, **kwargs):
        self.reporter.step(state.global_step, state.max_steps, {})
        self.frame.look_for_other_work("while training", every=EVERY_SECONDS)

    def on_log(self, args, state, control, logs=None, **kwargs):
        numbers = _row({"step": state.global_step, **(logs or {})})
        if self.resumed:
            numbers.pop(_OF_ALL_STEPS, None)
        self.writer.write(numbers)
        shown = {label: numbers[name] for name, label in _SHOWN.items() if name in numbers}
        seconds = time.perf_counter() - self.started
        if "num_tokens" in numbers and seconds > 0:
            shown["tokens/s"] = numbers["num_tokens"] / seconds
        if shown:
            self.reporter.step(state.global_step, state.max_steps, shown)
