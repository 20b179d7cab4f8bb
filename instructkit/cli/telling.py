"""How an error is told: in words on stderr, and with --json as data on stdout."""

from __future__ import annotations

import sys
from typing import Any

from instructkit.errors import InstructKitError


def tell(error: InstructKitError) -> int:
    """One `error:`, its `hint:`, and the exit code of its kind."""
    faults = getattr(error, "faults", None)
    told = visible(str(error), lines=True)
    if faults is not None and len(faults) > 1:
        print(f"error: {getattr(error, 'total', len(faults))} faults", file=sys.stderr)
        print("\n".join(f"  {line}" for line in told.splitlines()), file=sys.stderr)
    else:
        print(f"error: {told}", file=sys.stderr)
    if error.hint:
        print(f"hint: {visible(error.hint, lines=True)}", file=sys.stderr)
    return error.exit_code


def as_data(error: InstructKitError) -> dict[str, Any]:
    """The same as data: what was wrong, how to go on, the exit code, and every fault where there are some."""
    faults = getattr(error, "faults", None) or []
    return {
        "error": {"message": str(error), "hint": error.hint, "exit_code": error.exit_code},
        "faults": [vars(fault) for fault in faults],
        "total_faults": getattr(error, "total", len(faults)),
    }


def print_json(value: Any) -> None:
    """Indented JSON on stdout."""
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False))


def visible(text: str, *, lines: bool = False) -> str:
    """
    Text without control characters, which could move a terminal's cursor or colour what follows: each as its escape.

    Args:
        lines: whether line ends and tabs stay as they are.
    """
    kept = "\n\t" if lines else ""
    return "".join(c if c in kept or not _is_control(c) else _escaped(c) for c in text)


def _is_control(character: str) -> bool:
    import unicodedata

    return (
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\u200c\u200d"
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
