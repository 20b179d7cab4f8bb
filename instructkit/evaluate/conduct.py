"""How a model answers general prompts: how far from its parent, how long, whether it ends, repeats itself or declines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from instructkit import adapters
from instructkit.encode import Prompt
from instructkit.evaluate.generate import Answer, answer
from instructkit.evaluate.laws import Parent, batches, divergence, laws
from instructkit.evaluate.words import declines, repetition
from instructkit.feedback.measured import Conduct


def conduct(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    parent: Parent | None,
    seed: int,
    max_new_tokens: int,
    refuses: Callable[[str], bool] = declines,
    batch_size: int = 32,
) -> Conduct:
    """
    One sampled answer to each prompt, and what it is like.

    Args:
        prompts: texts or messages, asked as they are.
        parent: a context manager factory within whose context the model is its parent; None for the parent itself, whose KL is 0.
        seed: of the sampling; the caller's random state is left as it was.
        max_new_tokens: longest answer, in tokens; the end token counts.
        refuses: whether an answer declines, by its words.
    """
    with adapters.folded(model):
        told = answer(
            model, tokenizer, prompts, max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size
        )
    kl = [0.0] * len(told) if parent is None else answer_kl(model, told, parent, tokenizer.pad_token_id)
    return Conduct(
        kl=kl,
        length=[len(found.ids) for found in told],
        ended=[found.finished for found in told],
        repetition=[repetition(found.ids[: -1 if found.finished else None]) for found in told],
        refusal=[refuses(found.text) for found in told],
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
