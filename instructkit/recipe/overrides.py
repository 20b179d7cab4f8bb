"""`section.key=value` on the command line, stronger than any file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from instructkit.errors import Fault
from instructkit.recipe.document import Document, Place, dotted
from instructkit.recipe.paths import shown
from instructkit.recipe.values import NO_VALUE, value_of
from instructkit.recipe.yaml_core import Loader


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Set each override; spaces around its `=` are one error."""
    words = list(overrides)
    while words:
        spaced = _spaced(words)
        if spaced == 1:
            apply_override(document, words[0])
        else:
            where = f"command line: {shown(' '.join(words[:spaced]))}"
            rule = "an override has no spaces around its `=`"
            document.faults.append(Fault(where, rule, f"write `{shown(''.join(words[:spaced]))}`"))
        del words[:spaced]


def _spaced(words: Sequence[str]) -> int:
    """Return how many of the first words make up one override."""
    first, second = words[0], words[1] if words[1:] else ""
    if "=" not in first and second.startswith("="):
        return min(len(words), 3 if second == "=" else 2)
    return 2 if first.find("=") == len(first) - 1 and second and "=" not in second else 1


def apply_override(document: Document, override: str) -> None:
    """Set `section.key=value`; the value is read as YAML."""
    where = f"command line: {shown(override)}"
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        document.faults.append(Fault(where, "an override is `section.key=value`"))
        return
    place = tuple(int(part) if _is_index(part) else part for part in key.strip().split("."))
    read = Document(where)
    try:
        node = yaml.compose(text, Loader=Loader)
    except (yaml.YAMLError, RecursionError):
        document.spoil(
            place, where, f"{shown(text)!r} is no YAML value", "quote it, for the shell and for YAML"
        )
        return
    if node is None:
        document.spoil(place, where, f"`{key.strip()}` has no value", NO_VALUE)
        return
    value = value_of(node, (), read)
    if read.faults:
        told = [fault.message.replace("``", f"`{key.strip()}`") for fault in read.faults]
        hints = [fault.hint for fault in read.faults]
        document.faults += [Fault(where, *both) for both in zip(told, hints, strict=True)]
        document.spoiled.add(place)
        return
    target = _holder(document, place, where)
    if target is None:
        return
    target[place[-1]] = value
    document.forget(place)
    document.places[place] = where


def _is_index(part: str) -> bool:
    """Whether a part is a number in a list; what no list is long enough for is a name."""
    return part.isascii() and part.isdecimal() and len(part) < 10


def _holder(document: Document, place: Place, where: str) -> Any:
    """What holds the value at a place, made where it is missing; None, and a fault, where it cannot hold one."""
    target: Any = document.values
    for i, part in enumerate(place):
        if fault := _misfit(target, place[:i], part, where):
            document.faults.append(fault)
            return None
        if i == len(place) - 1:
            break
        nested = _child(target, part)
        if nested is None and isinstance(place[i + 1], int):
            document.faults.append(_misfit({}, place[: i + 1], place[i + 1], where))
            return None
        if nested is None:
            nested = target[part] = {}
            document.places[place[: i + 1]] = where
        target = nested
    return target


def _misfit(target: Any, place: Place, part: str | int, where: str) -> Fault | None:
    """Why a list or a mapping can have no such part."""
    if isinstance(target, list) and not (isinstance(part, int) and part < len(target)):
        return Fault(where, f"`{dotted(place)}` is a list of {len(target)}, which has no `{part}`")
    if isinstance(target, dict) and isinstance(part, int) and place:
        way = f"set all of it: `{dotted(place)}=[first, second]`"
        return Fault(where, f"`{dotted(place)}` is no list, and has no entry {part}", way)
    if not isinstance(target, dict | list):
        return Fault(where, f"`{dotted(place)}` is {target!r}, which has no `{part}`")
    return None


def _child(target: Any, part: str | int) -> Any:
    if isinstance(target, dict):
        child = target.get(part)
        return child if isinstance(child, dict | list) else None
    return target[part]
