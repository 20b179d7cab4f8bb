"""A plan: everything that can be known of a run before it starts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instructkit.errors import InputError
from instructkit.machine import Machine
from instructkit.plan import memory, timing
from instructkit.plan.probe import Probe, probe
from instructkit.plan.rehearsal import Rehearsal, rehearse
from instructkit.recipe.render import to_dict
from instructkit.runs.record import RunFolder
from instructkit.stages.base import Inputs, choose_machine, left_out, refuse_unfit_parents


@dataclass
class Plan:
    """What `--plan` tells; `as_dict` is what `--plan --json` prints."""

    recipe: Any
    inputs: Inputs
    machine: Machine
    rehearsal: Rehearsal
    memory: memory.Need
    disk: dict[str, int]
    seconds: float
    changes: list[memory.Change] = field(default_factory=list)
    probe: Probe | None = None

    @property
    def fits(self) -> bool:
        """Whether memory and disk suffice."""
        return self.memory.fits and self.disk["needed"] <= self.disk["free"]

    def as_dict(self) -> dict[str, Any]:
        """Plain values; sizes in bytes."""
        found = self.rehearsal
        return {
            "recipe": to_dict(self.recipe),
            "data": {role: rows.summary() for role, rows in self.inputs.data.items()},
            "parents": {
                role: {"name": s.name, "base": s.base, "adapter": str(s.adapter) if s.adapter else None}
                for role, s in self.inputs.parents.items()
            },
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
            "disk": self.disk,
            "output": {"folder": self.recipe.run.output, "occupied": occupied(self.recipe)},
            "seconds": round(self.seconds, 1),
            "probe": self.probe.as_dict() if self.probe else None,
            "changes": [vars(change) for change in self.changes],
            "notes": [*left_out(self.inputs), *found.notes],
            "fits": self.fits,
        }


def make(recipe: Any, collect: Any, *, probing: bool = False) -> Plan:
    """
    Plan a run without loading a weight or writing a file.

    Args:
        recipe: a checked recipe.
        collect: the stage's function that reads its data and finds its parents.
        probing: load the model after all and time a few real steps, where they fit; they leave no trace either.

    Raises:
        InputError: for all that the run would refuse before its first step.
    """
    inputs = collect(recipe)
    refuse_unfit_parents(recipe, inputs.parents)
    machine = choose_machine(recipe)
    rehearsal = rehearse(recipe, inputs, machine)
    need = memory.need(rehearsal, recipe, machine)
    plan = Plan(
        recipe, inputs, machine, rehearsal, need, disk(recipe, rehearsal), timing.estimate(rehearsal, machine)
    )
    if not need.fits:
        plan.changes = memory.changes(recipe, inputs, machine, need)
    elif probing:
        plan.probe = probe(recipe, inputs, machine)
        plan.seconds = plan.probe.seconds_a_step * rehearsal.steps["steps"]
    return plan


def occupied(recipe: Any) -> str | None:
    """Why the run could not begin where its folder is to be; None when nothing stands there."""
    try:
        RunFolder(recipe.run.output).check_free(overwrite=False)
    except InputError as error:
        return f"{error.message} ({error.hint})"
    return None


def disk(recipe: Any, rehearsal: Rehearsal) -> dict[str, int]:
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


def refusal(plan: Plan) -> InputError:
    """Why a run would fail for want of space, and what would help most."""
    gib = 2**30
    if not plan.memory.fits:
        told = f"about {plan.memory.predicted / gib:.1f} GiB of memory are needed, and {plan.memory.available / gib:.1f} are free"
        ways = [f"{' '.join(c.overrides)} (saves {c.saves / gib:.1f} GiB)" for c in plan.changes]
        return InputError(told, hint="; or ".join(ways) or "take a smaller model, or a larger machine")
    told = f"about {plan.disk['needed'] / gib:.1f} GiB of disk are needed, and {plan.disk['free'] / gib:.1f} are free"
    return InputError(told, hint="free some space, or give another run.output")
