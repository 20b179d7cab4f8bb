"""
The scalars of YAML 1.2's core schema, for reading and for writing, in place of PyYAML's of 1.1.

So `1e-5` is a number, and `no` is a text: TRL's `save_strategy: no` means that text. What is written reads back the same.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any

import yaml

from instructkit.errors import Fault, RecipeError
from instructkit.recipe.document import Document, Place, dotted

_CORE = "tag:yaml.org,2002:"
_SCALARS = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
]
_CONVERT = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
}


class _Core:
    yaml_implicit_resolvers: dict[str, list] = {}


for _kind, _pattern, _starts in _SCALARS:
    for _start in _starts:
        _entry = (_CORE + _kind, re.compile(rf"(?:{_pattern})\Z"))
        _Core.yaml_implicit_resolvers.setdefault(_start, []).append(_entry)


class Loader(_Core, yaml.SafeLoader):
    """Reads."""


class _Dumper(_Core, yaml.SafeDumper):
    pass


def _float(dumper: _Dumper, number: float) -> yaml.ScalarNode:
    if not math.isfinite(number):
        return yaml.SafeDumper.represent_float(dumper, number)
    return dumper.represent_scalar(_CORE + "float", repr(number))


_Dumper.add_representer(float, _float)


def write(value: Any) -> str:
    """A value as YAML that reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def inline(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=math.inf
    )
    return text.removesuffix("\n").removesuffix("\n...")


def resolved(text: str, node: yaml.ScalarNode) -> yaml.ScalarNode:
    """A scalar with another text in the place of its own: quoted it stays a text, plain it is read anew."""
    tag = node.tag
    if node.style is None:
        tag = Loader("").resolve(yaml.ScalarNode, text, (True, False))
    return yaml.ScalarNode(tag, text, node.start_mark, node.end_mark, node.style)


def convert(node: yaml.ScalarNode) -> Any:
    """
    The value of a scalar.

    Raises:
        ValueError: for a tag that recipes do not know, or digits that no number has.
    """
    kind = node.tag.removeprefix(_CORE)
    if kind not in _CONVERT:
        raise ValueError(f"the tag `{node.tag.replace(_CORE, '!!')}` means nothing in a recipe")
    try:
        return _CONVERT[kind](node.value)
    except ValueError as error:
        raise ValueError(f"`{node.value[:20]}` cannot be read as {kind}") from error


_ANY = re.compile(r"\$(\$?)\{((?:[^{}]|\{[^{}]*\})*)(\}?)")
_REFERENCE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(:-.*)?", re.DOTALL)

Told = list[tuple[str, str]]  # what is wrong, continuing "`section.key` ...", and how to go on


def resolve(text: str) -> tuple[str, Told]:
    """
    Put the environment in the place of every reference; `$${NAME}` stands for `${NAME}` itself.

    As in a shell, a default stands for a variable that is not set, or empty.

    Returns:
        The text, and what is wrong with references that could not be resolved.
    """
    told: Told = []

    def put(found: re.Match) -> str:
        escaped, body, closed = found.groups()
        if escaped:
            return found.group()[1:]
        parts = _REFERENCE.fullmatch(body) if closed else None
        if parts is None or "${" in (parts[2] or ""):
            told.append(_no_reference(found.group(), parts is not None))
            return ""
        name, default = parts.groups()
        value = os.environ.get(name, "")
        if not value and default is None:
            state = "is empty" if name in os.environ else "is not set"
            way = f"set it (`export {name}=...`), or give a default: `${{{name}:-...}}`"
            told.append((f"needs `${name}`, which {state}", way))
        return value or (default or "").removeprefix(":-")

    return _ANY.sub(put, text), told


def _no_reference(text: str, nested: bool) -> tuple[str, str]:
    if nested:
        return f"has `{text[:60]}`, a reference within a default", "give a plain default: `${NAME:-default}`"
    way = "write `${NAME}` or `${NAME:-default}`; `$${` stands for `${` itself"
    return f"has `{text[:60]}`, which is no reference", way


