"""Faults that pydantic finds in a recipe, in the words in which all of them are told."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from instructkit.errors import Fault
from instructkit.recipe.document import Document, Place, dotted
from instructkit.recipe.schema import Weighted

EXAMPLES = {
    "model": "write `model: {name: runs/sft}`",
    "model.name": "write `name: runs/sft`",
    "data": "write `data: {train: my.jsonl}`",
    "data.train": "write `train: my.jsonl`",
    "run": "write `run: {output: runs/mine}`",
    "run.output": "write `output: runs/mine`",
    "reward": "write `reward: [{model: runs/reward}]`",
    "feedback": "write `feedback: {events: my.jsonl}`",
    "feedback.events": "write `events: my.jsonl`",
    "lora": "write `lora: {r: 16}`, or `lora: {}` for the defaults",
    "trainer": "write `trainer: {learning_rate: 1.0e-5}`",
}
OTHER_NAMES = {
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "dpo": "lora-update",
    "kto": "lora-update",
    "rm": "reward",
    "rlhf": "ppo",
}
IN_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a section",
    "any": "anything",
}
_KINDS = {
    **{f"{kind}_type": told for kind, told in IN_WORDS.items()},
    "string_type": IN_WORDS["str"],
    "model_type": IN_WORDS["dict"],
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": ("gt", "it must be above"),
    "greater_than_equal": ("ge", "it must not be below"),
    "less_than": ("lt", "it must be below"),
    "less_than_equal": ("le", "it must not be above"),
}


def faults_of(error: ValidationError, document: Document) -> list[Fault]:
    """
    What pydantic found, a fault for each value.

    A value that fits none of several alternatives is one fault of the user: told by the alternative that read deepest into
    it, and there by the first that takes values of its kind, or by all the kinds that would do.
    """
    found: dict[Place, list[dict[str, Any]]] = {}
    for item in error.errors():
        place = real_place(item, document.values)
        if item["type"] == "extra_forbidden" and len(place) <= 3:
            continue  # the keys of a section, and of its rows, are told by `load`
        found.setdefault(place, []).append(item)
    deeper = {place[:i] for place in found for i in range(len(place))}
    return [_fault(items, place, document) for place, items in found.items() if place not in deeper]


def _fault(items: list[dict[str, Any]], place: Place, document: Document) -> Fault:
    name, where = dotted(place), document.where(place)
    item = next((item for item in items if item["type"] not in _KINDS), items[0])
    kind, given = item["type"], item["input"]
    if kind == "missing":
        return Fault(where, f"`{name}` is missing", EXAMPLES.get(name))
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), list(Weighted.model_fields), n=1)
        told = f"unknown key `{place[-1]}` in `{dotted(place[:-1])}`"
        return Fault(where, told, f"did you mean `{near[0]}`?" if near else None)
    if kind == "too_short":
        return Fault(where, f"`{name}` is an empty list", "name at least one")
    told, hint = f"`{name}` is {shown_value(given)}", EXAMPLES.get(name)
    if kind in _KINDS:
        kinds = dict.fromkeys(_KINDS[item["type"]] for item in items)
        return Fault(where, f"{told}; wanted {' or '.join(kinds)}", hint)
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return Fault(where, f"{told}; {words} {item['ctx'][key]:.15g}")
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        return Fault(where, f"{told}; wanted {one_of(choices)}", nearest(str(given), choices))
    if kind == "finite_number":
        return Fault(where, f"{told}; wanted a finite number")
    if kind == "string_pattern_mismatch":
        return Fault(where, f"{told}; wanted a name", hint)
    message = item["msg"].removeprefix("Value error, ")
    return Fault(where, f"{told}: {message[0].lower()}{message[1:]}")


def shown_value(value: Any) -> str:
    """A value as a message shows it."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def one_of(choices: Sequence[str]) -> str:
    """Words of which one is wanted."""
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def nearest(given: str, names: list[str]) -> str | None:
    """`did you mean ...?`, where one of the names is near."""
    near = near_name(given, names)
    return f"did you mean `{near}`?" if near else None


def near_name(given: str, names: list[str]) -> str | None:
    """The one of the names that was meant, if it is near or means the same elsewhere."""
    near = difflib.get_close_matches(OTHER_NAMES.get(given, given), names, n=1, cutoff=0.6)
    return near[0] if near else None


def real_place(item: dict[str, Any], values: Any) -> Place:
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
