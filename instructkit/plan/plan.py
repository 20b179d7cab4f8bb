"""
A plan: everything that can be known of a run before it starts.

Torch and its kin are imported once the data are read: a fault of a row is told at once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from instructkit.models.machine import Machine

if TYPE_CHECKING:
    from instructkit.plan.rehearsal import Rehearsal
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructkit.errors import InputError
from instructkit.plan import memory
from instructkit.plan.parents import Parent, parents
from instructkit.plan.probe import Probe, probe
from instructkit.recipe.render import to_dict
from instructkit.recipe.schema import Recipe
from instructkit.runs.lock import refuse_held
from instructkit.runs.record import RunFolder
from instructkit.stages import identity, stage_of
from instructkit.stages.base import (
    Inputs,
    choose_machine,
    left_out,
    load_libraries,
    refuse_undecidable,
    refuse_unfit_parents,
    refuse_without_weights,
)
from instructkit.stages.preflight import refuse_early, told_by_recipe

if TYPE_CHECKING:
    from instructkit.plan.changes import Change
    from instructkit.plan.rehearsal import Rehearsal


EFFICIENCY = 0.5  # of a large matrix product that a training step reaches
SIZE = {"cpu": 1024, "cuda": 8192}


def estimate(rehearsal: Rehearsal, machine: Machine) -> float:
    """Seconds of all steps: 2 operations a parameter and token forward, twice that backward (Kaplan et al. 2020, 2.1)."""
    (trained, every), (read, learned) = rehearsal.trained, rehearsal.work
    forward = 2 * every * (read + learned)
    backward = 2 * (every + trained) * learned  # through everything, and for the trained weights themselves
    return rehearsal.steps["steps"] * (forward + backward) / (EFFICIENCY * operations_per_second(machine))


def operations_per_second(machine: Machine) -> float:
    """Measured on a square matrix product in the run's number format."""
    import torch

    size = SIZE[machine.device]
    x = torch.randn(size, size, dtype=getattr(torch, machine.dtype), device=machine.device)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        y = x @ x
        if machine.device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    del y
    return 2 * size**3 / best


MOST_LEFT_OUT = 0.1  # of the rows, above which a plan warns


@dataclass
class Plan:
    """What `--plan` tells; `as_dict` is what `--plan --json` prints."""

    recipe: Recipe
    inputs: Inputs
    machine: Machine
    rehearsal: Rehearsal
    memory: memory.Need
    disk: dict[str, int]
    seconds: float
    parents: list[Parent] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    together: Change | None = None
    untried: list[str] = field(default_factory=list)
    against: InputError | None = None
    undecidable: list[str] = field(default_factory=list)
    probe: Probe | None = None

    @property
    def fits(self) -> bool:
        """Whether memory and disk suffice."""
        return self.memory.fits and self.disk["needed"] <= self.disk["free"]

    @property
    def warnings(self) -> list[str]:
        """What does not fit together, and what is odd about the rows."""
        found = [warning for parent in self.parents for warning in parent.warnings]
        rows = self.rehearsal.rows
        if rows.held_out_near:
            found.append(
                f"{rows.held_out_near} held-out rows have a near double among the training rows, the first "
                f"{'; '.join(rows.near_pairs)}: what is measured on them says little; take them out of one side"
            )
        found += [rows.begun] if rows.begun else []
        return [*found, *rows.odd, *self._much_left_out()]

    def _much_left_out(self) -> list[str]:
        """Rows that the trainer leaves out, where they are more than a tenth."""
        told = []
        for reason, left in self.rehearsal.dropped.items():
            role, _, why = reason.removeprefix("data.").rpartition(": ")
            rows = self.inputs.data.get(role)
            gone = (
                left if rows is None or self.recipe.stage in ("reward", "ppo") else 0
            )  # which leave out the rows too
            every = (self.rehearsal.rows.rows if rows is None else len(rows.rows)) + gone
            if left > MOST_LEFT_OUT * every:
                told.append(
                    f"{left} of {every} {role or 'train'} rows ({left / every:.0%}) are left out: {why}; raise "
                    "the limit, or shorten the rows"
                )
        return told

    def as_dict(self) -> dict[str, Any]:
        """Plain values; sizes in bytes."""
        found = self.rehearsal
        return {
            "recipe": to_dict(self.recipe),
            "data": {role: rows.summary() for role, rows in self.inputs.data.items()},
            "parents": {parent.role: parent.as_dict() for parent in self.parents},
            "machine": {
                "device": self.machine.device,
                "dtype": self.machine.dtype,
                "reasons": list(self.machine.reasons),
            },
            "rows": found.rows.as_dict(),
            "steps": found.steps,
            "longest_batch": {"rows": found.batch[0], "tokens": found.batch[1]},
            "parameters": {"trained": found.trained[0], "all": found.trained[1]},
            "memory": self.memory.as_dict(),
            "disk": {"unit": "bytes", **self.disk},
            "output": {
                "folder": self.recipe.run.output,
                "refused": self.against.message if self.against else None,
            },
            "seconds": round(self.seconds, 1),
            "probe": self.probe.as_dict() if self.probe else None,
            "changes": [change.as_dict() for change in self.changes],
            "together": self.together.as_dict() if self.together else None,
            "untried": self.untried,
            **self.inputs.as_dict(),
            "undecidable": self.undecidable,
            "warnings": self.warnings,
            "notes": [*left_out(self.inputs), *found.notes],
            "fits": self.fits,
        }