NO_VALUE = "write one, `null` for none, `{}` for a section of defaults, or remove the key"
MOST_VALUES = 20_000
_CURLY_QUOTES = tuple("\u201c\u201d\u201e\u2018\u2019\u201a\u00ab")
_SHORT_HOME = re.compile(r"~(?=/)|\$[A-Za-z_][A-Za-z0-9_]*(?=/)")
_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


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
        value = convert(_with_environment(node, place, where, document))
        if place != ("extends",) and (slip := _slip(node, value)) is not None:
            document.spoil(place, where, f"`{dotted(place)}` begins with {slip[0]}", slip[1])
        if odd := _odd_character(value):
            told = f"`{dotted(place)}` holds {odd}, which neither names nor texts may have"
            document.spoil(place, where, told, "remove it")
        return value
    except ValueError as error:
        document.spoil(place, where, str(error), "write a plain value; quotes make a text")
        return None


def _slip(node: yaml.ScalarNode, value: Any) -> tuple[str, str] | None:
    """What a text begins with that means something elsewhere and nothing here, and the way on."""
    if not isinstance(value, str):
        return None
    if node.style is None and value[:1] in _CURLY_QUOTES:
        return f"{value[0]}, a quote that YAML takes for a letter", "write \" or ', or no quotes at all"
    if found := _SHORT_HOME.match(node.value):
        name = "HOME" if found[0][0] == "~" else found[0].lstrip("$").rstrip("/")
        return f"`{found[0]}`, which is not replaced", f"write `${{{name}}}`, with braces"
    return None


