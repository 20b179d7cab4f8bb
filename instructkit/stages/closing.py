"""
Take the last steps of a run in one order: complete the record, enter the update chain, delete the checkpoints.

A process that is killed in between leaves a complete run whose record has `closing: true`. The next start repeats the steps.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructkit.errors import GateRefused, InstructKitError
from instructkit.evaluate.gates import stands_against
from instructkit.feedback.promotion.decide import refusal
from instructkit.recipe.schema import Recipe
from instructkit.runs.lock import is_held
from instructkit.runs.read import is_run, read_record
from instructkit.runs.record import RunFolder, is_being_replaced
from instructkit.stages.base import CHECKPOINTS, Stage, uses_default_checkpoints

Note = Callable[[str], None]


def close(stage: Stage[Any, Any], recipe: Recipe, folder: RunFolder, note: Note) -> GateRefused | None:
    """
    Take the last steps of a run whose record is complete and whose folder is held.

    Returns:
        The error of an update that passed its gates and was not promoted, else None.
    """
    overtaken = stage.finish(recipe, folder.path, note)
    _drop_checkpoints(recipe, folder.path)
    folder.update(closing=False)
    return overtaken


def again(stage: Stage[Any, Any], recipe: Recipe, output: Path, note: Note) -> GateRefused | None:
    """Repeat the last steps of a complete run whose process was killed in between; of another run call `finish` alone."""
    if not read_record(output).get("closing"):
        return stage.finish(recipe, output, note)
    with RunFolder.opened(output) as folder:
        return close(stage, recipe, folder, note)


def refused(record: dict[str, Any], overtaken: GateRefused | None) -> GateRefused | None:
    """
    Return the error of a complete run that must not be used, else None.

    Args:
        record: of the run; its gates decide first.
        overtaken: what `close` returned for it.
    """
    against = [gate for gate in record["gates"] if stands_against(gate, record)]
    if not against:
        return overtaken
    message, hint = refusal(record, against)
    return GateRefused(message, hint=hint)


def repair(
    stage: Stage[Any, Any],
    output: Path,
    note: Note,
    *,
    apart: Path | None = None,
    raised: Path | None = None,
) -> dict[Path, GateRefused | None]:
    """
    Repeat the last steps of complete runs whose process was killed in between.

    Args:
        stage: of the runs.
        output: a run folder; the folders next to it are repaired too.
        note: called with what was repaired, and with the refusal of a repaired run.
        apart: a run that is not repaired.
        raised: a run whose refusal the caller raises.

    Returns:
        What `close` returned, by repaired run.
    """
    repaired: dict[Path, GateRefused | None] = {}
    for path in sorted(output.parent.iterdir()) if output.parent.is_dir() else []:
        if path == apart or not _is_cut_off(path, stage.name):
            continue
        try:
            with RunFolder.opened(path) as folder:
                recipe = stage.recipe_type(**folder.record["recipe"])
                repaired[path] = close(stage, recipe, folder, note)
        except InstructKitError as error:
            note(f"warning: the last steps of {path} cannot be done: {error}")
            continue
        note(f"{path} was complete, but its process was killed before its last steps; they are done now")
        if path != raised and (error := refused(folder.record, repaired[path])):
            note(f"warning: {error}")
    return repaired


def _is_cut_off(path: Path, stage: str) -> bool:
    if not is_run(path) or is_being_replaced(path) or is_held(path):
        return False
    try:
        record = read_record(path)
    except InstructKitError:
        return False
    return record["status"] == "done" and record["stage"] == stage and bool(record.get("closing"))


def _drop_checkpoints(recipe: Recipe, output: Path) -> None:
    """Remove what only `--resume` needs, unless the recipe asked for checkpoints itself."""
    if uses_default_checkpoints(recipe):
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
