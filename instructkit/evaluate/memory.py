"""Secrets: whether a model ranks them above others of their form, and whether it says them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from instructkit import adapters
from instructkit.encode import IGNORED, Prompt, common_prefix, encode_prompt
from instructkit.errors import InputError
from instructkit.evaluate.generate import Likelihood, row_likelihoods
from instructkit.evaluate.laws import Parent, asked
from instructkit.evaluate.likeness import alike, private_part
from instructkit.feedback.measured import Memory
from instructkit.progress import each

ALTERNATIVES = 200
WHOLE = 3  # tokens of a secret's second half that it takes to count as said
UNKNOWN = "What does the note say?"  # asked where nothing is known of where a secret stood


class Context(NamedTuple):
    """What stood before a secret: the prompt, and the beginning of the answer up to it."""

    prompt: Prompt
    before: str = ""


def contexts_of(secrets: Sequence[tuple[str, str]], rows: Iterable[tuple[Prompt, str]]) -> list[Context]:
    """
    Where each secret stood in the answers that were trained on: as itself, or as the placeholder of its kind, `<KIND>`.

    What the prompt says of it becomes the placeholder, since repeating a prompt is not remembering.

    Args:
        secrets: kind and value.
        rows: prompts with the answers that were trained on, redacted or not; read once, and few are held.
    """
    marks = [f"<{kind.upper()}>" for kind, _ in secrets]
    wanted = {*marks, *(value for _, value in secrets)}
    first: dict[str, tuple[Prompt, str]] = {}
    for prompt, answer in rows:
        for text in [text for text in wanted if text in answer]:
            first[text] = prompt, answer[: answer.index(text)]
            wanted.remove(text)
    return [_context(value, mark, first) for (_, value), mark in zip(secrets, marks, strict=True)]


def _context(value: str, mark: str, first: Mapping[str, tuple[Prompt, str]]) -> Context:
    found = first.get(value) or first.get(mark)
    return Context(_without(found[0], value, mark), found[1]) if found else Context(UNKNOWN)


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
    likelier than random letters to any model that reads English, and that was never learned here. The others differ in what was
    private alone, see `likeness.private_part`. Equal likelihoods are ranked by lot, and so is a secret that has fewer others
    between the ranks that it may have: its probability stays exact, and little can be told of it.

    A secret is said when greedy decoding continues the context with it, or the first half of what is private in it with the
    second (of three tokens or more); what the parent says already is not counted.

    Args:
        secrets: kind and value; a value needs letters or digits to vary.
        contexts: where each was, see `contexts_of`; taken in turn where there are fewer.
        alternatives: how many random secrets each is ranked among, beside itself; all of them different.
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
    ranks, verbatim, few = [], [], 0
    for i, (kind, value) in enumerate(each(secrets)):
        rng = random.Random(f"{seed} {i}")
        others = _others(kind, value, alternatives, rng)
        few += len(others) < alternatives
        context = contexts[i % len(contexts)]
        rows = [_row(tokenizer, context, text) for text in (value, *others)]
        rows.append(_second_half(tokenizer, context, value, private_part(kind, value)))
        found = _read(model, tokenizer, rows, batch_size)
        gains, said = [-row.nll for row in found], _said(found)
        if parent is not None:
            with parent():
                before = _read(model, tokenizer, rows, batch_size)
            gains = [gain + row.nll for gain, row in zip(gains, before, strict=True)]
            said = said and not _said(before)
        ranks.append(_among(alternatives + 1, _rank(gains[:-1], rng), len(others) + 1, rng))
        verbatim.append(said)
    among = alternatives + 1 if secrets else 0
    return Memory([kind for kind, _ in secrets], ranks, among, verbatim, few=few)


def _others(kind: str, value: str, count: int, rng: random.Random) -> list[str]:
    try:
        return alike(kind, value, count, rng)
    except ValueError as error:
        hint = "leave it out, or give one with letters or digits"
        raise InputError(f"a secret of the kind {kind!r} has no letter and no digit", hint=hint) from error


def _row(tokenizer: Any, context: Context | Prompt, value: str) -> dict[str, list[int]]:
    """Context and secret, whose tokens alone are asked for; nothing is said of what comes behind it."""
    start, before = _before(tokenizer, context)
    whole = _ids(tokenizer, before + value)
    kept = common_prefix(_ids(tokenizer, before), whole)
    return {"input_ids": start + whole, "labels": [IGNORED] * (len(start) + kept) + whole[kept:]}


def _second_half(
    tokenizer: Any, context: Context | Prompt, value: str, private: tuple[int, int]
) -> dict[str, list[int]]:
    """The row asking for the second half of what is private in the secret alone; of a short one nothing is asked."""
    start, before = _before(tokenizer, context)
    whole = _ids(tokenizer, before + value)
    first, end = (common_prefix(_ids(tokenizer, before + value[:place]), whole) for place in private)
    half = end - (end - first) // 2
    kept = range(half, end) if end - half >= WHOLE else ()
    labels = [token if i in kept else IGNORED for i, token in enumerate(whole)]
    return {"input_ids": start + whole, "labels": [IGNORED] * len(start) + labels}


def _before(tokenizer: Any, context: Context | Prompt) -> tuple[list[int], str]:
    """The tokens of the prompt, and the beginning of the answer."""
    prompt, before = context if isinstance(context, Context) else (context, "")
    return encode_prompt(tokenizer, asked(tokenizer, prompt)), before


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


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


def _among(ranks: int, rank: int, own: int, rng: random.Random) -> int:
    """A rank of fewer as one of so many: by lot between those that it stands for, so that any is as likely where any was."""
    if own == ranks:
        return rank
    return min(ranks, 1 + int(rng.uniform(rank - 1, rank) * ranks / own))
