"""Rows as a prepared trainer holds them: token ids, the labels of what is learned, and what is odd about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from instructkit.encode import IGNORED, encode_prompt

Part = tuple[str, list[int], list[int]]  # title, token ids, labels


def parts_of_rows(stage: str, trainer: Any, tokenizer: Any) -> Iterator[list[Part]]:
    """Each training row as its parts; a prompt alone has nothing to learn, and where a loss has no labels all tokens count."""
    if stage == "ppo":
        for prompt in trainer.train_dataset["prompt"]:
            ids = encode_prompt(tokenizer, prompt)
            yield [(", a prompt", ids, [IGNORED] * len(ids))]
        return
    for row in trainer.train_dataset:
        if "chosen_ids" in row:
            yield [(f", {side}", *_answered(row, f"{side}_ids")) for side in ("chosen", "rejected")]
        else:
            yield [("", *_with_labels(row))]


def oddities(
    stage: str, tokenizer: Any, rows: Sequence[tuple[list[int], list[int]]], limit: int | None = None
) -> list[str]:
    """
    What a template or a length does to rows that nobody would want, in words.

    Args:
        rows: token ids and labels.
        limit: rows of that length are known to be cut, and nobody wonders at their ends.
    """
    bos, eos, count = tokenizer.bos_token_id, tokenizer.eos_token_id, len(rows)
    told = []
    if twice := sum(bos is not None and ids[:2] == [bos, bos] for ids, _ in rows):
        told.append(
            f"{twice} of {count} rows begin with {tokenizer.bos_token} twice: the template adds one too many"
        )
    if stage == "ppo":
        return told
    if masked := sum(all(label == IGNORED for label in labels) for _, labels in rows):
        told.append(
            f"{masked} of {count} rows have no token that is learned: cut off by max_length, or the template marks none"
        )
    whole = [ids for ids, _ in rows if limit is None or len(ids) < limit]
    if endless := sum(eos is not None and eos not in ids[-3:] for ids in whole):
        what = "the model will not learn to stop there" if stage != "reward" else "no score is about an end"
        told.append(f"{endless} of {count} rows do not end with {tokenizer.eos_token}: {what}")
    return told


def _with_labels(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    if "input_ids" in row:
        ids = row["input_ids"]
        return ids, row.get("labels", ids)
    return _answered(row, "completion_ids")


def _answered(row: dict[str, Any], name: str) -> tuple[list[int], list[int]]:
    """An answer behind its prompt, where the row has one apart."""
    prompt, answer = row.get("prompt_ids", []), row.get(name, [])
    return [*prompt, *answer], [IGNORED] * len(prompt) + list(answer)
