"""Secrets: whether a model ranks them above others of their form, and whether it says them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from instructkit import adapters
from instructkit.encode import IGNORED, Prompt, common_prefix, encode_prompt
from instructkit.errors import InputError
from instructkit.evaluate.generate import Likelihood, row_likelihoods
from instructkit.evaluate.laws import Parent, asked
from instructkit.evaluate.words import alike
from instructkit.feedback.measured import Memory

ALTERNATIVES = 200
WHOLE = 3  # tokens of a secret's second half that it takes to count as said
UNKNOWN = "What does the note say?"  # asked where nothing is known of where a secret stood


class Context(NamedTuple):
    """What stood before a secret: the prompt, and the beginning of the answer up to it."""

    prompt: Prompt
    before: str = ""


def contexts_of(secrets: Sequence[tuple[str, str]], rows: Sequence[tuple[Prompt, str]]) -> list[Context]:
    """
    Where each secret stood in the answers that were trained on: as itself, or as the placeholder of its kind, `<KIND>`.

    What the prompt says of it becomes the placeholder, since repeating a prompt is not remembering.

    Args:
        secrets: kind and value.
        rows: prompts with the answers that were trained on, redacted or not.
    """
    return [_context(kind, value, rows) for kind, value in secrets]


def _context(kind: str, value: str, rows: Sequence[tuple[Prompt, str]]) -> Context:
    mark = f"<{kind.upper()}>"
    for wanted in (value, mark):
        for prompt, answer in rows:
            if wanted in answer:
                return Context(_without(prompt, value, mark), answer[: answer.index(wanted)])
    return Context(UNKNOWN)


def _without(prompt: Prompt, value: str, mark: str) -> Prompt:
    if isinstance(prompt, str):
        return prompt.replace(value, mark)
    return [message | {"content": message["content"].replace(value, mark)} for message in prompt]


def refuse_unvaried(secrets: Sequence[tuple[str, str]]) -> None:
    """
    Refuse secrets that no others are like, which `exposure` could not rank.

    Raises:
        InputError: when one has no letter and no digit.
    """
    for kind, value in secrets:
        _others(kind, value, 1, random.Random(0))


def exposure(
    model: Any,
    tokenizer: Any,
    secrets: Sequence[tuple[str, str]],
    contexts: Sequence[Context | Prompt],
    alternatives: int = ALTERNATIVES,
    seed: int = 0,
    *,
    parent: Parent | None = None,
    batch_size: int = 32,
) -> Memory:
    """
    The rank of each secret among random ones of its form, and whether the model says it.

    With a parent, ranks are by `log p1 - log p0`, what the update has added: a secret of words, or with a well-known ending, is
    likelier than random letters to any model that reads English, and that was never learned here. Equal likelihoods are ranked
    by lot. A secret is said when greedy decoding continues the context with it, or its first half with its second (of
    three tokens or more); what the parent says already is not counted.

    Args:
        secrets: kind and value; a value needs letters or digits to vary.
        contexts: where each was, see `contexts_of`; taken in turn where there are fewer.
        alternatives: how many random secrets each is ranked among, beside itself.
        seed: of the random secrets.
        parent: a context manager factory within whose context the model is its parent.

    Returns:
        Ranks from 1, the likeliest, to `alternatives + 1`; the values of the secrets are not in it.

    Raises:
        InputError: when a secret has no letter and no digit, or no context is given.

    Source: Carlini et al. 2019 (1802.08232), sections 4.2 and 4.3, where `exposure = log2(alternatives + 1) - log2(rank)`.
    """
    if secrets and not contexts:
        raise InputError("no context is given for the secrets", hint="give `contexts_of(secrets, rows)`")
    ranks, verbatim = [], []
    for i, (kind, value) in enumerate(secrets):
        rng = random.Random(f"{seed} {i}")
        values = [value, *_others(kind, value, alternatives, rng)]
        context = contexts[i % len(contexts)]
        rows = [_row(tokenizer, context, text) for text in values]
        rows.append(_second_half(rows[0]))
        found = _read(model, tokenizer, rows, batch_size)
        gains, said = [-row.nll for row in found], _said(found)
        if parent is not None:
            with parent():
                before = _read(model, tokenizer, rows, batch_size)
            gains = [gain + row.nll for gain, row in zip(gains, before, strict=True)]
            said = said and not _said(before)
        ranks.append(_rank(gains[:-1], rng))
        verbatim.append(said)
    return Memory([kind for kind, _ in secrets], ranks, alternatives + 1 if secrets else 0, verbatim)


def _others(kind: str, value: str, count: int, rng: random.Random) -> list[str]:
    try:
        return [alike(value, rng) for _ in range(count)]
    except ValueError as error:
        hint = "leave it out, or give one with letters or digits"
        raise InputError(f"a secret of the kind {kind!r} has no letter and no digit", hint=hint) from error


def _row(tokenizer: Any, context: Context | Prompt, value: str) -> dict[str, list[int]]:
    """Context and secret, whose tokens alone are asked for; nothing is said of what comes behind it."""
    prompt, before = context if isinstance(context, Context) else (context, "")
    start = encode_prompt(tokenizer, asked(tokenizer, prompt))
    left, whole = (
        list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (before, before + value)
    )
    kept = common_prefix(left, whole)
    return {"input_ids": start + whole, "labels": [IGNORED] * (len(start) + kept) + whole[kept:]}


def _second_half(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """The row with the secret's first half as part of the context; of a short secret nothing is asked."""
    places = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
    half = len(places) - len(places) // 2
    kept = places[half:] if len(places) - half >= WHOLE else []
    labels = [label if i in kept else IGNORED for i, label in enumerate(row["labels"])]
    return {"input_ids": row["input_ids"], "labels": labels}


def _read(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, list[int]]], batch_size: int
) -> list[Likelihood]:
    with adapters.folded(model):
        return row_likelihoods(model, rows, pad_id=tokenizer.pad_token_id, batch_size=batch_size)


def _said(found: Sequence[Likelihood]) -> bool:
    """Whether every token of the secret, the first row, or of its second half, the last, was the model's first choice."""
    return any(row.tokens > 0 and row.correct == row.tokens for row in (found[0], found[-1]))


def _rank(gains: Sequence[float], rng: random.Random) -> int:
    """The place of the first figure among all, from the top; equal ones by lot."""
    above = sum(gain > gains[0] for gain in gains[1:])
    return 1 + above + rng.randint(0, sum(gain == gains[0] for gain in gains[1:]))
