"""A YAML document as plain values that remember the line they stand on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from instructkit.errors import Fault, InputError, RecipeError
from instructkit.recipe.yaml_core import Loader, convert

Place = tuple[str | int, ...]

_NO_VALUE = "write one, `null` for none, `{}` for a section of defaults, or remove the key"


@dataclass
class Document:
    """Values, and where each key stands: `file:line`, or the override on the command line that set it."""

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Place, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def where(self, place: Place) -> str:
        """Where a value stands, or the nearest mapping around it that does."""
        while place and place not in self.places:
            place = place[:-1]
        return self.places.get(place, f"{self.file}:1")


def read_document(path: str) -> Document:
    """
    Read a YAML file; keys given twice are noted as faults.

    Raises:
        InputError: when there is no such file, or it is not UTF-8.
        RecipeError: when it is not YAML, or not a mapping.
    """
    root = _compose(path, _text(path))
    document = Document(path)
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(
            [Fault(f"{path}:1", "a recipe is a mapping of sections", "start with `stage: sft`")]
        )
    document.values = _value(root, (), document, ())
    return document


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
        document.faults.append(Fault(where, f"`{key.strip()}` has no value", _NO_VALUE))
        return
    value = _value(node, (), read, ())
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
    for known in [known for known in document.places if known[: len(place)] == place]:
        del document.places[known]
    document.places[place] = where


def _child(target: Any, part: str | int) -> Any:
    if isinstance(target, dict):
        child = target.get(part)
        return child if isinstance(child, dict | list) else None
    if isinstance(target, list) and isinstance(part, int) and part < len(target):
        return target[part]
    return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"no recipe at {path}", hint=_near(path)) from error
    except (UnicodeDecodeError, IsADirectoryError, PermissionError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", hint="a recipe is a YAML file in UTF-8"
        ) from error


def _near(path: str) -> str:
    import difflib

    folder = Path(path).parent
    names = [str(item) for item in sorted(folder.glob("*.y*ml"))] if folder.is_dir() else []
    near = difflib.get_close_matches(path, names, n=3, cutoff=0.4) or names[:6]
    return (
        f"there are {', '.join(near)}" if near else "give the path of a YAML file, such as recipes/sft.yaml"
    )


def _compose(path: str, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problem = " ".join(part for part in (error.context, error.problem) if part)
        told = _pointed(text, line, column)
        raise RecipeError([Fault(f"{path}:{line}:{column}", f"not YAML: {problem}{told}")]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        told = f"not YAML: a character that is not allowed, {error.character!r}"
        raise RecipeError([Fault(f"{path}:{line}", told, "remove it")]) from error
    except RecursionError as error:
        raise RecipeError([Fault(f"{path}:1", "not a recipe: it is nested too deeply")]) from error


def _pointed(text: str, line: int, column: int) -> str:
    lines = text.splitlines()
    return f"\n  {lines[line - 1]}\n  {' ' * (column - 1)}^" if line <= len(lines) else ""


def _value(node: yaml.Node, place: Place, document: Document, above: tuple[yaml.Node, ...]) -> Any:
    where = f"{document.file}:{node.start_mark.line + 1}"
    document.places[place] = where
    if any(node is other for other in above):
        document.faults.append(Fault(where, "an alias that stands for what it is in", "write the value out"))
        return None
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, document, (*above, node))
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*place, i), document, (*above, node)) for i, item in enumerate(node.value)]
    if node.value == "" and node.style is None and place:
        document.faults.append(Fault(where, f"`{dotted(place)}` has no value", _NO_VALUE))
    try:
        return convert(node)
    except ValueError as error:
        document.faults.append(Fault(where, str(error), "write a plain value; quotes make a text"))
        return None


def dotted(place: Place) -> str:
    """A place as a user writes it: `section.key`."""
    return ".".join(str(part) for part in place)


def _mapping(
    node: yaml.MappingNode, place: Place, document: Document, above: tuple[yaml.Node, ...]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.faults.append(Fault(f"{document.file}:{line}", "a key that is no name", "write a name"))
            continue
        key = str(key_node.value)
        if key in found:
            first = document.places[(*place, key)]
            message = f"`{key}` is given twice, first at {first}"
            document.faults.append(Fault(f"{document.file}:{line}", message, "keep one of them"))
            continue
        found[key] = _value(value_node, (*place, key), document, above)
        document.places[(*place, key)] = f"{document.file}:{line}"
    return found
