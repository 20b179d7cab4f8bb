"""How a model answers general prompts: how far from its parent, how long, whether it ends, repeats itself or declines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from instructkit.evaluate.generate import Answer
from instructkit.evaluate.laws import Parent, batches, divergence, laws
from instructkit.evaluate.words import declines, repetition
from instructkit.feedback.measured import Conduct


def conduct(
    model: Any,
    answers: Sequence[Answer],
    *,
    parent: Parent | None,
    pad_id: int,
    refuses: Callable[[str], bool] = declines,
) -> Conduct:
    """
    Measure a model's sampled answers to general prompts.

    Args:
        answers: one to each prompt, sampled by the model at temperature 1.
        parent: a context manager factory within whose context the model is its parent; None for the parent itself, whose KL is 0.
        pad_id: token that fills shorter rows.
        refuses: whether an answer declines, by its words.
    """
    kl = [0.0] * len(answers) if parent is None else answer_kl(model, answers, parent, pad_id)
    return Conduct(
        kl=kl,
        length=[len(item.ids) for item in answers],
        ended=[item.finished for item in answers],
        repetition=[repetition(item.ids[: -1 if item.finished else None]) for item in answers],
        refusal=[refuses(item.text) for item in answers],
    )


def answer_kl(model: Any, answers: Sequence[Answer], parent: Parent, pad_id: int) -> list[float]:
    """
    KL of the model to its parent over each answer that it sampled, nats an answer.

        sum_t KL(pi(. | x, y_<t) || parent(. | x, y_<t)),  y sampled from pi

    Its mean over answers is the KL of the two laws of whole answers, as that of `log pi(y) - log parent(y)` is, with less
    variance: each position's KL is summed over the whole vocabulary instead of read off the token that was drawn (Rao-Blackwell;
    Amini et al. 2504.10637).

    Args:
        answers: sampled by the model at temperature 1.
        parent: a context manager factory within whose context the model is its parent.
    """
    found = [0.0] * len(answers)
    prompts, ids = [told.prompt_ids for told in answers], [told.ids for told in answers]
    for rows, batch in batches(model, prompts, ids, pad_id):
        law = laws(model, batch)
        with parent():
            before = laws(model, batch)
        kl = divergence(law, before).masked_fill(~batch["response_mask"], 0.0).sum(1)
        for row, value in zip(rows, kl.tolist(), strict=True):
            found[row] = value
    return found
