"""From the text of a recipe to nodes of YAML, or to what is wrong with it: where it is, and how to go on."""

from __future__ import annotations

import re

import yaml

from instructkit.errors import Fault, RecipeError
from instructkit.recipe.yaml_core import Loader

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
    if slip := _slip(text, line, str(error.problem)):
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


def _slip(text: str, line: int, problem: str) -> tuple[int, int, str, str] | None:
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
