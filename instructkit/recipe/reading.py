"""From a file to a document: encodings, YAML with its lines, the environment, and the recipe that it extends."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from instructkit.errors import Fault, InputError, RecipeError
from instructkit.recipe.document import Document, Place, dotted, lay_over
from instructkit.recipe.environment import resolve
from instructkit.recipe.paths import encoding_of, oddity, shown
from instructkit.recipe.yaml_core import Loader, convert, resolved

NO_VALUE = "write one, `null` for none, `{}` for a section of defaults, or remove the key"
MOST_VALUES = 20_000
_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_DATA = (".jsonl", ".json", ".csv", ".parquet", ".gz")
EXTENDS = "extends"


def read_document(path: str) -> Document:
    """
    Read a recipe and what it extends; faults of single values are noted in the document.

    Raises:
        InputError: when there is no such file, or it is not UTF-8.
        RecipeError: when it, or what it extends, is not YAML, or not a mapping.
    """
    return _with_bases(path, ())


def _with_bases(path: str, chain: tuple[Path, ...]) -> Document:
    document = _read_one(path)
    given = document.values.pop(EXTENDS, None)
    if given is None:
        return document
    where = document.where((EXTENDS,))
    document.forget((EXTENDS,))
    names = given if isinstance(given, list) else [given]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise RecipeError(
            [Fault(where, f"`extends` is {given!r}", "give the path of a recipe, or a list of them")]
        )
    below: Document | None = None
    for name in names:
        base = _base(path, name, where, (*chain, Path(path).resolve()))
        below = base if below is None else lay_over(below, base)
    return lay_over(below, document)


def _base(path: str, name: str, where: str, chain: tuple[Path, ...]) -> Document:
    """The document of one name under `extends`, which is relative to the recipe that gives it."""
    base = Path(path).parent / Path(name).expanduser()
    if base.resolve() in chain:
        way = " -> ".join(file.name for file in (*chain, base.resolve()))
        raise RecipeError([Fault(where, f"`extends` goes in a circle: {way}", "remove one of them")])
    try:
        return _with_bases(str(base), chain)
    except RecipeError:
        raise
    except InputError as error:
        raise RecipeError([Fault(where, f"`extends`: {error.message}", error.hint)]) from error


def _read_one(path: str) -> Document:
    root = _compose(path, _text(path))
    document = Document(path)
    if not isinstance(root, yaml.MappingNode):
        told = "a recipe is a mapping of sections"
        raise RecipeError([Fault(f"{path}:1", told, _data_hint(path) or "start with `stage: sft`")])
    document.values = value_of(root, (), document)
    return document


def _data_hint(path: str) -> str | None:
    looks_like_data = Path(path).suffix.lower() in _DATA
    return (
        f"this looks like data; name it in a recipe: `data: {{train: {path}}}`" if looks_like_data else None
    )


def _text(path: str) -> str:
    if not path.strip():
        raise InputError("no recipe is named", hint="give the path of a YAML file, such as recipes/sft.yaml")
    if odd := oddity(path):
        raise InputError(f"{shown(path)} is {odd}", hint="give a recipe: a YAML file in UTF-8")
    try:
        content = Path(path).read_bytes()
        if encoding := encoding_of(content[:4]):
            raise RecipeError([Fault(f"{path}:1", encoding, "save the file as UTF-8")])
        return content.decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"no recipe at {path}", hint=_near(path)) from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        told = "not a text" if b"\x00" in content[:1024] else "not UTF-8"
        raise RecipeError(
            [Fault(f"{path}:{line}", told, _data_hint(path) or "save the file as UTF-8")]
        ) from error
    except OSError as error:  # a folder, no permission
        told = f"{path} is a folder" if Path(path).is_dir() else f"{path} cannot be read: {error.strerror}"
        raise InputError(told, hint="give a recipe: a YAML file in UTF-8") from error


def _near(path: str) -> str:
    folder = Path(path).parent
    names = [str(item) for item in sorted(folder.glob("*.y*ml"))] if folder.is_dir() else []
    names = [name for name in names if name != path and not oddity(name)]
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
        told = f"not YAML: {problem}{_pointed(text, line, column)}"
        hint = _yaml_hint(path, problem, text)
        raise RecipeError([Fault(f"{path}:{line}:{column}", told, hint)]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        told = f"not YAML: a character that is not allowed, U+{error.character:04X}"
        raise RecipeError([Fault(f"{path}:{line}", told, "remove it")]) from error
    except RecursionError as error:
        raise RecipeError([Fault(f"{path}:1", "not a recipe: it is nested too deeply")]) from error


def _yaml_hint(path: str, problem: str, text: str) -> str | None:
    if "'\\t'" in problem:
        return "indent with spaces; YAML takes no tabs"
    if re.search(r"^<{7} ", text, re.MULTILINE):
        return "the file holds an unresolved merge; keep one side"
    if re.search(r"[{,:] *\$\{[^}\n]*\}[^\n]*\}", text):
        return "within braces a reference `${NAME}` needs quotes, or a line of its own"
    return _data_hint(path)


def _pointed(text: str, line: int, column: int) -> str:
    lines = text.splitlines()
    return f"\n  {lines[line - 1]}\n  {' ' * (column - 1)}^" if line <= len(lines) else ""


def value_of(node: yaml.Node, place: Place, document: Document, above: tuple[yaml.Node, ...] = ()) -> Any:
    """The value of a YAML node; where it and its parts stand, and what is wrong with them, goes into the document."""
    where = f"{document.file}:{node.start_mark.line + 1}"
    document.places[place] = where
    if (
        len(document.places) > MOST_VALUES
    ):  # aliases of aliases can stand for more values than any machine holds
        told = f"more than {MOST_VALUES} values"
        raise RecipeError([Fault(where, told, "write the recipe without its aliases")])
    if any(node is other for other in above):
        document.spoil(place, where, "an alias that stands for what it is in", "write the value out")
        return None
    if not isinstance(node, yaml.ScalarNode) and not node.tag.startswith(_PLAIN):
        told = f"the tag `{node.tag.replace('tag:yaml.org,2002:', '!!')}` means nothing in a recipe"
        document.spoil(place, where, told, "write plain values")
        return None
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, document, (*above, node))
    if isinstance(node, yaml.SequenceNode):
        return [value_of(item, (*place, i), document, (*above, node)) for i, item in enumerate(node.value)]
    if node.value == "" and node.style is None and place:
        document.spoil(place, where, f"`{dotted(place)}` has no value", NO_VALUE)
    try:
        return convert(_with_environment(node, place, where, document))
    except ValueError as error:
        document.spoil(place, where, str(error), "write a plain value; quotes make a text")
        return None


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
        found[key] = value_of(value_node, (*place, key), document, above)
        document.places[(*place, key)] = f"{document.file}:{line}"
    return found


def _with_environment(node: yaml.ScalarNode, place: Place, where: str, document: Document) -> yaml.ScalarNode:
    """Unquoted, a reference may stand for a number; quoted it stays a text."""
    if "${" not in node.value:
        return node
    text, told = resolve(node.value)
    for message, hint in told:
        document.spoil(place, where, f"`{dotted(place)}` {message}", hint)
    return resolved(text, node)
