"""Rows as a prepared trainer holds them: token ids, and the labels of what is learned."""

from __future__ import annotations

from collections.abc import Iterator
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
            yield [(f", {side}", row[f"{side}_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected")]
        else:
            yield [("", *_with_labels(row))]


def _with_labels(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    if "input_ids" in row:
        ids = row["input_ids"]
        return ids, row.get("labels", ids)
    prompt, answer = row.get("prompt_ids", []), row.get("completion_ids", [])
    return [*prompt, *answer], [IGNORED] * len(prompt) + list(answer)
