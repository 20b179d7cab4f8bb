"""From a file and overrides to a checked recipe: all faults at once, each with its line and the nearest right name."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from instructkit.errors import Fault, InputError, RecipeError
from instructkit.recipe import trainer_fields
from instructkit.recipe.document import Document, Place, dotted
from instructkit.recipe.overrides import apply_override
from instructkit.recipe.reading import read_document
from instructkit.recipe.rules import contradictions
from instructkit.recipe.schema import RECIPES, STAGES, Weighted, sections

_EXAMPLES = {
    "model": "write `model: {name: runs/sft}`",
    "data": "write `data: {train: my.jsonl}`",
    "run": "write `run: {output: runs/mine}`",
    "reward": "write `reward: [{model: runs/reward}]`",
    "feedback": "write `feedback: {events: my.jsonl}`",
    "lora": "write `lora: {r: 16}`, or `lora: {}` for the defaults",
    "trainer": "write `trainer: {learning_rate: 1.0e-5}`",
}
_ALIASES = {
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "dpo": "lora-update",
    "kto": "lora-update",
    "rm": "reward",
    "rlhf": "ppo",
}


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
        told = error.message.replace(f" at {path}", "").removeprefix(f"{path} ")
        return Checked(path, stage, [Fault(path, told, error.hint)])


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
    faults = sorted([*document.faults, *faults], key=_by_line)
    return Checked(document.file, stage, faults, None if faults else recipe, document)


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
    told = f"no stage is called {given!r}" if isinstance(given, str) else f"`stage` is {_shown(given)}"
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
        # A value that fits none of several alternatives is one fault of the user: told by the alternative that read
        # deepest into it, and there by the first that takes values of its kind.
        found: dict[Place, dict[str, Any]] = {}
        for item in error.errors():
            place = _real_place(item, document.values)
            if item["type"] == "extra_forbidden" and len(place) <= 3:
                continue  # the keys of a section, and of its rows, are told by `_unknown_keys`
            if place not in found or _is_of_kind(found[place]):
                found[place] = item
        deeper = {place[:i] for place in found for i in range(len(place))}
        return None, [
            _as_fault(item, place, document) for place, item in found.items() if place not in deeper
        ]


def _is_of_kind(item: dict[str, Any]) -> bool:
    """Whether a fault says only that a value is of another kind than wanted."""
    return item["type"].endswith("_type")


def _as_fault(item: dict[str, Any], place: Place, document: Document) -> Fault:
    name, kind, where = dotted(place), item["type"], document.where(place)
    if kind == "missing":
        return Fault(where, f"`{name}` is missing")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), list(Weighted.model_fields), n=1)
        told = f"unknown key `{place[-1]}` in `{dotted(place[:-1])}`"
        return Fault(where, told, f"did you mean `{near[0]}`?" if near else None)
    given = item["input"]
    if kind in ("model_type", "dict_type"):
        return Fault(where, f"`{name}` is {_shown(given)}; wanted a section", _EXAMPLES.get(name))
    if kind == "list_type":
        return Fault(where, f"`{name}` is {_shown(given)}; wanted a list", _EXAMPLES.get(name))
    if kind == "too_short":
        return Fault(where, f"`{name}` is an empty list", "name at least one")
    message = item["msg"].removeprefix("Value error, ")
    hint = None
    if kind == "literal_error":
        hint = nearest(str(given), re.findall(r"'([^']*)'", item["ctx"]["expected"]))
    return Fault(where, f"`{name}` is {_shown(given)}: {message[0].lower()}{message[1:]}", hint)


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    return repr(value)


def nearest(given: str, names: list[str]) -> str | None:
    """`did you mean ...?`, where one of the names is near."""
    near = difflib.get_close_matches(_ALIASES.get(given, given), names, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else None


def _real_place(item: dict[str, Any], values: Any) -> Place:
    """A location without pydantic's names of alternatives: only the parts that the document has, and a missing last one."""
    location = item["loc"]
    place: list[str | int] = []
    here = values
    for i, part in enumerate(location):
        inside = isinstance(here, dict) and part in here
        inside = inside or (isinstance(here, list) and isinstance(part, int) and part < len(here))
        if inside:
            here = here[part]
            place.append(part)
        elif i == len(location) - 1 and item["type"] == "missing":
            place.append(part)
    return tuple(place)
