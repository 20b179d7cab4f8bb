"""Answers and likelihoods: what a model says to held-out prompts, and how likely it finds held-out answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from instructkit.models import adapters
from instructkit.models.tokens import IGNORED, Prompt, encode_prompt, encode_with_labels, is_chat
from instructkit.ppo.rollout import collate, joined, own_law
from instructkit.runs.progress import counted

LAW_BYTES = (
    2**27
)  # of the laws of one batch over the whole vocabulary, in float32; a handful of them stand in memory at once
MOST_ROWS = 64


def law_batches(
    lengths: Sequence[tuple[int, ...]], vocabulary: int, most_rows: int = MOST_ROWS
) -> Iterator[list[int]]:
    """
    The places of all rows, those of like length together: `4 rows (longest + 1) vocabulary` bytes stay below `LAW_BYTES`.

    A row that needs more alone is a batch of its own.

    Args:
        lengths: of each row the number of tokens whose laws are asked for, and what else to sort by.
        vocabulary: words that a law is over.
        most_rows: rows of a batch, at most.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = 0
    while start < len(order):
        rows = order[start : start + most_rows]
        # Lengths rise, so the last row taken is the longest of its batch.
        while len(rows) > 1 and 4 * len(rows) * (lengths[rows[-1]][0] + 1) * vocabulary > LAW_BYTES:
            rows.pop()
        yield rows
        start += len(rows)


@dataclass(frozen=True)
class Answer:
    """One sampled answer: its words, its tokens with those of the prompt, and whether it ended by itself."""

    text: str
    prompt_ids: list[int]
    ids: list[int]
    finished: bool


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds one answer: `nll` in nats summed over `tokens`, of which `correct` were its first choice."""

    nll: float
    tokens: int
    correct: int

    @property
    def per_token(self) -> float:
        """Mean log-probability of a token, in nats."""
        return -self.nll / max(self.tokens, 1)


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the tokenizer's end and those that the model declares (R-4)."""
    declared = model.generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return sorted({tokenizer.eos_token_id, *declared})


def answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 32,
    alike: int = 1,
) -> list[Answer]:
    """
    Sample one answer to each prompt, from the model's own law: no top-k, no top-p, no penalties.

    The random state of the caller is left as it was, so measuring does not change a run. Two models that are asked the same
    with the same seed draw the same random numbers.

    Args:
        temperature: 0 answers greedily.
        max_new_tokens: longest answer, in tokens.
        batch_size: prompts that are answered together; a multiple of `alike`.
        alike: so many prompts in a row are sampled with the same random numbers, at temperature 1.
    """
    stops = end_ids(model, tokenizer)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature and alike == 1
        else {}
    )
    shared = [SharedNoise(alike)] if alike > 1 else None
    options = {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": stops,
        "pad_token_id": tokenizer.pad_token_id,
    }
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    answers: list[Answer] = []
    config = GenerationConfig(**{"do_sample": False, **options, **sampling})
    with torch.random.fork_rng(), torch.no_grad(), evaluating(model), own_law(model, stops):
        for number, batch in enumerate(counted(_batches(encoded, batch_size), len(encoded))):
            # Each batch has a seed of its own: its random numbers must not depend on how long the answers before it are,
            # or two models that hardly differ would be compared on unrelated samples.
            torch.manual_seed(seed + number)
            ids, mask = _pad_left(batch, tokenizer.pad_token_id, model.device)
            out = model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=shared
            )
            for prompt_ids, row in zip(batch, out[:, ids.size(1) :].tolist(), strict=True):
                answers.append(_cut(tokenizer, prompt_ids, row, stops))
    return answers


