"""Faults of `trainer:`: names that TRL does not have, with the way on, and values that it would not take."""

from __future__ import annotations

import difflib
import math
from typing import Any

from instructkit.errors import Fault
from instructkit.recipe import homes, trainer_fields
from instructkit.recipe.document import Document, Place, dotted
from instructkit.recipe.wording import IN_WORDS, shown_value

Found = tuple[Place, Fault]

_CHECKS = {
    "bool": lambda v: isinstance(v, bool),
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: type(v) is int or isinstance(v, float) and math.isfinite(v),
    "str": lambda v: isinstance(v, str),
    "list": lambda v: isinstance(v, list),
    "dict": lambda v: isinstance(v, dict),
    "null": lambda v: v is None,
    "any": lambda v: True,
}


def check(document: Document, stage: str) -> list[Found]:
    """Faults of the `trainer:` section: unknown names with the nearest right one, and values of the wrong type."""
    given = document.values.get("trainer")
    if not isinstance(given, dict):
        return []
    if stage != "lora-update":
        return _check(document, ("trainer",), given, stage, stage)
    common = {key: value for key, value in given.items() if key not in trainer_fields.UPDATE_PARTS}
    found = _check(document, ("trainer",), common, stage, stage)
    for part in trainer_fields.UPDATE_PARTS:
        place: Place = ("trainer", part)
        if part in given and not isinstance(given[part], dict):
            told = f"`trainer.{part}` is {shown_value(given[part])}; wanted a section"
            hint = f"its fields stand below it; remove `{part}:` if there are none"
            found.append((place, Fault(document.where(place), told, hint)))
        elif part in given:
            found += _check(document, place, given[part], stage, part)
    return found


def take_back(document: Document, stage: str) -> None:
    """Fields of `trainer:` that are null where TRL takes no null are as if nobody had given them: a base's value is gone."""
    given = document.values.get("trainer")
    if not isinstance(given, dict):
        return
    _without_nulls(document, ("trainer",), given, trainer_fields.schema()[stage])
    for part in trainer_fields.UPDATE_PARTS if stage == "lora-update" else ():
        if isinstance(given.get(part), dict):
            _without_nulls(document, ("trainer", part), given[part], trainer_fields.schema()[part])


def _without_nulls(document: Document, place: Place, given: dict[str, Any], allowed: dict[str, Any]) -> None:
    gone = [
        key
        for key, value in given.items()
        if value is None
        and (*place, key) not in document.spoiled
        and not {"null", "any"} & set(allowed.get(key, {}).get("types", ["any"]))
    ]
    for key in gone:
        del given[key]
        document.forget((*place, key))


def _check(document: Document, place: Place, given: dict[str, Any], stage: str, fields: str) -> list[Found]:
    section, found = dotted(place), []
    for key, value in given.items():
        told, hint = _told(key, value, section, trainer_fields.schema()[fields])
        if told and key not in trainer_fields.schema()[fields] and key not in trainer_fields.OURS:
            hint = _remedy(key, section, stage, fields)
        if told:
            here = (*place, key)
            found.append((here, Fault(document.where(here), told, hint)))
    return found


def _told(key: str, value: Any, section: str, allowed: dict[str, Any]) -> tuple[str | None, str | None]:
    """What is wrong with a field, and the way on."""
    if key in trainer_fields.OURS:
        return f"`{section}.{key}` is not set here", trainer_fields.OURS[key]
    if key not in allowed:
        return f"unknown key `{key}` in `{section}`", None
    told = f"`{section}.{key}` is {shown_value(value)}"
    if not any(_CHECKS[kind](value) for kind in allowed[key]["types"]):
        return f"{told}; wanted {_wanted(value, allowed[key]['types'])}", None
    if isinstance(value, int | float) and not isinstance(value, bool) and (wanted := _range(key, value)):
        return f"{told}; {wanted}", None
    if isinstance(value, str) and value not in (choices := allowed[key].get("choices", [value])):
        return told, _nearest(value, choices)
    return None, None


def _range(key: str, value: float) -> str | None:
    if key in trainer_fields.ABOVE_0 and value <= 0:
        return "it must be above 0"
    if key in trainer_fields.NOT_BELOW_0 and value < 0:
        return "it must not be below 0"
    if key in trainer_fields.BELOW_1 and value >= 1:
        return "it must be below 1"
    if value >= trainer_fields.MOST and key != "data_seed":
        return f"it must be below {trainer_fields.MOST}"
    if key == "max_steps" and value < 1 and value != -1:
        return "it must be above 0, or -1 for none"
    return None


def _nearest(value: str, choices: list[str]) -> str:
    """The choice that is near, or the first whose first word is: `adamw` is nearer to `adamw_torch` than to `grokadamw`."""
    words = {choice.partition("_")[0]: choice for choice in reversed(choices)}
    names = {choice: choice for choice in choices} | words
    near = difflib.get_close_matches(value, list(names), n=1, cutoff=0.6)
    return f"did you mean `{names[near[0]]}`?" if near else f"it is one of {', '.join(choices)}"


def _wanted(value: Any, kinds: list[str]) -> str:
    """The kinds that a field takes; of a number that is none, that it be one."""
    if isinstance(value, float) and not math.isfinite(value) and {"int", "float"} & set(kinds):
        return "a finite number"
    return " or ".join(IN_WORDS.get(kind, kind) for kind in kinds)


def _remedy(key: str, section: str, stage: str, fields: str) -> str:
    """The way on from a name that TRL's config does not have."""
    allowed = trainer_fields.schema()[fields]
    if trainer_fields.FOREIGN.get(key) in allowed:
        return f"TRL's name for it is `{trainer_fields.FOREIGN[key]}`"
    parts = trainer_fields.UPDATE_PARTS if fields == "lora-update" else ()
    if part := next((part for part in parts if key in trainer_fields.schema()[part]), None):
        return f"it belongs under `trainer.{part}:`"
    if told := homes.home(key, stage, within="trainer") or homes.near_home(key, stage, list(allowed)):
        return told
    near = difflib.get_close_matches(key.replace("-", "_"), sorted(allowed), n=1, cutoff=0.6)
    if near:
        return trainer_fields.OURS.get(near[0]) or f"did you mean `{near[0]}`?"
    others = [stage for stage, theirs in trainer_fields.schema().items() if key in theirs]
    if others:
        return f"it is a field of {' and '.join(others)}, not of this stage"
    return f"`instructkit explain {stage}.{section}` lists the fields"
