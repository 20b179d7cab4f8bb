"""What training will see: rows as the trainer's own preparation leaves them, token by token, and which of them are learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from instructkit.encode import IGNORED
from instructkit.machine import Machine
from instructkit.plan.encoded import oddities, parts_of_rows
from instructkit.plan.rehearsal import on_paper
from instructkit.stages.base import Inputs


@dataclass(frozen=True)
class Token:
    """One token as text; whether the loss looks at it, and whether it is one of the tokenizer's special ones."""

    text: str
    learned: bool
    special: bool


@dataclass(frozen=True)
class Seen:
    """One row, or one side of it, as tokens."""

    title: str
    tokens: list[Token]


@dataclass(frozen=True)
class Look:
    """The rows asked for, and what is odd about any of all rows."""

    rows: list[Seen]
    warnings: list[str]


def look(recipe: Any, inputs: Inputs, machine: Machine, count: int) -> Look:
    """
    The first `count` training rows as the stage prepares them.

    Raises:
        InputError: for all that the stage refuses when it prepares its trainer.
    """
    with on_paper(recipe, inputs, machine) as (trainer, rest, _, _):
        tokenizer = rest[0]
        encoded = list(parts_of_rows(recipe.stage, trainer, tokenizer))
    seen = [
        Seen(f"row {i}{side}", _tokens(tokenizer, ids, labels))
        for i, parts in enumerate(encoded[:count], start=1)
        for side, ids, labels in parts
    ]
    every = [(ids, labels) for parts in encoded for _, ids, labels in parts]
    return Look(seen, oddities(recipe.stage, tokenizer, every))


def _tokens(tokenizer: Any, ids: list[int], labels: list[int]) -> list[Token]:
    """Texts of tokens; one that is part of a character is shown with the tokens that complete it."""
    special, found, waiting = set(tokenizer.all_special_ids), [], []
    for token, label in zip(ids, labels, strict=True):
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if text.endswith("\ufffd") and len(waiting) < 4:
            continue
        found.append(Token(text, label != IGNORED, token in special))
        waiting = []
    if waiting:
        found.append(Token(tokenizer.decode(waiting), labels[-1] != IGNORED, False))
    return found
