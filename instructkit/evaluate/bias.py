"""Leanings about groups: which of two sentences is likelier, and whether answers differ when only a group's name does."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from instructkit import adapters
from instructkit.encode import IGNORED, Prompt, encode_with_labels
from instructkit.evaluate.generate import Answer, answer, row_likelihoods
from instructkit.evaluate.laws import asked
from instructkit.evaluate.sets import Pair
from instructkit.evaluate.words import declines, sentiment

SAMPLES = 2


def gaps(model: Any, tokenizer: Any, pairs: Sequence[Pair], *, batch_size: int = 32) -> list[float]:
    """
    `log P(stereotype) - log P(anti)` of each pair, summed over all tokens, nats.

    With a prompt both are answers to it. Without one both are plain text after the beginning-of-text token (the end token where
    there is none), as evaluation harnesses read sentences, and no end is asked for. Nangia et al. (2010.00133, section 3)
    leave out the term that differs, which a masked model can; a causal model says the rest after the term, so its own
    likelihood belongs to the measure. What that adds for a frequent term is alike before and after an update, and cancels
    over a set that has each term on both sides.

    Args:
        pairs: minimal pairs; a prompt that is a text is asked as a user's message where the tokenizer knows conversations.
    """
    rows = [_row(tokenizer, pair.prompt, text) for pair in pairs for text in (pair.stereotype, pair.anti)]
    with adapters.folded(model):
        found = row_likelihoods(model, rows, pad_id=tokenizer.pad_token_id, batch_size=batch_size)
    return [anti.nll - stereotype.nll for stereotype, anti in zip(found[::2], found[1::2], strict=True)]


def _row(tokenizer: Any, prompt: Prompt | None, text: str) -> dict[str, list[int]]:
    if prompt is not None:
        return encode_with_labels(tokenizer, asked(tokenizer, prompt), text)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return {"input_ids": [start, *ids], "labels": [IGNORED, *ids]}


def contrasts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[Prompt, Prompt]],
    seed: int,
    max_new_tokens: int,
    *,
    samples: int = SAMPLES,
    feeling: Callable[[str], float] = sentiment,
    refuses: Callable[[str], bool] = declines,
    batch_size: int = 32,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """
    What the answer to the first prompt of each pair has more than that to the second, as a mean over a few samples.

    Both are sampled with the same random numbers, step by step: where the name changes nothing in the model's law, the answers
    are the same and the difference is 0, however random they are.

    Args:
        prompts: pairs that differ in a group's name alone; a text is asked as a user's message where the tokenizer knows those.
        seed: of the sampling; the caller's random state is left as it was.
        max_new_tokens: longest answer, in tokens.
        samples: answers to each prompt.
        feeling: sentiment of a text, -1 to 1.
        refuses: whether a text declines.

    Returns:
        `length` (logarithm of tokens, since in a mean of tokens one answer that runs on hides the rest), `sentiment` (-2 to 2)
        and `refusal` (-1 to 1), one entry a pair; and the standard deviation of each of these figures over all answers.

    Source: Huang et al. 2020 (1911.03064), section 3: sentiment of texts continued from counterfactual prompts.
    """
    found: dict[str, list[list[float]]] = {"length": [], "sentiment": [], "refusal": []}
    single: dict[str, list[float]] = {name: [] for name in found}
    # One call a batch, each from its own seed: the next batch's numbers must not hang on how long this one's ran.
    seeds, limits = itertools.count(seed), {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    with adapters.folded(model):
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            told: list[list[dict[str, float]]] = [[] for _ in part]
            for _ in range(samples):
                both = _answered(model, tokenizer, part, seed=next(seeds), **limits)
                for kept, pair in zip(told, both, strict=True):
                    one, other = (_figures(side, feeling, refuses) for side in pair)
                    kept.append({name: one[name] - other[name] for name in found})
                    for name, values in single.items():
                        values += [one[name], other[name]]
            for name, values in found.items():
                values += [[figures[name] for figures in kept] for kept in told]
    contrast = {name: [statistics.fmean(values) for values in pairs] for name, pairs in found.items()}
    return contrast, {name: statistics.pstdev(values) if values else 0.0 for name, values in single.items()}


def _answered(
    model: Any, tokenizer: Any, prompts: Sequence[tuple[Prompt, Prompt]], **options: Any
) -> Iterator[tuple[Answer, Answer]]:
    """The answers to both prompts of each pair, drawn with the same random numbers."""
    sides = zip(*prompts, strict=True)
    return zip(
        *(answer(model, tokenizer, [asked(tokenizer, one) for one in side], **options) for side in sides),
        strict=True,
    )


def _figures(
    told: Answer, feeling: Callable[[str], float], refuses: Callable[[str], bool]
) -> dict[str, float]:
    return {
        "length": math.log(max(len(told.ids), 1)),
        "sentiment": feeling(told.text),
        "refusal": float(refuses(told.text)),
    }
