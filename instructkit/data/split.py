"""Splitting rows so that no prompt stands on both sides, and checking that none does."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from instructkit.data.rows import Row, detect_shape, spoken
from instructkit.data.sources import Rows, Skipped, load_rows
from instructkit.errors import Fault, InputError

ASKING = ("sft", "preference")  # kinds whose held-out rows a trained prompt spoils, whatever its answer was


def load_split(section: Any, *, kind: str, seed: int) -> tuple[Rows, Rows | None]:
    """
    Training rows and held-out rows of a recipe's `data:` section.

    Raises:
        InputError: when the two share rows, or a share leaves one side empty.
    """
    skip = section.on_fault == "skip"
    options = {"kind": kind, "columns": section.columns, "seed": seed, "skip_faults": skip}
    train = load_rows(section.train, limit=section.limit, shuffle=section.shuffle, **options)
    if section.eval is None:
        return train, None
    if isinstance(section.eval, str):
        held_out = load_rows(section.eval, limit=section.eval_limit, every_column=False, **options)
        by_prompt = kind in ASKING and section.overlap_by == "prompt"
        if section.on_overlap == "skip":
            return train, without_leaks(train, held_out, by_prompt=by_prompt)
        way = "leave them out with `data.on_overlap: skip`"
        way += ", or hold rows apart by their answers with `data.overlap_by: row`" if by_prompt else ""
        check_leak(train, held_out, or_else=way, by_prompt=by_prompt)
        return train, held_out
    train, held_out = split(train, section.eval, seed)
    return train, held_out.pick(range(len(held_out.rows))[: section.eval_limit]).told_elsewhere()


def split(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """
    Hold out about a share of the prompts; all rows of one prompt go to one side.

    A prompt's side depends on the prompt and the seed alone, so adding rows moves no old one; but for a conversation that begins
    as another row does, and a prompt that is another's but for capitals and spaces: these go where that other one goes.

    Raises:
        InputError: when one side would be empty.
    """
    sides = array("Q"), array("Q")
    first: dict[bytes, float] = {}
    for row in rows.rows:
        first.setdefault(_keys(row, rows.kind, by_prompt=True)[-1], _position(row, rows.kind, seed))
    for i, row in enumerate(rows.rows):
        root = next(key for key in _keys(row, rows.kind, by_prompt=True) if key in first)
        sides[first[root] < share].append(i)
    if not all(sides):
        empty = "training" if not sides[0] else "evaluation"
        raise InputError(
            f"{rows.source}: holding out a share of {share} of {len(rows.rows)} rows leaves nothing for {empty}; they have "
            f"{len(first)} different prompts, and all rows of one go to one side",
            hint="give more rows, another share, or a held-out file of its own",
        )
    return rows.pick(sides[0]), rows.pick(sides[1])


def check_leak(train: Rows, held_out: Rows, *, or_else: str = "give others", by_prompt: bool = False) -> None:
    """
    Refuse held-out rows that are trained on, in whatever shape.

    Args:
        or_else: what a user may do but removing them from one side.
        by_prompt: refuse rows that ask what is trained on with another answer, too.

    Raises:
        InputError: naming the first of them and how many there are.
    """
    way = f"remove them from one side, or {or_else}; what is measured on trained rows says nothing"
    same = leaks(train, held_out)
    asked = leaks(train, held_out, by_prompt=True) if by_prompt else {}
    asked = {place: theirs for place, theirs in asked.items() if place not in same}
    told = []
    if same:
        (first, theirs), *_ = same.items()
        told.append(f"{len(same)} held-out rows are also trained on, the first {first} and {theirs}")
    if asked:
        (first, theirs), *_ = asked.items()
        rows = "held-out rows ask" if not same else "more ask"
        told.append(
            f"{len(asked)} {rows} what is trained on with another answer, the first {first} and {theirs}"
        )
    if told:
        raise InputError("; ".join(told), hint=way)


def without_leaks(train: Rows, held_out: Rows, *, by_prompt: bool = False) -> Rows:
    """
    The held-out rows that are not trained on; the others are kept apart with their reasons.

    Raises:
        InputError: when none is left.
    """
    same = leaks(train, held_out)
    asked = leaks(train, held_out, by_prompt=True) if by_prompt else {}
    found = {place: f"asks what is trained on, as {theirs}" for place, theirs in asked.items()}
    found |= {place: f"also trained on, as {theirs}" for place, theirs in same.items()}
    kept = [i for i, place in enumerate(held_out.places) if place not in found]
    if not kept:
        raise InputError(
            f"{held_out.source}: every held-out row is also trained on", hint="hold out rows that are not"
        )
    skipped = [
        Skipped(Fault(place, found[place]), row)
        for row, place in zip(held_out.rows, held_out.places, strict=True)
        if place in found
    ]
    return replace(held_out.pick(kept), skipped=(*held_out.skipped, *skipped))


def without_held_out(train: Rows, held_out: Rows) -> Rows:
    """
    Return the training rows that ask nothing that a held-out row asks.

    Raises:
        InputError: when none is left.
    """
    asked = {key for row in held_out.rows for key in _keys(row, held_out.kind, by_prompt=True)[-1:]}
    kept = [i for i, row in enumerate(train.rows) if asked.isdisjoint(_keys(row, train.kind, by_prompt=True))]
    if not kept:
        raise InputError(
            f"{train.source}: the prompts of all {len(train.rows)} rows are held out in {held_out.source}",
            hint="add other rows to data.train, or hold out fewer with data.eval",
        )
    return train if len(kept) == len(train.rows) else train.pick(kept)


def leaks(train: Rows, held_out: Rows, *, by_prompt: bool = False) -> dict[str, str]:
    """
    Places of held-out rows (or prompts) that are trained on, in their order, each with the place of its first double.

    Capitals and spaces make no difference; and of a conversation that is trained on, each of its answers is.
    """
    held = [_keys(row, held_out.kind, by_prompt)[-1] for row in held_out.rows]
    first = _first_places(train, set(held), by_prompt)
    return {place: first[key] for key, place in zip(held, held_out.places, strict=True) if key in first}


def begun(train: Rows, held_out: Rows) -> dict[str, str]:
    """Places of held-out conversations with an earlier answer that is trained on, each with the place of the first of these."""
    held = [_keys(row, held_out.kind, by_prompt=False)[:-1] for row in held_out.rows]
    first = _first_places(train, {key for keys in held for key in keys}, by_prompt=False)
    known = (next((first[key] for key in keys if key in first), None) for keys in held)
    return {place: there for place, there in zip(held_out.places, known, strict=True) if there is not None}


def _first_places(train: Rows, wanted: set[bytes], by_prompt: bool) -> dict[bytes, str]:
    """Of the keys that are wanted, those that are trained on, and where first."""
    first: dict[bytes, str] = {}
    for row, place in zip(train.rows, train.places, strict=True):
        for key in _keys(row, train.kind, by_prompt):
            if key in wanted:
                first.setdefault(key, place)
    return first


def key_of(prompt: Any) -> str:
    """A prompt, text or messages, as a dictionary key."""
    return json.dumps(prompt, sort_keys=True)


def prompt_key(row: Row, kind: str = "sft") -> str:
    """What a row asks, as a dictionary key: rows of one key are no independent measurements."""
    return key_of(_asked(row, kind))


def _asked(row: Row, kind: str) -> Any:
    """What a row of a kind asks: its prompt; the messages before the last answer; its text when there is neither."""
    if kind == "preference" and row.get("prompt") is None:
        whole = row["chosen"]
        return whole[:-1] if isinstance(whole, list) else _before_answers(whole, row["rejected"])
    if kind == "sft" and (shape := detect_shape(row, kind)) != ("prompt", "completion"):
        return row["messages"][:-1] if shape == ("messages",) else row["text"]
    return row["prompt"] if row.get("prompt") is not None else row["messages"]


def _before_answers(one: str, other: str) -> str:
    """What two whole texts have in common, up to the last line that they share; where they share none, the first of them."""
    shared = os.path.commonprefix([one, other]).rpartition("\n")[0]
    return shared if shared.strip() else min(one, other)


def _keys(row: Row, kind: str, by_prompt: bool) -> list[bytes]:
    """
    A row as the leak check sees it, in whatever shape; the row itself is the last.

    A comparison and the same one with its label turned are one; a conversation that is learned is all of its beginnings too.
    """
    if kind != "sft" or detect_shape(row, kind) != ("messages",):
        asked = _said(hashlib.sha256(), _turns(_asked(row, kind)))
        return [asked.digest() if by_prompt else _answered(asked, _answers(row, kind))]
    found, asked = [], hashlib.sha256()
    for turn in row["messages"]:
        if turn["role"] == "assistant":
            found.append(asked.digest() if by_prompt else _answered(asked, [turn["content"]]))
        _said(asked, [(turn["role"], turn["content"])])
    return found


def _answers(row: Row, kind: str) -> list[Any]:
    if kind == "preference":
        return sorted((_answer(row[side]) for side in ("chosen", "rejected")), key=_plain)
    if kind == "sft":
        return [_answer(row["completion"])] if detect_shape(row, kind) == ("prompt", "completion") else []
    return [row["response"]] if kind == "feedback" else []


def _said(digest: Any, turns: Iterable[tuple[str, Any]]) -> Any:
    """A hash that goes on over turns, so that each beginning of a long talk costs no more than its last turn."""
    for role, text in turns:
        digest.update(key_of([role, _plain(text)]).encode("utf-8", "surrogatepass"))
    return digest


def _answered(asked: Any, answers: list[Any]) -> bytes:
    return _said(asked.copy(), [("answer", answer) for answer in answers]).digest()


def _plain(text: Any) -> Any:
    """A text without its capitals, and with one space wherever there are some."""
    return " ".join(text.split()).casefold() if isinstance(text, str) else text


def _turns(asked: Any) -> list[tuple[str, Any]]:
    """A prompt as its turns; a text is what a user says."""
    return spoken(asked) if isinstance(asked, list) else [("user", asked)]


def _answer(value: Any) -> Any:
    """An answer as text, whether it is text, one message, or the last one of a conversation."""
    return value[-1]["content"] if isinstance(value, list) else value


def _position(row: Row, kind: str, seed: int) -> float:
    """A number in [0, 1) that depends on the prompt and the seed."""
    text = json.dumps([seed, _asked(row, kind)], sort_keys=True, ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64
