"""From a file and overrides to a checked recipe: all faults at once, each with its line and the nearest right name."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from instructkit.errors import Fault, InputError, RecipeError
from instructkit.paths import shown
from instructkit.recipe import rules, trainer
from instructkit.recipe.aliases import by_another_name, home, same_within
from instructkit.recipe.document import Document, Place, dotted
from instructkit.recipe.messages import OTHER_NAMES, faults_of, near_name, nearest, real_place, shown_value
from instructkit.recipe.read import apply_overrides, read_document
from instructkit.recipe.schema import RECIPES, STAGES, sections

_ROUNDS = 6  # a value that is taken out may leave another one missing, and a list empty
_UNKNOWN = "?"


def contradictions(document: Document, stage: str, unsound: set[Place]) -> list[Fault]:
    """
    The faults between the sections of a recipe, without those that rest on a value with a fault of its own.

    Args:
        unsound: places of such values that are known already; those that pydantic finds are added.
    """
    if document.incomplete:  # what is left out here may be given there
        return []
    unsound = unsound | document.spoiled
    recipe, unsound = _readable({**document.values, "stage": stage, "source": document.file}, stage, unsound)
    if recipe is None:
        return []
    return [
        Fault(document.where(place), told, hint)
        for place, told, hint in rules.contradictions(recipe)
        if not any(_rests_on(place, told, other) for other in unsound)
    ]


def _readable(values: dict[str, Any], stage: str, unsound: set[Place]) -> tuple[Any, set[Place]]:
    """The recipe with a default, or a stand-in, for every value that is unsound, and the places of these."""
    recipe, unsound = RECIPES[stage], set(unsound)
    values = copy.deepcopy(values) if unsound else values
    for place in sorted(unsound, key=_from_the_end, reverse=True):
        _take_out(values, place, stage)
    for _ in range(_ROUNDS):
        try:
            return recipe.model_validate(values), unsound
        except ValidationError as error:
            values = copy.deepcopy(values)
            found = {real_place(item, values): item["type"] for item in error.errors()}
            for place in sorted(found, key=_from_the_end, reverse=True):
                if found[place] == "missing":
                    _stand_in(values, place, stage)
                else:
                    _take_out(values, place, stage)
                unsound.add(place)
    return None, unsound


def _from_the_end(place: Place) -> tuple[int, list[str]]:
    """Orders places from the deepest up and from the end of a list to its start, so that those to come stay what they are."""
    return len(place), [str(part).zfill(6) for part in place]


def _take_out(values: Any, place: Place, stage: str) -> None:
    """Remove a value; its section still counts as given, as does a section that is removed as a whole."""
    if not place:
        return
    first, last = place[0], place[-1]
    if first in sections(RECIPES[stage]) and (len(place) == 1 or values.get(first) is None):
        values[first] = _given(stage, first)
        return
    holder = _holder(values, place[:-1])
    if isinstance(holder, dict):
        holder.pop(last, None)
    elif isinstance(holder, list) and isinstance(last, int) and last < len(holder):
        del holder[last]


def _stand_in(values: Any, place: Place, stage: str) -> None:
    last = place[-1]
    holder = _holder(values, place[:-1])
    if isinstance(holder, dict):
        is_section = len(place) == 1 and last in sections(RECIPES[stage])
        holder[last] = _given(stage, last) if is_section else _UNKNOWN


def _given(stage: str, section: str | int) -> Any:
    """A section of which nothing is known but that it is there."""
    return [{"model": _UNKNOWN}] if (stage, section) == ("ppo", "reward") else {}


def _holder(values: Any, place: Place) -> Any:
    for part in place:
        inside = isinstance(values, dict) and part in values
        if not inside and not (isinstance(values, list) and isinstance(part, int) and part < len(values)):
            return None
        values = values[part]
    return values if isinstance(values, dict | list) else None


def _rests_on(place: Place, told: str, other: Place) -> bool:
    """Whether a rule looked at a value: it is told there, or names it; `eval_steps` has `logging_steps` for its default."""
    length = min(len(place), len(other))
    if place[:length] == other[:length]:
        return True
    names = set(re.findall(r"\w+", told))
    if "eval_steps" in names:
        names.add("logging_steps")
    keys = [part for part in other if isinstance(part, str)]
    return bool(keys) and keys[-1] in names


MOST_FAULTS = 100  # of a recipe that are told; the rest is counted
LONGEST_MESSAGE = 600  # characters
INTERNAL = "source"  # the field of a recipe that no file gives
_NAMED = re.compile(r"(`[^`]*`)?")  # the key that a message begins with
_LINE = re.compile(r"(.+?):([0-9]{1,9})(?::[0-9]{1,9})?", re.DOTALL)


@dataclass(frozen=True)
class Checked:
    """What is known of a recipe without loading anything: its faults, and where there are none the recipe itself."""

    path: str
    stage: str | None
    faults: list[Fault]
    recipe: Any = None
    document: Document | None = None
    untold: int = 0  # faults that are only counted, less the line that counts them

    @property
    def total(self) -> int:
        """How many faults there are, told or not."""
        return len(self.faults) + self.untold


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
        raise error_of(checked)
    return checked.recipe


def error_of(*checked: Checked, also: Sequence[Fault] = ()) -> RecipeError:
    """The faults of recipes as one error, which says how many there are of those that are only counted too."""
    faults = [*(fault for one in checked for fault in one.faults), *also]
    error = RecipeError(faults)
    error.total = sum(one.total for one in checked) + len(also)
    return error


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
    apply_overrides(document, overrides or [])
    wrong_stage = _wrong_stage(document, stage)
    given = document.values.get("stage")
    if wrong_stage and given in STAGES:  # another command's recipe, which is nothing to mend
        return Checked(document.file, stage, [*document.faults, *wrong_stage])
    recipe, faults = _checked_as(_likely_stages(document, stage), document)
    silent = {f"`{dotted(place)}`" for place in document.spoiled}
    faults = [fault for fault in faults if _NAMED.match(fault.message)[0] not in silent]
    # Of what another tool's recipe needs here nothing is missing yet.
    if wrong_stage and isinstance(given, str) and given in OTHER_NAMES:
        faults = [fault for fault in faults if not fault.message.endswith(" is missing")]
    faults = sorted([*document.faults, *wrong_stage, *map(_on_one_line, faults)], key=_by_line)
    told = _capped([_shortened(fault) for fault in faults], document.file)
    recipe = None if faults else recipe
    known = given if given in STAGES else stage
    return Checked(document.file, known, told, recipe, document, len(faults) - len(told))


def _likely_stages(document: Document, stage: str | None) -> list[str]:
    """The stage of a recipe; where it is not told, or misspelt, the one that is meant, or all whose sections these may be."""
    given = document.values.get("stage")
    if given in STAGES or stage:
        return [given if given in STAGES else stage]
    strange = {name: len(set(document.values) - set(recipe.model_fields)) for name, recipe in RECIPES.items()}
    fitting = [name for name in STAGES if strange[name] == min(strange.values())]
    near = near_name(given, list(STAGES)) if isinstance(given, str) else None
    return [near] if near in fitting else fitting


def _checked_as(stages: list[str], document: Document) -> tuple[Any, list[Fault]]:
    """The recipe and its faults; as a recipe of several stages, the faults that it has in every one of them."""
    recipe, faults = _faults_as(stages[0], document)
    for stage in stages[1:]:
        others = {(fault.where, fault.message): fault.hint for fault in _faults_as(stage, document)[1]}
        faults = [
            fault if others[key] == fault.hint else Fault(*key)
            for fault in faults
            if (key := (fault.where, fault.message)) in others
        ]
    return recipe, faults


def _faults_as(stage: str, document: Document) -> tuple[Any, list[Fault]]:
    trainer.take_back(document, stage)
    recipe, faults = _validated(document, stage)
    wrong_fields = trainer.check(document, stage)
    faults += _unknown_keys(document, stage) + [fault for _, fault in wrong_fields]
    return recipe, faults + contradictions(document, stage, {place for place, _ in wrong_fields})


def _capped(faults: list[Fault], file: str) -> list[Fault]:
    """As many faults as a person reads, and how many there are."""
    if len(faults) <= MOST_FAULTS:
        return faults
    more = f"and {len(faults) - MOST_FAULTS} more faults, {len(faults)} in all"
    return [*faults[:MOST_FAULTS], Fault(shown(file), more)]


def _on_one_line(fault: Fault) -> Fault:
    """A fault whose names, which are the user's, begin no line of their own."""
    return Fault(fault.where, fault.message.replace("\n", "\\n"), fault.hint)


