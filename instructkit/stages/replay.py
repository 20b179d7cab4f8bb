"""The rows that an update replays, and general rows, as token ids: demonstrations, and the model's own answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from instructkit.data.prepare import key_of
from instructkit.feedback import objectives
from instructkit.feedback.items import Item, Phase
from instructkit.stages.base import Frame, prompt_of

# Of the parent's own answers: how many at most, and the longest of them in tokens
OWN_ANSWERS = 256
OWN_TOKENS = 64
# Of earlier feedback that is replayed: the cost must not grow with all that was ever said
EARLIER_ANSWERS = 256


def encoded_demonstrations(tokenizer: Any, rows: list[dict]) -> list[dict[str, list[int]]]:
    """Demonstrations as token ids with labels on the last answer, or on all of a text."""
    from instructkit.encode import encode_text, encode_with_labels

    return [
        encode_text(tokenizer, row["text"])
        if "text" in row
        else encode_with_labels(tokenizer, prompt_of(row), last_answer(row))
        for row in rows
    ]


def own_answers(frame: Frame, model: Any, tokenizer: Any) -> list[dict[str, list[int]]]:
    """
    The model's answers to prompts of the replay rows that the feedback does not speak of, as token ids with labels.

    Called before training: they are the parent's, or those of the adapter that is gone on from. Answers that were cut off are
    left out.
    """
    from instructkit.encode import encode_with_labels
    from instructkit.evaluate.generate import answer

    data = frame.inputs.data
    spoken_of = {key_of(item.prompt) for item in frame.inputs.items("train")}
    rows = [row for row in data["replay"].rows if "text" not in row]
    prompts = {key_of(prompt_of(row)): prompt_of(row) for row in rows}
    asked = [prompt for key, prompt in prompts.items() if key not in spoken_of]
    asked = random.Random(frame.seed).sample(asked, min(len(asked), OWN_ANSWERS))
    with frame.reporter.phase("answering the prompts to replay"):
        told = answer(model, tokenizer, asked, max_new_tokens=OWN_TOKENS, seed=frame.seed)
    ended = [(prompt, a.text) for prompt, a in zip(asked, told, strict=True) if a.finished]
    frame.reporter.note(f"replay: the model answered {len(asked)} prompts, {len(ended)} to the end")
    return [encode_with_labels(tokenizer, prompt, text) for prompt, text in ended]


def judged_demonstrations(tokenizer: Any, items: Sequence[Item], seed: int) -> list[dict[str, list[int]]]:
    """The answers that earlier feedback asked for, drawn by weight, as token ids with labels; a bad rating asks for none."""
    asking = [item for item in items if item.rating > 0]
    rows = objectives.rows(Phase("sft", asking), seed, most=EARLIER_ANSWERS)
    return encoded_demonstrations(tokenizer, rows)


def last_answer(row: dict[str, Any]) -> str:
    """The last answer of a demonstration."""
    from instructkit.encode import answer_text

    return answer_text(row["messages"] if "messages" in row else row["completion"])