class SharedNoise(LogitsProcessor):
    """
    Adds Gumbel noise to logits, the same for so many rows in turn, so that the most likely token is a sample.

    `argmax(log p + g)` with `g` from a standard Gumbel distribution is distributed as `p` (Maddison et al. 2014, 1411.0030,
    section 2). Rows that share `g` get the same token wherever their distributions are the same.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return logits `(B, V)` with noise; `B` is a multiple of the number of rows that share it."""
        exponential = torch.empty(scores.size(0) // self._rows, scores.size(1), device=scores.device)
        noise = -exponential.exponential_().clamp_min(torch.finfo(torch.float32).tiny).log()
        return scores.float() + noise.repeat_interleave(self._rows, dim=0)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode meanwhile."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def likelihoods(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], texts: Sequence[str], *, batch_size: int = 16
) -> list[Likelihood]:
    """How likely the model finds each answer after its prompt; only the answer's tokens count."""
    rows = [encode_with_labels(tokenizer, prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    return row_likelihoods(model, rows, pad_id=tokenizer.pad_token_id, batch_size=batch_size)


def row_likelihoods(
    model: Any, rows: Sequence[dict[str, list[int]]], *, pad_id: int, batch_size: int = 16
) -> list[Likelihood]:
    """
    Negative log-likelihood of each row's labels, in the order of the rows.

    Rows of like length are read together, as many as `LAW_BYTES` lets: one long row does not fill up all others.

    Args:
        rows: `input_ids` and `labels` (-100 where nothing is asked) of equal length.
        pad_id: token that fills shorter rows, on the right.
        batch_size: rows that are read together, at most.
    """
    found: list[Likelihood | None] = [None] * len(rows)
    lengths = [(len(row["input_ids"]),) for row in rows]
    with torch.no_grad(), evaluating(model):
        for places in counted(law_batches(lengths, _vocabulary(model), batch_size), len(rows)):
            read = _batch_likelihoods(model, [rows[i] for i in places], pad_id)
            for place, likelihood in zip(places, read, strict=True):
                found[place] = likelihood
    return [likelihood for likelihood in found if likelihood is not None]


def _vocabulary(model: Any) -> int:
    return model.config.get_text_config().vocab_size


def _batch_likelihoods(model: Any, batch: Sequence[dict[str, list[int]]], pad_id: int) -> list[Likelihood]:
    ids, labels, mask = pad_labelled(batch, pad_id, model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    targets, asked = labels[:, 1:], labels[:, 1:] != IGNORED
    places = asked.nonzero()  # (N, 2); laws of prompts are not worked out
    nll, correct = torch.zeros(asked.shape, device=ids.device), torch.zeros_like(asked)
    for some in places.split(max(1, LAW_BYTES // (4 * logits.size(-1)))):
        row, t = some.unbind(1)
        law = torch.log_softmax(logits[row, t].float(), dim=-1)
        nll[row, t] = -law.gather(-1, targets[row, t].unsqueeze(-1)).squeeze(-1)
        correct[row, t] = law.argmax(-1) == targets[row, t]
    counts = zip(nll.sum(1).tolist(), asked.sum(1).tolist(), correct.sum(1).tolist(), strict=True)
    return [Likelihood(loss, int(tokens), int(right)) for loss, tokens, right in counts]


def pad_labelled(
    rows: Sequence[dict[str, list[int]]], pad_id: int, device: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, labels and attention mask `(B, T)` of rows of `input_ids` and `labels`, filled on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    fill = [longest - len(row["input_ids"]) for row in rows]
    ids = torch.tensor([list(r["input_ids"]) + [pad_id] * n for r, n in zip(rows, fill, strict=True)])
    labels = torch.tensor([list(r["labels"]) + [IGNORED] * n for r, n in zip(rows, fill, strict=True)])
    mask = torch.tensor([[1] * (longest - n) + [0] * n for n in fill])
    return ids.to(device), labels.to(device), mask.to(device)


def _cut(tokenizer: Any, prompt_ids: list[int], row: list[int], stops: list[int]) -> Answer:
    """Keep a generated row up to and including its first end token."""
    end = next((i for i, token in enumerate(row) if token in stops), None)
    ids = row if end is None else row[: end + 1]
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return Answer(text, list(prompt_ids), ids, end is not None)


def _pad_left(rows: Sequence[list[int]], pad_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def _batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


Parent = Callable[
    [], AbstractContextManager[Any]
]  # within the context that it gives, the model is its parent


def asked(tokenizer: Any, prompt: Prompt) -> Prompt:
    """A text as a user's message where the tokenizer knows conversations, otherwise followed by a space; messages as they are."""
    if is_chat(prompt):
        return prompt
    if tokenizer.chat_template:
        return [{"role": "user", "content": prompt}]
    return prompt if prompt[-1:].isspace() else f"{prompt} "


def laws(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """
    Log-probabilities of the whole vocabulary before each token of the answers, nats, `(B, T, V)` in float32.

    Args:
        batch: tensors of `ppo.rollout.collate`; positions behind an answer hold numbers that mean nothing.
    """
    ids, attended, positions = joined(batch)
    wide = batch["completion_ids"].size(1) + 1
    with torch.no_grad(), evaluating(model), adapters.folded(model):
        logits = model(
            input_ids=ids,
            attention_mask=attended,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=wide,
        ).logits
    return torch.log_softmax(logits[:, -wide:-1].float(), dim=-1)


def divergence(law: Tensor, other: Tensor) -> Tensor:
    """
    `KL(p || q) = sum_v p_v (log p_v - log q_v)` at each position, nats.

    Args:
        law, other: log-probabilities `(..., V)`.

    Returns:
        `(...)`, never negative; words that `p` never says count nothing.
    """
    gap = (law - other).masked_fill(law == -torch.inf, 0.0)
    return (law.exp() * gap).sum(-1).clamp(min=0)


def batches(
    model: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]], pad_id: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Rows of like length together, as many as fit: where each came from, and the tensors of `collate`."""
    lengths = [(len(answer), len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]
    parts = law_batches(lengths, model.config.get_text_config().vocab_size)
    for rows in counted(parts, len(lengths)):
        batch = collate([prompts[i] for i in rows], [answers[i] for i in rows], pad_id=pad_id)
        yield rows, {name: tensor.to(model.device) for name, tensor in batch.items()}
