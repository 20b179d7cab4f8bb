"""Provide the callback that ends every trainer early on request and writes the first checkpoint soon."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from instructkit.stages.base import Frame, uses_default_checkpoints
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
