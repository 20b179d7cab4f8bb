"""`${NAME}` and `${NAME:-default}` within a value: resolved from the environment, or told why that cannot be."""

from __future__ import annotations

import os
import re

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
