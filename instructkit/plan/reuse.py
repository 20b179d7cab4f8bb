"""Data prepared once: what a plan keeps of its first rehearsal, so that a change of the recipe reads no row again."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

from instructkit.data.sources import Rows
from instructkit.encode import IGNORED
from instructkit.plan.duplicates import text_of

FEW = 64  # rows that a trainer is built on when only its memory is asked for


@dataclass(frozen=True)
class Kept:
    """
    Of a rehearsal, what its memory depends on.

    Attributes:
        settings: what the trainer made of the recipe's figures, defaults included.
        heaviest: the encoded rows with the most tokens, longest first, one batch of them; none for PPO.
        indices: by role, the rows that a trainer is built on again; for PPO the longest prompt is one of them.
        starts: of demonstrations, the place of the first token that each row learns: a shorter limit leaves nothing of it.
    """

    settings: dict[str, Any]
    heaviest: list[dict[str, Any]] = field(default_factory=list)
    indices: dict[str, list[int]] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)


def keep(stage: str, trainer: Any, inputs: Any) -> Kept:
    """What later rehearsals need of a trainer that is prepared on all its data."""
    names = (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "steps_per_generation",
        "max_length",
        "max_completion_length",
        "gradient_checkpointing",
    )
    settings = {name: getattr(trainer.args, name) for name in names if hasattr(trainer.args, name)}
    usual = {
        role: _usual(rows)
        for role, rows in inputs.data.items()
        if role in ("train", "eval") and stage != "lora-update"
    }
    if stage != "ppo":
        return Kept(settings, _heaviest(trainer), usual, _starts(stage, trainer))
    usual["train"] = [*usual["train"], _longest_prompt(trainer, inputs.data["train"])]
    return Kept(settings, [], usual)


def few(stage: str, inputs: Any, kept: Kept) -> Any:
    """The inputs with a few of their rows."""
    if stage == "lora-update":  # its sides hang together, and none of them is large
        return inputs
    data = {
        role: rows.pick(sorted(set(kept.indices[role]))) if role in kept.indices else rows
        for role, rows in inputs.data.items()
    }
    return replace(inputs, data=data)


def rows_of_batch(kept: Kept, args: Any) -> list[dict[str, Any]]:
    """As many of the longest rows as a device takes at once, cut where the trainer would cut them."""
    limit = getattr(args, "max_length", None)
    rows = kept.heaviest[: args.per_device_train_batch_size]
    return rows if limit is None else [cut(row, limit) for row in rows]


def cut(row: dict[str, Any], limit: int) -> dict[str, Any]:
    """
    An encoded row without the tokens behind `limit`; of a prompt with its completion, the completion gives way first.

    Args:
        row: columns of an encoded row; those that are lists have one item a token, but for the lengths of packed rows.
        limit: tokens.
    """
    if "prompt_ids" in row:
        left = max(1, limit - len(row["prompt_ids"]))
        lengths = {name: limit if name == "prompt_ids" else left for name in row if name.endswith("_ids")}
        return {n: v[: lengths[n]] if n in lengths and isinstance(v, list) else v for n, v in row.items()}
    found = {n: v[:limit] if isinstance(v, list) and n != "seq_lengths" else v for n, v in row.items()}
    if isinstance(row.get("seq_lengths"), list):
        found["seq_lengths"] = _within(row["seq_lengths"], limit)
    return found


def _within(lengths: list[int], limit: int) -> list[int]:
    """The lengths of packed rows up to a limit."""
    found: list[int] = []
    for length in lengths:
        if room := min(length, limit - sum(found)):
            found.append(room)
    return found


def _heaviest(trainer: Any) -> list[dict[str, Any]]:
    rows = trainer.train_dataset
    lengths = [max((len(v) for v in row.values() if isinstance(v, list)), default=0) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    return [rows[i] for i in order[: trainer.args.per_device_train_batch_size]]


def _starts(stage: str, trainer: Any) -> list[int]:
    if stage != "sft" or trainer.args.packing:
        return []
    every = trainer.train_dataset["labels"]
    return [next((i for i, label in enumerate(row) if label != IGNORED), len(row)) for row in every]


def _usual(rows: Rows) -> list[int]:
    """The places of some rows of middle length, and of those with the shortest questions, whose answers a limit masks last."""
    if len(rows.rows) <= FEW:
        return list(range(len(rows.rows)))
    lengths = [(len(text_of(row)), len(text_of({"asked": _asked(row)}))) for row in rows.rows]
    order = sorted(range(len(lengths)), key=lambda i: lengths[i][0])
    start = (len(order) - FEW // 2) // 2
    middle = order[start : start + FEW // 2]
    brief = sorted(set(order) - set(middle), key=lambda i: lengths[i][::-1])
    return [*middle, *brief[: FEW - len(middle)]]


def _asked(row: dict[str, Any]) -> Any:
    """What stands before the first answer of a row."""
    talk = row.get("messages")
    if isinstance(talk, list):
        return list(itertools.takewhile(lambda turn: turn["role"] != "assistant", talk))
    return row.get("prompt")


def _longest_prompt(trainer: Any, rows: Rows) -> int:
    """The place of the prompt with the most tokens."""
    from instructkit.encode import encode_prompt

    prompts = trainer.train_dataset["prompt"]
    longest = max(prompts, key=lambda prompt: len(encode_prompt(trainer._tokenizer, prompt)))
    return next((i for i, row in enumerate(rows.rows) if row.get("prompt") == longest), 0)
