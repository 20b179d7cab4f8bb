"""Whether an unfinished run can be gone on with, and on which rows: asked by the run, and by its plan before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instructkit.recipe.render import to_dict
from instructkit.recipe.schema import Recipe
from instructkit.runs import lineage
from instructkit.runs.lock import refuse_held
from instructkit.runs.reading import is_run, read_record
from instructkit.runs.record import RunFolder
from instructkit.stages import checkpoints
from instructkit.stages.base import Inputs, InputsT, Stage
from instructkit.stages.identity import fingerprints_of_sources


def collected(stage: Stage[Any, InputsT], recipe: Recipe, *, resume: bool) -> InputsT:
    """Collect the inputs of a stage; a run that is resumed reads what it had read, and nothing that was added later."""
    return stage.collect(recipe, _begun(Path(recipe.run.output), recipe.stage) if resume else {})


def refuse(recipe: Recipe, inputs: Inputs) -> None:
    """
    Refuse to resume a run; changes nothing.

    Raises:
        InputError: when another process holds its folder, when no run or a finished one is there, when it was begun with another
            recipe, on other rows or above another parent, or when it has no whole checkpoint.
    """
    folder = RunFolder(recipe.run.output)
    refuse_held(folder.path)
    folder.unfinished(to_dict(recipe), recipe.stage)
    lineage.refuse_other_inputs(folder.path, identity(recipe, inputs))
    checkpoints.refuse_none(folder.path, recipe.stage)


def fingerprints(inputs: Inputs) -> dict[str, str]:
    """Fingerprint of the data, by role."""
    return {role: rows.fingerprint for role, rows in inputs.data.items()}


def hashes(inputs: Inputs) -> dict[str, str]:
    """What identifies each parent, by role: the run's hash, or the path or id of a model that is no run."""
    return {
        role: lineage.run_hash(source.run) if source.run else f"model:{source.base}"
        for role, source in inputs.parents.items()
    }


def identity(recipe: Recipe, inputs: Inputs) -> lineage.RunIdentity:
    """Return what shapes the result of a run. This reads every file of its parents."""
    return lineage.RunIdentity(
        to_dict(recipe), fingerprints(inputs), hashes(inputs), fingerprints_of_sources(recipe, inputs.parents)
    )


def _begun(output: Path, stage: str) -> dict[str, Any]:
    """What an unfinished run of this stage has kept of how it was begun."""
    record = read_record(output) if is_run(output) else {}
    if record.get("status") == "done" or record.get("stage") != stage:
        return {}
    return record.get("begun") or {}