def make(
    recipe: Recipe,
    *,
    probing: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    anyway: bool = False,
    loading: Callable[[], None] = load_libraries,
) -> Plan:
    """
    Plan a run without loading a weight or writing a file.

    Args:
        recipe: a checked recipe.
        probing: load the model after all and time a few real steps, where they fit; they leave no trace either.
        overwrite, resume, anyway: the options of the run.
        loading: imports torch and its kin, once the data are read.

    Raises:
        InputError: for all that the run would refuse before its first step.
    """
    RunFolder(recipe.run.output).refuse_own_inputs(to_dict(recipe), recipe.source)
    inputs = identity.collected(stage_of(recipe), recipe, resume=resume)
    loading()

    from instructkit.plan.changes import changes
    from instructkit.plan.rehearsal import rehearse

    refuse_early(recipe)
    refuse_unfit_parents(recipe, inputs.parents)
    undecidable, refuses = inputs.undecidable(recipe)
    machine = choose_machine(recipe)
    rehearsal = rehearse(recipe, inputs, machine)
    need = memory.need(rehearsal, recipe, machine)
    plan = Plan(
        recipe,
        inputs,
        machine,
        rehearsal,
        need,
        disk(recipe, rehearsal),
        estimate(rehearsal, machine),
        parents(recipe, inputs.parents),
        against=against(recipe, inputs, overwrite=overwrite, resume=resume)
        or _undecided(recipe, undecidable, refuses and not (anyway or resume)),
        undecidable=undecidable,
    )
    if not need.fits:
        plan.changes, plan.together, plan.untried = changes(recipe, inputs, machine, need, rehearsal)
    elif probing:
        with told_by_recipe(recipe):
            plan.probe = probe(recipe, inputs, machine)
        plan.seconds = plan.probe.seconds_a_step * rehearsal.steps["steps"]
    return plan


def against(
    recipe: Recipe, inputs: Inputs, *, overwrite: bool = False, resume: bool = False
) -> InputError | None:
    """What the run would be told of its models' folders and its own before it could begin; None when nothing is in its way."""
    try:
        refuse_without_weights(inputs.parents)
        if resume:
            identity.refuse_resume(recipe, inputs)
        else:
            RunFolder(recipe.run.output).check_free(overwrite=overwrite)
            refuse_held(Path(recipe.run.output))
    except InputError as error:
        return error
    return None


def _undecided(recipe: Recipe, shortages: list[str], refuses: bool) -> InputError | None:
    """Return why the run would be refused for gates that cannot be decided; None when it would not."""
    try:
        refuse_undecidable(recipe, shortages, refuses)
    except InputError as error:
        return error
    return None


def disk(recipe: Recipe, rehearsal: Rehearsal) -> dict[str, int]:
    """What the run folder will hold: the model, and checkpoints with their optimizer while it trains."""
    trained = rehearsal.gradients
    checkpoint = trained + rehearsal.optimizer
    kept = recipe.trainer.get("save_total_limit", 1) if recipe.trainer.get("save_strategy") != "no" else 0
    place = Path(recipe.run.output).absolute()
    while not place.exists():
        place = place.parent
    needed = trained + checkpoint * (
        (kept or 4) + 1
    )  # a new checkpoint stands beside the old one while it is written
    return {"checkpoint": checkpoint, "needed": needed, "free": shutil.disk_usage(place).free}


def refusal(plan: Plan) -> InputError | None:
    """Why the run would be refused, or fail for want of space, and what would help most; None when it would begin."""
    if not plan.memory.fits:
        return _no_memory(plan)
    if not plan.fits:
        needed, free = gib(plan.disk["needed"]), gib(plan.disk["free"])
        told = f"about {needed} of disk are needed, and {free} are free"
        return InputError(told, hint="free some space, or give another run.output")
    if plan.against is not None:
        return InputError(f"the run would be refused: {plan.against.message}", hint=plan.against.hint)
    return None


def gib(size: int) -> str:
    """A size in the one unit that a plan tells."""
    return f"{size / 2**30:.2f} GiB"


def _no_memory(plan: Plan) -> InputError:
    needed, free = gib(plan.memory.needed), gib(plan.memory.available)
    ways = [
        f"{' '.join(c.overrides)} (saves {gib(c.saves)}{'' if c.fits else ', not enough alone'})"
        for c in plan.changes
    ]
    if plan.together is not None:
        enough = (
            "which fits" if plan.together.fits else "still too much: take a smaller model or a larger machine"
        )
        ways.append(
            f"together {' '.join(plan.together.overrides)} (then {gib(plan.together.needed)}, {enough})"
        )
    return InputError(
        f"about {needed} of memory are needed, and {free} are free",
        hint="; or ".join(ways) or "take a smaller model, or a larger machine",
    )
