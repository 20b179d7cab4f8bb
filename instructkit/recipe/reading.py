"""From a file to a document: encodings, YAML with its lines, and the recipes that it extends."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

from instructkit.errors import Fault, InputError, RecipeError
from instructkit.recipe.composing import compose
from instructkit.recipe.document import Document, lay_over
from instructkit.recipe.paths import encoding_of, oddity, shown
from instructkit.recipe.values import value_of

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
