"""What training will see: rows as the trainer's own preparation leaves them, token by token, and which of them are learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from instructkit.data.sources import Rows
from instructkit.errors import InputError
from instructkit.models.machine import Machine
from instructkit.models.tokens import IGNORED, common_prefix, encode_prompt
from instructkit.plan.rehearsal import on_paper
from instructkit.plan.statistics import Part, oddities, parts_of_rows
from instructkit.stages.base import Inputs

LOOKED_AT = 1000  # rows at least, for what is odd about them
_LEFT_OUT = {
    "sft": "nothing in it would be learned within max_length",
    "reward": "an answer of it exceeds max_length",
    "ppo": "with a response it is longer than what the model has positions for",
}


@dataclass(frozen=True)
class Token:
    """One token as text; whether the loss looks at it, and whether it is one of the tokenizer's special ones."""

    text: str
    learned: bool
    special: bool


@dataclass(frozen=True)
class Seen:
    """One row, or one side of it, as tokens; none where the trainer leaves it out, of which the title says why."""

    title: str
    tokens: list[Token]


@dataclass(frozen=True)
class Look:
    """The rows asked for, and what is odd about those that were looked at: the first of a large source."""

    rows: list[Seen]
    warnings: list[str]


def look(recipe: Any, inputs: Inputs, machine: Machine, count: int) -> Look:
    """
    The first `count` training rows as the stage prepares them.

    Raises:
        InputError: for all that the stage refuses when it prepares its trainer.
    """
    beginning = _first(inputs, max(count, LOOKED_AT))
    try:
        tokenizer, encoded, left = _prepared(recipe, beginning, machine)
    except InputError:  # said of all rows, it may be true of these alone
        beginning = inputs
        tokenizer, encoded, left = _prepared(recipe, beginning, machine)
    every = [(ids, labels) for parts in encoded for _, ids, labels in parts]
    found = oddities(recipe.stage, tokenizer, every)
    rows = beginning.data.get("train")
    if rows is not None and len(rows.rows) < len(inputs.data["train"].rows):
        found = [f"of the first {len(rows.rows)} rows: {told}" for told in found]
    if rows is None or recipe.trainer.get("packing"):  # no row of such a trainer is one of the source
        titled = [(f"row {i}", parts) for i, parts in enumerate(encoded[:count], start=1)]
        return Look([_seen(tokenizer, title, part) for title, parts in titled for part in parts], found)
    if len(encoded) == len(left.places):
        kept = _in_place(rows, left, encoded)
    else:
        kept = _kept(recipe, beginning, machine, list(range(min(count, len(rows.rows)))))
    return Look(list(_of_rows(recipe.stage, tokenizer, rows, kept, count)), found)


def _first(inputs: Inputs, count: int) -> Inputs:
    """The inputs with the beginnings of what is trained on and held out; the sides of an update hang together."""
    data = {
        role: rows.pick(range(min(count, len(rows.rows)))) if role in ("train", "eval") else rows
        for role, rows in inputs.data.items()
    }
    return replace(inputs, data=data)


def _prepared(recipe: Any, inputs: Inputs, machine: Machine) -> tuple[Any, list[list[Part]], Rows | None]:
    """The tokenizer, the training rows as the trainer holds them, and the rows that the stage gave it."""
    given = replace(inputs, data=dict(inputs.data))
    with on_paper(recipe, given, machine) as (prepared, _, _):
        parts = list(parts_of_rows(recipe.stage, prepared.trainer, prepared.tokenizer))
        return prepared.tokenizer, parts, given.data.get("train")


def _in_place(rows: Rows, left: Rows, encoded: list[list[Part]]) -> dict[int, list[Part]]:
    """By its place, each row that a stage did not leave out: they stand in their order; a source may be named twice."""
    found, at = {}, iter(enumerate(rows.places))
    for place, parts in zip(left.places, encoded, strict=True):
        found[next(i for i, there in at if there == place)] = parts
    return found


def _kept(recipe: Any, inputs: Inputs, machine: Machine, places: list[int]) -> dict[int, list[Part]]:
    """By its place, each row that a trainer keeps; none says which it left out, so halves are tried until it is clear."""
    some = replace(inputs, data={**inputs.data, "train": inputs.data["train"].pick(places)})
    try:
        _, encoded, _ = _prepared(recipe, some, machine)
    except InputError:  # all rows together are no fault, so nothing of these is left
        encoded = []
    if len(encoded) == len(places):
        return dict(zip(places, encoded, strict=True))
    if not encoded:
        return {}
    half = len(places) // 2
    return _kept(recipe, inputs, machine, places[:half]) | _kept(recipe, inputs, machine, places[half:])


def _of_rows(
    stage: str, tokenizer: Any, rows: Rows, kept: dict[int, list[Part]], count: int
) -> Iterator[Seen]:
    for i in range(min(count, len(rows.rows))):
        if i not in kept:
            yield Seen(f"{rows.places[i]}: left out, {_LEFT_OUT[stage]}", [])
        for side, ids, labels in kept.get(i, []):
            if stage == "reward":
                labels = _scored(tokenizer, rows.rows[i], side.removeprefix(", "), ids)
            yield _seen(tokenizer, rows.places[i], (side, ids, labels))


def _scored(tokenizer: Any, row: dict[str, Any], side: str, ids: list[int]) -> list[int]:
    """Of a comparison the answer alone is what its score is about."""
    from instructkit.stages.reward import prompt_and_answer

    prompt, _ = prompt_and_answer(row, side)
    start = common_prefix(encode_prompt(tokenizer, prompt), ids) if prompt else 0
    return [IGNORED] * start + ids[start:]


def _seen(tokenizer: Any, title: str, part: Part) -> Seen:
    side, ids, labels = part
    return Seen(f"{title}{side}", _tokens(tokenizer, ids, labels))


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
