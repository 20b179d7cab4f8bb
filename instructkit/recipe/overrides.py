"""`section.key=value` on the command line, stronger than any file."""

from __future__ import annotations

from typing import Any

import yaml

from instructkit.errors import Fault
from instructkit.recipe.document import Document
from instructkit.recipe.reading import NO_VALUE, value_of
from instructkit.recipe.yaml_core import Loader


def apply_override(document: Document, override: str) -> None:
    """Set `section.key=value`; the value is read as YAML."""
    where = f"command line: {override}"
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        document.faults.append(Fault(where, "an override is `section.key=value`"))
        return
    place = tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))
    read = Document(where)
    try:
        node = yaml.compose(text, Loader=Loader)
    except (yaml.YAMLError, RecursionError):
        document.faults.append(Fault(where, f"{text!r} is no YAML value"))
        return
    if node is None:
        document.faults.append(Fault(where, f"`{key.strip()}` has no value", NO_VALUE))
        return
    value = value_of(node, (), read)
    if read.faults:
        document.faults += [Fault(where, fault.message, fault.hint) for fault in read.faults]
        return
    target: Any = document.values
    for part in place[:-1]:
        nested = _child(target, part)
        if nested is None:
            if not isinstance(target, dict):
                document.faults.append(Fault(where, f"there is no `{part}` to set"))
                return
            nested = target[part] = {}
        target = nested
    if isinstance(target, list) and not (isinstance(place[-1], int) and place[-1] < len(target)):
        document.faults.append(Fault(where, f"the list has {len(target)} entries"))
        return
    target[place[-1]] = value
    document.forget(place)
    document.places[place] = where


def _child(target: Any, part: str | int) -> Any:
    if isinstance(target, dict):
        child = target.get(part)
        return child if isinstance(child, dict | list) else None
    if isinstance(target, list) and isinstance(part, int) and part < len(target):
        return target[part]
    return None
