"""What every stage hands to its TRL trainer: arguments, progress, checkpoints."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from instructkit import processes
from instructkit.adapters import SettleOnTrainBegin
from instructkit.errors import InputError, InstructKitError
from instructkit.machine import Machine
from instructkit.recipe import run_defaults
from instructkit.stages import checkpoints
from instructkit.stages.base import CHECKPOINTS, Frame, metrics_writer
from instructkit.stages.contention import EVERY_SECONDS
from instructkit.stages.stop_callback import Stopping
from instructkit.stages.trials import refuse_before_a_step

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
        **run_defaults.FIXED,
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