def _shortened(fault: Fault) -> Fault:
    """A fault without the middle of a name or value that no one would read."""
    if len(fault.message) <= LONGEST_MESSAGE:
        return fault
    half = LONGEST_MESSAGE // 2
    return Fault(fault.where, f"{fault.message[:half]} ... {fault.message[-half:]}", fault.hint)


def _by_line(fault: Fault) -> tuple[bool, str, int, str]:
    """The file from top to bottom, then the command line."""
    place = None if fault.where.startswith("command line") else _LINE.fullmatch(fault.where)
    file, line = place.groups() if place else (fault.where, "0")
    return (place is None, file, int(line), fault.message)


def _wrong_stage(document: Document, stage: str | None) -> list[Fault]:
    given = document.values.get("stage")
    if given in STAGES and stage in (given, None):
        return []
    where = document.where(("stage",))
    if ("stage",) in document.spoiled or given is None and document.incomplete:
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
    own = {name for name in recipe.model_fields if name != INTERNAL}
    parts = sections(recipe)
    faults = [_unknown(document, (key,), own, stage) for key in document.values if key not in own]
    for name, section in parts.items():
        value = document.values.get(name)
        rows = value if isinstance(value, list) else [value]
        for i, row in enumerate(rows):
            place = (name, i) if isinstance(value, list) else (name,)
            unknown = [key for key in row if key not in section.model_fields] if isinstance(row, dict) else []
            faults += [_unknown(document, (*place, key), set(section.model_fields), stage) for key in unknown]
    return faults


