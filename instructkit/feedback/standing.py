"""What is in force in a chain: pure, from its history and from what `current` points to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOVES = ("promotion", "rollback")


@dataclass(frozen=True)
class Standing:
    """
    How a chain stands.

    Attributes:
        stack: numbers of the adapters promoted one above the other; the last is in force, a rollback takes off what lies above.
        undone: the entry, counted from 1, of a move that was written down and not carried out; None when there is none.
        astray: what `current` points to (empty: nothing) where the history says something else; None when they agree.
    """

    stack: tuple[int, ...] = ()
    undone: int | None = None
    astray: str | None = None

    @property
    def current(self) -> int:
        """The number in force; 0 for the parent itself."""
        return self.stack[-1] if self.stack else 0


def standing(entries: list[dict[str, Any]], pointer: str | None) -> Standing:
    """
    How a chain stands.

    The last move counts when `current` is where it led. When `current` is still where it was before, the move was cut short.

    Args:
        entries: of the history.
        pointer: name of the folder that `current` points to; None where there is none.
    """
    stack = before = ()
    for number, entry in moves(entries):
        before, stack, last = stack, moved(stack, entry), number
    found = Standing(stack)
    if _means(pointer, found.current):
        return found
    cut_short = Standing(before, undone=last) if stack != before and last == len(entries) else None
    if cut_short and _means(pointer, cut_short.current):
        return cut_short
    return Standing(stack, astray=pointer or "")


def moves(entries: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Promotions and rollbacks that were not noted as abandoned, each with its number in the history."""
    abandoned = {entry["of"] for entry in entries if entry["kind"] == "abandoned"}
    return [
        (number, entry)
        for number, entry in enumerate(entries, start=1)
        if entry["kind"] in MOVES and number not in abandoned
    ]


def story(entries: list[dict[str, Any]], found: Standing) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """
    What became of each update, by number: `promoted`, `forced` and `rolled back`, each a list of the moves that did it.

    Args:
        entries: of the history.
        found: how the chain stands by it; a move that was not carried out did nothing.
    """
    told: dict[int, dict[str, list[dict[str, Any]]]] = {}
    stack: tuple[int, ...] = ()
    for number, entry in moves(entries):
        if number == found.undone:
            continue
        before, stack = stack, moved(stack, entry)
        said = {name: entry[name] for name in ("time", "by", "why")}
        if entry["kind"] == "promotion":
            _tell(told, entry["number"], "promoted", said)
            if entry["forced"]:
                _tell(told, entry["number"], "forced", said)
        for gone in dict.fromkeys(before[len(stack) :]):
            _tell(told, gone, "rolled back", said)
    return told


def _tell(
    told: dict[int, dict[str, list[dict[str, Any]]]], number: int, what: str, said: dict[str, Any]
) -> None:
    told.setdefault(number, {"promoted": [], "forced": [], "rolled back": []})[what].append(said)


def moved(stack: tuple[int, ...], entry: dict[str, Any]) -> tuple[int, ...]:
    """The stack after a move."""
    number = entry["number"]
    if entry["kind"] == "promotion":
        return (*stack, number)
    while stack and stack[-1] != number:
        stack = stack[:-1]
    return stack


def _means(pointer: str | None, number: int) -> bool:
    if pointer is None or number == 0:
        return pointer is None and number == 0
    return pointer.isdecimal() and int(pointer) == number
