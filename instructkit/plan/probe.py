"""A few real steps of a run, timed, in a folder that is gone afterwards."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instructkit.models.machine import Machine
from instructkit.runs.files import TemporaryFolder
from instructkit.stages import stage_of
from instructkit.stages.base import Frame, Inputs, Listener, peak_memory, seed_everything

STEPS, WARM_UP = (
    5,
    1,
)  # optimizer steps, and those of them that are not timed; for PPO rollouts with all their steps
ROLLOUTS, WARM_UP_ROLLOUTS = 2, 1


@dataclass(frozen=True)
class Probe:
    """
    What a few steps took.

    Attributes:
        steps: optimizer steps that were timed.
        seconds_a_step: their mean.
        seconds_before: to load the model and prepare the data.
        peak: bytes: the largest resident memory of the process so far, or on a GPU the largest allocation.
    """

    steps: int
    seconds_a_step: float
    seconds_before: float
    peak: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def probe(recipe: Any, inputs: Inputs, machine: Machine) -> Probe:
    """
    Load the model, take a few steps of the run in its own order of rows, and forget them.

    Raises:
        InputError: for all that the stage refuses.
        InstructKitError: when the weights are not finite after these steps.
    """
    from instructkit.stages.trainer import fit

    started = time.perf_counter()
    with TemporaryFolder() as folder:
        frame = Frame(_without_traces(recipe), inputs, machine, Path(folder), Listener(), resume=False)
        seed_everything(frame.seed)
        trainer = stage_of(recipe).prepare(frame).trainer
        first, last = _bounds(trainer)
        _shorten(trainer, last)
        ends = _ends_of_steps(trainer)
        before = time.perf_counter() - started
        fit(trainer, frame)
    first = min(first, len(ends) - 2)  # a run of one step: from its beginning
    timed = len(ends) - 1 - first
    return Probe(timed, (ends[-1] - ends[first]) / timed, before, peak_memory())


def _without_traces(recipe: Any) -> Any:
    """The recipe without what would be seen elsewhere: a hub's repository, a tracker's run."""
    return recipe.model_copy(
        update={"trainer": {**recipe.trainer, "push_to_hub": False, "report_to": "none"}}
    )


def _bounds(trainer: Any) -> tuple[int, int]:
    """Steps of the warm-up, and all; PPO's come in rollouts."""
    if hasattr(trainer, "critic"):
        each = trainer.args.num_iterations * trainer.args.mini_batches
        return each * WARM_UP_ROLLOUTS, each * ROLLOUTS
    return WARM_UP, STEPS


def _shorten(trainer: Any, steps: int) -> None:
    """Stop after so many steps, and neither save nor evaluate meanwhile; in PPO the policy learns from the first rollout."""
    given = trainer.args.max_steps
    trainer.args.max_steps = min(steps, given) if given > 0 else steps
    trainer.args.save_strategy = trainer.args.eval_strategy = "no"
    trainer.args.load_best_model_at_end = False
    if hasattr(trainer, "critic"):
        trainer.args.value_warmup_steps = 0


def _ends_of_steps(trainer: Any) -> list[float]:
    """When training began and when each step ended, filled while it runs."""
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    return ends
