"""From a file to a document: encodings, YAML with its lines, and the recipes that it extends."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import yaml

from instructkit.errors import Fault, InputError, RecipeError
from instructkit.recipe.document import Document, lay_over
from instructkit.recipe.paths import encoding_of, oddity, shown
from instructkit.recipe.values import value_of
from instructkit.recipe.yaml_core import Loader

MOST_ABOVE_ONE_ANOTHER = 50  # recipes, each extending the next
WIDEST_SHOWN = 120  # characters of a line that is pointed into
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
        return _without(empty, Fault(where, f"`extends`: {error.message}", error.hint))


def _without(document: Document, *faults: Fault) -> Document:
    """A document that lacks what it extends, and why."""
    document.faults += faults
    document.incomplete = True
    return document


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
        mark = _best_mark(error)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problem = " ".join(part for part in (_context(error, line), error.problem) if part)
        told = f"not YAML: {problem}{_pointed(text, line, column)}"
        hint = _yaml_hint(path, problem, text)
        raise RecipeError([Fault(f"{path}:{line}:{column}", told, hint)]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        told = f"not YAML: a character that is not allowed, U+{error.character:04X}"
        raise RecipeError([Fault(f"{path}:{line}", told, "remove it")]) from error
    except RecursionError as error:
        raise RecipeError([Fault(f"{path}:1", "not a recipe: it is nested too deeply")]) from error


def _context(error: yaml.MarkedYAMLError, line: int) -> str | None:
    """What was being read, and where that begins if it is another line: a brace that nobody closed."""
    begun = error.context_mark
    if not (error.context or "").startswith("while ") or begun is None or begun.line + 1 == line:
        return error.context
    return f"{error.context} that begins on line {begun.line + 1}"


def _yaml_hint(path: str, problem: str, text: str) -> str | None:
    if "'\\t'" in problem:
        return "indent with spaces; YAML takes no tabs"
    if "undefined alias" in problem:
        return "a text that begins with `*` needs quotes; an alias needs `&NAME` before it"
    if "another document" in problem:
        return "a file is one recipe: remove the line `---` and what comes behind it"
    if re.search(r"^<{7} ", text, re.MULTILINE):
        return "the file holds an unresolved merge; keep one side"
    if re.search(r"[{,:] *\$\{[^}\n]*\}[^\n]*\}", text):
        return "within braces a reference `${NAME}` needs quotes, or a line of its own"
    if (found := _data_hint(path)) is not None:
        return found
    if "flow mapping" in problem or "flow sequence" in problem:
        return "close what was opened with `{` or `[`"
    return None


def _best_mark(error: yaml.MarkedYAMLError) -> yaml.Mark | None:
    """Where a person should look: at the end of the file there is nothing to see, so there it is what was left open."""
    is_at_the_end = "end of stream" in str(error.problem) or "<stream end>" in str(error.problem)
    if is_at_the_end and error.context_mark:
        return error.context_mark
    return error.problem_mark or error.context_mark


def _pointed(text: str, line: int, column: int) -> str:
    lines = text.splitlines()
    if line > len(lines):
        return ""
    before, shown_line = column - 1, lines[line - 1]
    if len(shown_line) > WIDEST_SHOWN:
        start = max(0, before - WIDEST_SHOWN // 2)
        begin, end = "..." if start else "", "..." if start + WIDEST_SHOWN < len(shown_line) else ""
        shown_line = f"{begin}{shown_line[start : start + WIDEST_SHOWN]}{end}"
        before += len(begin) - start
    return f"\n  {shown_line}\n  {' ' * before}^"
