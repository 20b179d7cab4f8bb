"""Prompts of PPO that leave no room for a response."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from instructkit.data.reading import Skipped
from instructkit.data.sources import Rows
from instructkit.encode import encode_prompt
from instructkit.errors import SHOWN_FAULTS, DataError, Fault
from instructkit.stages.base import Frame

TEMPLATE_TOKENS = 256  # more than what a template puts around a message


def keep_to_context(frame: Frame, model: Any, tokenizer: Any, response: int) -> None:
    """
    Leave out, or refuse, prompts that with a response are longer than what the model has positions for.

    Past its positions a model of learned ones fails in the middle of the run, and any other says what nobody trained it for.

    Args:
        response: the longest one, in tokens.

    Raises:
        DataError: naming them, unless `data.on_fault` is `skip` and others are left.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for role in ("train", "eval") if positions else ():
        if role not in (data := frame.inputs.data):
            continue
        rows, found = data[role], _too_long(data[role], tokenizer, positions - response)
        if not found:
            continue
        told = f"a response of {response} more is longer than the model's {positions} positions"
        faults = {
            i: Fault(rows.places[i], f"a prompt of {n} tokens, which with {told}") for i, n in found.items()
        }
        skips = frame.recipe.data.on_fault == "skip"
        if not skips or len(found) == len(rows.rows):
            way = "" if skips else ", or leave them out with data.on_fault: skip"
            raise DataError(
                list(faults.values())[:SHOWN_FAULTS],
                len(faults),
                hint=f"{_shorter_responses(positions, found)}shorten or remove these prompts{way}; nothing was trained",
            )
        left_out = tuple(Skipped(fault, rows.rows[i]) for i, fault in faults.items())
        kept = rows.pick([i for i in range(len(rows.rows)) if i not in found])
        data[role] = replace(kept, skipped=(*rows.skipped, *left_out))
        frame.dropped[f"data.{role}: a prompt that with {told}"] = len(found)
        frame.reporter.note(
            f"{len(found)} of {len(rows.rows)} {role} prompts are left out, the first {left_out[0].fault}"
        )


def _shorter_responses(positions: int, found: dict[int, int]) -> str:
    """The way on that keeps the prompts, or those of them that the model has positions for at all."""
    fitting = [tokens for tokens in found.values() if tokens < positions]
    all_ = "" if len(fitting) == len(found) else f", with which {len(fitting)} of them fit"
    return (
        f"set trainer.max_completion_length to {positions - max(fitting)} or lower{all_}, " if fitting else ""
    )


def _too_long(rows: Rows, tokenizer: Any, room: int) -> dict[int, int]:
    """The tokens of each prompt that has more than there is room for, by row. A token is a byte at least."""
    found = {}
    for i, row in enumerate(rows.rows):
        prompt = row["prompt"]
        messages = 1 if isinstance(prompt, str) else len(prompt)
        text = (
            prompt if isinstance(prompt, str) else "".join(str(message.get("content")) for message in prompt)
        )
        if len(text.encode("utf-8", "surrogatepass")) + TEMPLATE_TOKENS * messages <= room:
            continue
        if (tokens := len(encode_prompt(tokenizer, prompt))) > room:
            found[i] = tokens
    return found