def _mapping(
    node: yaml.MappingNode, place: Place, document: Document, above: tuple[yaml.Node, ...]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    merged = _merge_keys(node, place, document, above)
    for key_node, value_node in node.value:
        where = f"{document.file}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            document.faults.append(Fault(where, "a key that is no name", "write a name"))
            continue
        key = str(key_node.value)
        if _is_merge_key(key_node):
            continue
        if odd := _odd_character(key):
            document.faults.append(Fault(where, f"a key holds {odd}", "remove it"))
            continue
        if key in found:
            first = document.places[(*place, key)]
            message = f"`{key}` is given twice, first at {first}"
            document.faults.append(Fault(where, message, "keep one of them"))
            continue
        found[key] = value_of(value_node, (*place, key), document, above)
        document.places[(*place, key)] = where
    return {**merged, **found}


def _merge_keys(
    node: yaml.MappingNode, place: Place, document: Document, above: tuple[yaml.Node, ...]
) -> dict[str, Any]:
    """What merge keys bring, each a fault; their values are read so that nothing is told to be missing that they hold."""
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not _is_merge_key(key_node):
            continue
        where = f"{document.file}:{key_node.start_mark.line + 1}"
        told = "`<<` is a merge key of YAML, which recipes do not take"
        hint = "write the values out, or lay this recipe over another: `extends: base.yaml`"
        document.faults.append(Fault(where, told, hint))
        if isinstance(value_node, yaml.MappingNode):
            here = document.places[place]
            brought = value_of(value_node, place, document, above)
            document.places[place] = here
            merged = {**brought, **merged} if isinstance(brought, dict) else merged
    return merged


def _is_merge_key(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value == "<<"


def _odd_character(value: Any) -> str | None:
    """A character of a text that no path can have, or that is half of one: `\\0` and `\\ud800` can be written in quotes."""
    found = (
        next((c for c in value if c == "\0" or "\ud800" <= c <= "\udfff"), None)
        if isinstance(value, str)
        else None
    )
    return f"the character U+{ord(found):04X}" if found else None


def _with_environment(node: yaml.ScalarNode, place: Place, where: str, document: Document) -> yaml.ScalarNode:
    """Unquoted, a reference may stand for a number; quoted it stays a text."""
    if "${" not in node.value:
        return node
    text, told = resolve(node.value)
    for message, hint in told:
        document.spoil(place, where, f"`{dotted(place)}` {message}", hint)
    return resolved(text, node)


WIDEST_SHOWN = 120  # characters of a line that is pointed into


def compose(path: str, text: str, data_hint: str | None) -> yaml.Node | None:
    """
    The node of a recipe's text; None where it is empty.

    Args:
        data_hint: how to go on where the file looks like data.

    Raises:
        RecipeError: with the line, the column and a caret, when it is not YAML.
    """
    _refuse_line_ends(path, text)
    try:
        return yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        raise RecipeError([_fault(path, text, error, data_hint)]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        told = f"not YAML: a character that is not allowed, U+{error.character:04X}"
        raise RecipeError([Fault(f"{path}:{line}", told, "remove it")]) from error
    except RecursionError as error:
        raise RecipeError([Fault(f"{path}:1", "not a recipe: it is nested too deeply")]) from error


def _fault(path: str, text: str, error: yaml.MarkedYAMLError, data_hint: str | None) -> Fault:
    """Where a person should look, and how to go on."""
    mark = _best_mark(error)
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    if slip := _slip_on_line(text, line, str(error.problem)):
        line, column, problem, hint = slip
    else:
        problem = " ".join(part for part in (_context(error, line), error.problem) if part)
        hint = _yaml_hint(problem, text, line, column) or data_hint or _opened(problem)
    return Fault(f"{path}:{line}:{column}", f"not YAML: {problem}{_pointed(text, line, column)}", hint)


def _refuse_line_ends(path: str, text: str) -> None:
    """Characters that end a line for YAML alone: no editor shows them, and all lines behind them would be miscounted."""
    if found := re.search("[\x85\u2028\u2029]", text):
        line = text.count("\n", 0, found.start()) + 1
        told = f"the character U+{ord(found[0]):04X}, which ends a line for YAML and is not seen"
        raise RecipeError([Fault(f"{path}:{line}", told, "remove it")])


def _lines(text: str) -> list[str]:
    """Lines as YAML counts them."""
    return re.split("\r\n|\r|\n", text)


def _slip_on_line(text: str, line: int, problem: str) -> tuple[int, int, str, str] | None:
    """What is not seen, or overseen, on the line of an error or the one before it: line, column, what, the way on."""
    lines = _lines(text)
    for number in (line, line - 1):
        if not 1 <= number <= len(lines):
            continue
        here = lines[number - 1]
        if found := re.match("[ \t]*([\xa0\u2000-\u200b\u202f\u3000\ufeff])", here):
            told = f"the character U+{ord(found[1]):04X} in the place of a space"
            return number, found.start(1) + 1, told, "indent with plain spaces"
        is_key = "mapping values" in problem or "expected ':'" in problem
        if is_key and (found := re.match(r" *[A-Za-z_][A-Za-z0-9_]*(:)[^\s:/\\]", here)):
            return number, found.start(1) + 1, "no space behind the colon", "write `key: value`"
    return None


def _opened(problem: str) -> str | None:
    within = "flow mapping" in problem or "flow sequence" in problem
    return "close what was opened with `{` or `[`" if within else None


def _context(error: yaml.MarkedYAMLError, line: int) -> str | None:
    """What was being read, and where that begins if it is another line: a brace that nobody closed."""
    begun = error.context_mark
    if not (error.context or "").startswith("while ") or begun is None or begun.line + 1 == line:
        return error.context
    return f"{error.context} that begins on line {begun.line + 1}"


def _yaml_hint(problem: str, text: str, line: int, column: int) -> str | None:
    if "'\\t'" in problem:
        before = _lines(text)[line - 1][: column - 1]
        return (
            "write spaces in the place of the tab"
            if before.strip()
            else "indent with spaces; YAML takes no tabs"
        )
    if "undefined alias" in problem:
        return "a text that begins with `*` needs quotes; an alias needs `&NAME` before it"
    if "another document" in problem:
        return "a file is one recipe: remove the line `---` and what comes behind it"
    if re.search(r"^<{7} ", text, re.MULTILINE):
        return "the file holds an unresolved merge; keep one side"
    if re.search(r"[{,:] *\$\{[^}\n]*\}[^\n]*\}", text):
        return "within braces a reference `${NAME}` needs quotes, or a line of its own"
    return None


def _best_mark(error: yaml.MarkedYAMLError) -> yaml.Mark | None:
    """Where a person should look: at the end of the file there is nothing to see, so there it is what was left open."""
    is_at_the_end = "end of stream" in str(error.problem) or "<stream end>" in str(error.problem)
    if is_at_the_end and error.context_mark:
        return error.context_mark
    return error.problem_mark or error.context_mark


def _pointed(text: str, line: int, column: int) -> str:
    lines = _lines(text)
    if line > len(lines):
        return ""
    before, shown_line = column - 1, lines[line - 1]
    if len(shown_line) > WIDEST_SHOWN:
        start = max(0, before - WIDEST_SHOWN // 2)
        begin, end = "..." if start else "", "..." if start + WIDEST_SHOWN < len(shown_line) else ""
        shown_line = f"{begin}{shown_line[start : start + WIDEST_SHOWN]}{end}"
        before += len(begin) - start
    return f"\n  {shown_line}\n  {' ' * before}^"
