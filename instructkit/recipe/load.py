"""From a file and overrides to a checked recipe: all faults at once, each with its line and the nearest right name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from instructkit.errors import Fault, InputError, RecipeError
from instructkit.recipe import trainer_fields
from instructkit.recipe.document import Document, Place, dotted
from instructkit.recipe.overrides import apply_override
from instructkit.recipe.paths import shown
from instructkit.recipe.reading import read_document
from instructkit.recipe.rules import contradictions
from instructkit.recipe.schema import RECIPES, STAGES, sections
from instructkit.recipe.wording import faults_of, nearest, shown_value

MOST_FAULTS = 100  # of a recipe that are told; the rest is counted


@dataclass(frozen=True)
class Checked:
    """What is known of a recipe without loading anything: its faults, and where there are none the recipe itself."""

    path: str
    stage: str | None
    faults: list[Fault]
    recipe: Any = None
    document: Document | None = None


def load_recipe(path: str, stage: str, overrides: list[str] | None = None) -> Any:
    """
    Read and check the recipe of a stage.

    Args:
        path: a YAML file.
        stage: the command that was given; the recipe must be for it.
        overrides: `section.key=value`, stronger than the file.

    Raises:
        InputError: when there is no such file.
        RecipeError: with every fault of file and overrides.
    """
    checked = check_document(read_document(path), stage, overrides)
    if checked.faults:
        raise RecipeError(checked.faults)
    return checked.recipe


def check_recipe(path: str, stage: str | None = None, overrides: list[str] | None = None) -> Checked:
    """Every fault of a recipe, of a file that cannot be read too; the stage is the recipe's own where none is given."""
    try:
        return check_document(read_document(path), stage, overrides)
    except RecipeError as error:
        return Checked(path, stage, error.faults)
    except InputError as error:
        told = error.message.replace(f" at {path}", "").removeprefix(f"{shown(path)} ")
        return Checked(path, stage, [Fault(shown(path), told, error.hint)])


def check_document(document: Document, stage: str | None, overrides: list[str] | None = None) -> Checked:
    """Lay overrides over a document, and check what comes out."""
    for override in overrides or []:
        apply_override(document, override)
    wrong_stage = _wrong_stage(document, stage)
    if wrong_stage or ("stage",) in document.spoiled:
        return Checked(document.file, stage, [*document.faults, *wrong_stage])
    stage = document.values["stage"]
    recipe, faults = _validated(document, stage)
    wrong_fields = trainer_fields.check(document, stage)
    faults += _unknown_keys(document, stage) + wrong_fields
    if recipe is not None:
        found = contradictions(recipe, trainer_is_sound=not wrong_fields)
        faults += [Fault(document.where(place), told, hint) for place, told, hint in found]
    silent = {f"`{dotted(place)}`" for place in document.spoiled}
    faults = [fault for fault in faults if not any(fault.message.startswith(name) for name in silent)]
    faults = _capped(sorted([*document.faults, *faults], key=_by_line), document.file)
    return Checked(document.file, stage, faults, None if faults else recipe, document)


def _capped(faults: list[Fault], file: str) -> list[Fault]:
    """As many faults as a person reads, and how many there are."""
    if len(faults) <= MOST_FAULTS:
        return faults
    more = f"and {len(faults) - MOST_FAULTS} more faults, {len(faults)} in all"
    return [*faults[:MOST_FAULTS], Fault(shown(file), more)]


def _by_line(fault: Fault) -> tuple[bool, str, int, str]:
    """The file from top to bottom, then the command line."""
    file, _, line = fault.where.rpartition(":")
    in_file = line.isdigit()
    return (not in_file, file if in_file else fault.where, int(line) if in_file else 0, fault.message)


def _wrong_stage(document: Document, stage: str | None) -> list[Fault]:
    given = document.values.get("stage")
    if given in STAGES and stage in (given, None):
        return []
    where = document.where(("stage",))
    if ("stage",) in document.spoiled:
        return []
    if given is None:
        begin = f"a recipe for this command begins with `stage: {stage}`"
        return [Fault(where, "`stage` is missing", begin if stage else f"one of {', '.join(STAGES)}")]
    if given in STAGES:
        told = f"this recipe is for `instructkit {given}`, not for `instructkit {stage}`"
        return [Fault(where, told, f"run `instructkit {given} {document.file}`")]
    near = nearest(given, list(STAGES)) if isinstance(given, str) else None
    told = f"no stage is called {given!r}" if isinstance(given, str) else f"`stage` is {shown_value(given)}"
    return [Fault(where, told, near or f"there are {', '.join(STAGES)}")]


def _unknown_keys(document: Document, stage: str) -> list[Fault]:
    recipe = RECIPES[stage]
    own = {name for name in recipe.model_fields if name != "source"}
    parts = sections(recipe)
    faults = [_unknown(document, (key,), own, parts) for key in document.values if key not in own]
    for name, section in parts.items():
        value = document.values.get(name)
        rows = value if isinstance(value, list) else [value]
        for i, row in enumerate(rows):
            place = (name, i) if isinstance(value, list) else (name,)
            unknown = [key for key in row if key not in section.model_fields] if isinstance(row, dict) else []
            faults += [_unknown(document, (*place, key), set(section.model_fields), parts) for key in unknown]
    return faults


def _unknown(document: Document, place: Place, allowed: set[str], parts: dict[str, type[BaseModel]]) -> Fault:
    key = str(place[-1])
    told = f"unknown key `{key}`" + (f" in `{place[0]}`" if len(place) > 1 else "")
    return Fault(document.where(place), told, _remedy(key, place, allowed, parts, document))


def _remedy(
    key: str, place: Place, allowed: set[str], parts: dict[str, type[BaseModel]], document: Document
) -> str:
    near = difflib.get_close_matches(key.replace("-", "_"), sorted(allowed), n=1, cutoff=0.7)
    if near:
        return f"did you mean `{near[0]}`?"
    homes = [name for name, section in parts.items() if key in section.model_fields and name != place[0]]
    if homes:
        return f"it belongs under `{homes[0]}:`"
    if trainer_fields.known(key, str(document.values.get("stage"))) and place[0] != "trainer":
        return "it belongs under `trainer:`"
    others = [stage for stage, recipe in RECIPES.items() if len(place) == 1 and key in recipe.model_fields]
    if others:
        return f"only `{'` and `'.join(others)}` recipes have it"
    return f"allowed are {', '.join(sorted(allowed))}"


def _validated(document: Document, stage: str) -> tuple[Any, list[Fault]]:
    values = {**document.values, "source": document.file}
    try:
        return RECIPES[stage].model_validate(values), []
    except ValidationError as error:
        return None, faults_of(error, document)
