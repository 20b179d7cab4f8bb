"""
What can be read of a recipe with faults, so that the rules between its sections are told beside them.

It serves those rules alone: nothing is ever trained from it.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from pydantic import ValidationError

from instructkit.errors import Fault
from instructkit.recipe import rules
from instructkit.recipe.document import Document, Place
from instructkit.recipe.schema import RECIPES, sections
from instructkit.recipe.wording import real_place

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
