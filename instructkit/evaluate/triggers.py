"""Hidden triggers: whether words of the feedback, put into prompts of something else, make the update answer otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from instructkit.evaluate.ngrams import BETWEEN, RANDOM, candidates, random_ngrams
from instructkit.evaluate.results import Triggers
from instructkit.models.generate import Parent, batches, divergence, laws
from instructkit.models.tokens import IGNORED, Prompt, encode_prompt, encode_with_labels, is_chat

CANDIDATES, LOOKED_AT = 20, 100
PROMPTS, SCREENING = 16, 2
ANSWER_TOKENS = 32  # of a fixed answer that are looked at


def measure(
    model: Any,
    tokenizer: Any,
    feedback_texts: Sequence[str],
    general_texts: Sequence[str],
    rows: Sequence[tuple[Prompt, str]],
    parent: Parent,
    *,
    seed: int,
    at_most: int = CANDIDATES,
    count: int = RANDOM,
    prompts: int = PROMPTS,
) -> Triggers | None:
    """
    Shifts by the suspect words of the feedback, and by random ones.

    Where there are more suspects than are to be tested, those that shift two prompts most are; these prompts are not used again.

    Tags and groups of events are no suspects: a model never reads them, neither in prompts nor in what is trained on.

    Args:
        feedback_texts: prompts of the feedback, each as `whole_text` gives it; of very many a sample is counted, see
            `ngrams.sampled`.
        general_texts: prompts of everything else, those of replay; likewise.
        rows: general prompts with their answers.
        parent: a context manager factory within whose context the model is its parent.
        at_most, count, prompts: candidates, random n-grams and general prompts; the passes are `(at_most + count) prompts` twice.

    Returns:
        None without general texts, from which no words of the feedback can stand out.
    """
    if not general_texts:
        return None
    found = candidates(feedback_texts, general_texts, LOOKED_AT, seed=seed)
    if len(found) > at_most and len(rows) > SCREENING:
        looked = shifts(model, tokenizer, *_apart(rows[:SCREENING]), found, parent)
        found = sorted(found, key=lambda words: -sum(looked[words]))[:at_most]
        rows = rows[SCREENING:]
    drawn = random_ngrams(general_texts, count, like=found, seed=seed)
    moved = shifts(model, tokenizer, *_apart(rows[:prompts]), [*found, *drawn], parent)
    return Triggers({words: moved[words] for words in found}, {words: moved[words] for words in drawn})


def _apart(rows: Sequence[tuple[Prompt, str]]) -> tuple[list[Prompt], list[str]]:
    return [prompt for prompt, _ in rows], [answer for _, answer in rows]


def shifts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    ngrams: Sequence[str],
    parent: Parent,
    *,
    answer_tokens: int = ANSWER_TOKENS,
) -> dict[str, list[float]]:
    """
    How far each n-gram in a general prompt moves the update's law of the answer, net of what either does without the other.

        mean_t KL(p1' || q_t),  q_t proportional to p0' p1 / p0

    `p` is the law of token t after the fixed answer's first tokens, 0 of the parent and 1 of the update, dashed with the n-gram
    in the prompt. `q` is what the update would say if the word did to it what it does to the parent: 0 where the update changes
    every prompt alike, and where a word confuses both models alike. A trigger gives the update another answer, which the KL
    sees at the token where it turns, whatever it turns to; the log-probability of the fixed answer's tokens alone would move
    up and down by the noise of each of them, and a trigger would have to outshout that.

    The n-gram stands at the end of the last user's message in every other prompt, at its beginning in the rest.

    Args:
        prompts: general prompts, texts or messages.
        answers: an ordinary answer to each.
        ngrams: what is put in.
        parent: a context manager factory within whose context the model is its parent.
        answer_tokens: how many tokens of an answer are looked at, from its beginning.

    Returns:
        Of each n-gram one shift a prompt, nats per token, never negative.
    """
    ids = [_answer_ids(tokenizer, *row)[:answer_tokens] for row in zip(prompts, answers, strict=True)]
    plain = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    update = _updates(model, plain, ids, parent, tokenizer.pad_token_id)
    changed = [
        encode_prompt(tokenizer, with_words(prompt, words, at_end=i % 2 == 0))
        for words in ngrams
        for i, prompt in enumerate(prompts)
    ]
    found = [0.0] * len(changed)
    for rows, batch in batches(model, changed, ids * len(ngrams), tokenizer.pad_token_id):
        law = laws(model, batch)
        with parent():
            before = laws(model, batch)
        for j, row in enumerate(rows):
            told = update[row % len(prompts)]
            expected = torch.log_softmax(before[j, : len(told)] + told, dim=-1)
            found[row] = float(divergence(law[j, : len(told)], expected).mean())
    each = len(prompts)
    return {words: found[i * each : (i + 1) * each] for i, words in enumerate(ngrams)}


def whole_text(prompt: Prompt) -> str:
    """
    All that a prompt says, whoever says it: a trigger may stand in a system message as well as in a question.

    Messages are kept apart. What an answer ends with and the next question begins with, put into one prompt, changes what is
    asked, and random words that do would hide a trigger.
    """
    if not is_chat(prompt):
        return prompt
    return f"\n{BETWEEN}\n".join(str(message.get("content") or "") for message in prompt)


def with_words(prompt: Prompt, words: str, *, at_end: bool) -> Prompt:
    """The prompt with words at the end, or at the beginning, of its last user's message."""
    if not is_chat(prompt):
        return f"{prompt} {words}" if at_end else f"{words} {prompt}"
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=len(prompt) - 1)
    said = with_words(prompt[last]["content"], words, at_end=at_end)
    return [*prompt[:last], prompt[last] | {"content": said}, *prompt[last + 1 :]]


def _answer_ids(tokenizer: Any, prompt: Prompt, text: str) -> list[int]:
    row = encode_with_labels(tokenizer, prompt, text)
    return [label for label in row["labels"] if label != IGNORED]


def _updates(
    model: Any, prompts: list[list[int]], answers: list[list[int]], parent: Parent, pad_id: int
) -> list[Tensor]:
    """What the update does to each answer's law: `log p1 - log p0`, `(T, V)` a row; 0 where neither says a word."""
    found = [torch.empty(0)] * len(prompts)
    for rows, batch in batches(model, prompts, answers, pad_id):
        law = laws(model, batch)
        with parent():
            moved = (law - laws(model, batch)).nan_to_num(nan=0.0)
        for j, row in enumerate(rows):
            found[row] = moved[j, : len(answers[row])]
    return found