def _unknown(document: Document, place: Place, allowed: set[str], stage: str) -> Fault:
    key, section = str(place[-1]), str(place[0]) if len(place) > 1 else ""
    told = f"unknown key `{key}`" + (f" in `{section}`" if section else "")
    return Fault(document.where(place), told, _remedy(key, section, allowed, stage))


def override_for(option: str, stage: str) -> str | None:
    """
    Return the override for an option of another tool, such as `trainer.learning_rate` for `--lr`.

    Args:
        option: with or without its dashes.
    """
    key = option.lstrip("-").replace("-", "_")
    if "." in key:
        return key
    if key in ("model", "data"):
        return {"model": "model.name", "data": "data.train"}[key]
    text = trainer.OURS.get(key, "")
    if not text and trainer.known(trainer.FOREIGN.get(key, key), stage):
        return f"trainer.{trainer.FOREIGN.get(key, key)}"
    text = text or home(key, stage) or ""
    if same := re.search(r"`([a-z]+\.[a-z_]+)`", text):
        return same[1]
    if under := re.search(r"belongs under `([a-z]+):`", text):
        return f"{under[1]}.{key}"
    return None


def _remedy(key: str, section: str, allowed: set[str], stage: str) -> str:
    if told := by_another_name(key, stage):
        return told
    if (same := same_within(section, key)) in allowed:
        return f"`{section}.{same}` does the same here"
    near = difflib.get_close_matches(key.replace("-", "_"), sorted(allowed), n=1, cutoff=0.7)
    if near:
        return f"did you mean `{near[0]}`?"
    if told := home(key, stage, within=section):
        return told
    if key in trainer.OURS:
        return trainer.OURS[key]
    if trainer.known(trainer.FOREIGN.get(key, ""), stage):
        return f"`trainer.{trainer.FOREIGN[key]}` does the same here"
    if trainer.known(key, stage):
        return "it belongs under `trainer:`"
    if not section and key != INTERNAL:
        others = [name for name, recipe in RECIPES.items() if key in recipe.model_fields]
        if others:
            return f"only `{'` and `'.join(others)}` recipes have it"
    return f"allowed are {', '.join(sorted(allowed))}"


def _validated(document: Document, stage: str) -> tuple[Any, list[Fault]]:
    values = {**document.values, "stage": stage, INTERNAL: document.file}
    try:
        return RECIPES[stage].model_validate(values), []
    except ValidationError as error:
        found = faults_of(error, document)
    # What is missing may stand in a base that could not be read.
    return None, [f for f in found if not (document.incomplete and f.message.endswith(" is missing"))]
