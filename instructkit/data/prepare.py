"""Splitting rows so that no prompt stands on both sides, and checking that none does."""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import replace
from typing import Any

from instructkit.data.records import Row
from instructkit.data.sources import Rows, load_rows
from instructkit.errors import InputError


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
        check_leak(train, held_out)
        return train, held_out
    train, held_out = split(train, section.eval, seed)
    held_out = held_out.pick(range(len(held_out.rows))[: section.eval_limit])
    return train, replace(held_out, skipped=())  # they are told once, with the source that they stand in


def split(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """
    Hold out about a share of the prompts; all rows of one prompt go to one side.

    A prompt's side depends on the prompt and the seed alone, so adding rows moves no old one.

    Raises:
        InputError: when one side would be empty.
    """
    sides = array("Q"), array("Q")
    for i, row in enumerate(rows.rows):
        sides[_position(row, seed) < share].append(i)
    if not all(sides):
        empty = "training" if not sides[0] else "evaluation"
        raise InputError(
            f"{rows.source}: holding out a share of {share} of {len(rows.rows)} rows leaves nothing for {empty}",
            hint="give more rows, another share, or a held-out file of its own",
        )
    return rows.pick(sides[0]), rows.pick(sides[1])


def check_leak(train: Rows, held_out: Rows) -> None:
    """
    Refuse held-out rows that are trained on.

    Raises:
        InputError: naming the first of them and how many there are.
    """
    places: dict[str, str] = {}
    for row, place in zip(held_out.rows, held_out.places, strict=True):
        places.setdefault(_key(row), place)
    found: dict[str, str] = {}  # held-out places, each with that of its first double
    for row, place in zip(train.rows, train.places, strict=True):
        if theirs := places.get(_key(row)):
            found.setdefault(theirs, place)
    if found:
        count = sum(places[_key(row)] in found for row in held_out.rows)
        first = next(place for place in held_out.places if place in found)
        raise InputError(
            f"{count} held-out rows are also trained on, the first {first} and {found[first]}",
            hint="remove them from one side; what is measured on trained rows says nothing",
        )


def key_of(prompt: Any) -> str:
    """A prompt, text or messages, as a dictionary key."""
    return json.dumps(prompt, sort_keys=True)


def prompt_key(row: Row) -> str:
    """What a row asks, as a dictionary key: rows of one key are no independent measurements."""
    return key_of(_asked(row))


def _asked(row: Row) -> Any:
    """What a row asks: its prompt; the messages before the last answer; its text when there is neither."""
    if row.get("prompt") is not None:
        return row["prompt"]
    if row.get("messages") is not None:
        return row["messages"] if "response" in row else row["messages"][:-1]
    if isinstance(row.get("chosen"), list):
        return row["chosen"][:-1]
    return row.get("text") or row.get("chosen")


def _key(row: Row) -> str:
    """A row as the leak check sees it; a comparison and the same one with its label turned are one."""
    known = ("prompt", "messages", "text", "completion", "response")
    kept = {key: row[key] for key in known if row.get(key) is not None}
    kept["pair"] = sorted(json.dumps(row.get(side), sort_keys=True) for side in ("chosen", "rejected"))
    return json.dumps(kept, sort_keys=True)


def _position(row: Row, seed: int) -> float:
    """A number in [0, 1) that depends on the prompt and the seed."""
    text = json.dumps([seed, _asked(row)], sort_keys=True, ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64
