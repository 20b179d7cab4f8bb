"""From a file to a document: encodings, YAML with its lines, and the recipes that it extends."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from instructkit.errors import Fault, InputError, RecipeError
from instructkit.paths import encoding_of, oddity, shown
from instructkit.recipe.document import Document, Place, dotted, lay_over
from instructkit.recipe.yaml import NO_VALUE, Loader, compose, value_of

MOST_ABOVE_ONE_ANOTHER = 50  # recipes, each extending the next
_DATA = (".jsonl", ".json", ".csv", ".parquet", ".gz")
EXTENDS = "extends"


def read_document(path: str) -> Document:
    """
    Read a recipe and what it extends; faults of single values, and of what it extends, are noted in the document.

    Raises:
        InputError: when there is no such file, or it is not UTF-8.
        RecipeError: when it is not YAML, or not a mapping.
    """
    return _with_bases(path, (), {})


def _with_bases(path: str, chain: tuple[Path, ...], known: dict[Path, Document]) -> Document:
    """
    A recipe above all that it extends.

    Args:
        chain: the recipes that led to this one.
        known: what was read already; a base that many recipes share is read and merged once.
    """
    document = _read_one(path)
    document.incomplete = (EXTENDS,) in document.spoiled
    given = document.values.pop(EXTENDS, None)
    if given is None or document.incomplete:
        return document
    where = document.where((EXTENDS,))
    document.forget((EXTENDS,))
    names = given if isinstance(given, list) else [given]
    if not names or not all(isinstance(name, str) and name for name in names):
        told = f"`extends` is {given!r}"
        return _without(document, Fault(where, told, "give the path of a recipe, or a list of them"))
    below: Document | None = None
    for name in names:
        base = _base(path, name, where, (*chain, Path(path).resolve()), known)
        below = base if below is None else lay_over(below, base)
    return lay_over(below, document)


def _base(path: str, name: str, where: str, chain: tuple[Path, ...], known: dict[Path, Document]) -> Document:
    """The document of one name under `extends`, which is relative to the recipe that gives it."""
    try:
        base = Path(path).parent / Path(name).expanduser()
        # A link is another file than what it leads to: its own `extends` is looked for beside the link.
        file, led_to = base.parent.resolve() / base.name, base.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle, no such home, a character no name has
        told = f"`extends`: no file can be called {name[:60]!r}"
        return _without(Document(name), Fault(where, told, "give the path of a recipe"))
    if file not in known:
        known[file] = _read_base(base, led_to, where, chain, known)
    return known[file]


def _read_base(
    base: Path, led_to: Path, where: str, chain: tuple[Path, ...], known: dict[Path, Document]
) -> Document:
    """What is extended; where it cannot be read, an empty document that says why."""
    empty = Document(str(base))
    if led_to in chain:
        way = " -> ".join(file.name for file in (*chain, led_to))
        return _without(empty, Fault(where, f"`extends` goes in a circle: {way}", "remove one of them"))
    if len(chain) > MOST_ABOVE_ONE_ANOTHER:
        told = f"`extends` goes through more than {MOST_ABOVE_ONE_ANOTHER} recipes"
        return _without(empty, Fault(where, told, "write some of them as one"))
    try:
        return _with_bases(str(base), chain, known)
    except RecipeError as error:
        return _without(empty, *error.faults)
    except InputError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        hint = _near(str(base), but=chain) if missing else error.hint
        return _without(empty, Fault(where, f"`extends`: {error.message}", hint))


def _without(document: Document, *faults: Fault) -> Document:
    """A document that lacks what it extends, and why."""
    document.faults += faults
    document.incomplete = True
    return document


def _read_one(path: str) -> Document:
    root = compose(path, _text(path), _data_hint(path))
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
        raise InputError(told, hint=_recipes_in(path)) from error


def _recipes_in(path: str) -> str:
    """Return a hint which recipe to give instead of a folder or an unreadable file."""
    folder = Path(path)
    names = [str(item) for item in sorted(folder.glob("*.y*ml"))[:6]] if folder.is_dir() else []
    if names:
        return f"give a recipe: {', '.join(names)}"
    model = any((folder / name).exists() for name in ("config.json", "adapter_config.json"))
    other = f"; a model is named in it, or with model.name={path}" if model else ""
    return f"give a recipe: a YAML file in UTF-8{other}"


def _near(path: str, but: tuple[Path, ...] = ()) -> str:
    """The recipes that may be meant, or those that there are; never the ones that ask for it."""
    folder = Path(path).parent
    files = (
        [item for item in sorted(folder.glob("*.y*ml")) if item.resolve() not in but]
        if folder.is_dir()
        else []
    )
    names = [str(item) for item in files if str(item) != path and not oddity(str(item))]
    by_name = {Path(name).name: name for name in names}
    if near := difflib.get_close_matches(Path(path).name, list(by_name), n=3, cutoff=0.7):
        return f"did you mean {' or '.join(by_name[name] for name in near)}?"
    if names:
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        return f"its folder holds {', '.join(names[:6])}{more}"
    return "give the path of a YAML file, such as recipes/sft.yaml"


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
