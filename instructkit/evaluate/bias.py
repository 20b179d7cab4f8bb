"""Bias about groups: which of two sentences is likelier, and whether answers differ when only a group's name does."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from instructkit.evaluate.conduct import declines, sentiment
from instructkit.evaluate.results import Contrasts, FourAnswers
from instructkit.evaluate.sets import Pair, Unit
from instructkit.models import adapters
from instructkit.models.generate import Parent, answer, asked, row_likelihoods
from instructkit.models.tokens import IGNORED, Prompt, encode_with_labels
from instructkit.runs.progress import counted

ROUND = 48  # units that are sampled together
FEWEST_ROUNDS = 3  # twelve sets of names, the fewest for a reliable bound by names
_FIGURES = ("length", "sentiment", "refusal")


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
    units: Sequence[Unit],
    parent: Parent,
    seed: int,
    max_new_tokens: int,
    *,
    enough: Callable[[Contrasts], bool] = lambda so_far: False,
    feeling: Callable[[str], float] = sentiment,
    refuses: Callable[[str], bool] = declines,
) -> Contrasts:
    """
    Sample answers of a model and its parent to questions that differ only in whom they name, round by round.

    The four answers of a unit are sampled with the same random numbers, step by step: where a name changes nothing in the
    model's distribution, the answers are the same. Two names of one group differ too, so what counts is by how much more two
    names of different groups differ; that is decided in `feedback.side_effects`.

    Args:
        units: questions about two members of each of two groups, in an order of which any beginning is a sample.
        parent: a context manager factory within whose context the model is its parent.
        seed: of the sampling; the caller's random state is left as it was.
        max_new_tokens: longest answer, in tokens.
        enough: asked after each round of `ROUND` units, from `FEWEST_ROUNDS` rounds on; it may look at the spread of the
            figures and never at their mean, or the intervals no longer hold (Stein 1945).
        feeling: sentiment of a text, -1 to 1.
        refuses: whether a text declines.

    Returns:
        `length` is the logarithm of tokens: in a mean of tokens one answer that never ends hides the rest.

    Source: Huang et al. 2020 (1911.03064), section 3: sentiment of texts continued from counterfactual prompts.
    """
    measured = Contrasts({name: [] for name in _FIGURES}, {name: [] for name in _FIGURES}, [])
    options = {"max_new_tokens": max_new_tokens, "feeling": feeling, "refuses": refuses}
    rounds = [units[start : start + ROUND] for start in range(0, len(units), ROUND)]
    for number, part in enumerate(counted(rounds, len(units))):
        if number >= FEWEST_ROUNDS and enough(measured):
            break
        # Each round has its own seed: its random numbers must not depend on how long the answers before it were.
        for context, answers in ((contextlib.nullcontext, measured.after), (parent, measured.before)):
            with context(), adapters.folded(model):
                for name, values in _four_answers(
                    model, tokenizer, part, seed=seed + number, **options
                ).items():
                    answers[name] += values
        measured.names.extend(unit.names for unit in part)
        measured.groups.extend(unit.groups for unit in part)
    return measured


def _four_answers(
    model: Any,
    tokenizer: Any,
    units: Sequence[Unit],
    *,
    seed: int,
    max_new_tokens: int,
    feeling: Callable[[str], float],
    refuses: Callable[[str], bool],
) -> dict[str, list[FourAnswers]]:
    """Return the figures of the four answers to each unit, all sampled with the same random numbers."""
    answers = answer(
        model,
        tokenizer,
        [asked(tokenizer, prompt) for unit in units for prompt in unit.prompts],
        seed=seed,
        max_new_tokens=max_new_tokens,
        batch_size=4 * ROUND,
        alike=4,
    )
    fours = list(zip(*[iter(answers)] * 4, strict=True))
    figures = {
        "length": lambda one: math.log(max(len(one.ids), 1)),
        "sentiment": lambda one: feeling(one.text),
        "refusal": lambda one: float(refuses(one.text)),
    }
    return {name: [tuple(map(figure, four)) for four in fours] for name, figure in figures.items()}
