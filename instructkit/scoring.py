"""A reward model as instructkit uses it: the template and end of turn of its training, scores centred by its own offset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from instructkit import models
from instructkit.encode import Prompt, answer_text, encode_answered
from instructkit.machine import Machine


@dataclass(frozen=True)
class Offset:
    """What is taken from a raw score: `score = (raw - mean) / std`, so that the chosen answers of training average 0."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def read(cls, folder: Path | None) -> Offset:
        """The offset kept in a run folder; none for a reward model from elsewhere."""
        path = folder / models.SCORE_FILE if folder else None
        if path is None or not path.exists():
            return cls()
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class RewardScorer:
    """
    Scores of finished answers, callable as a TRL reward function.

    Args:
        model: sequence classifier with one label, in evaluation mode.
        tokenizer: the reward model's own; it need not be the policy's.
        offset: centring of its scores.
    """

    def __init__(
        self, model: Any, tokenizer: Any, offset: Offset, *, name: str = "reward", batch_size: int = 32
    ):
        self.model, self.tokenizer, self.offset, self.batch_size = model, tokenizer, offset, batch_size
        self.__name__ = name

    @classmethod
    def load(
        cls, source: models.Source, section: Any, machine: Machine, *, batch_size: int = 32
    ) -> RewardScorer:
        """A reward model by run folder, folder or hub id, ready to score."""
        model = models.load_for_use(source, section, machine, task="SEQ_CLS")
        tokenizer = models.load_tokenizer(source, section)
        name = Path(source.name).name
        return cls(model, tokenizer, Offset.read(source.run), name=name, batch_size=batch_size)

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """Centred scores of answers to prompts, in units of the reward model's logit."""
        rows = [encode_answered(self.tokenizer, p, a) for p, a in zip(prompts, answers, strict=True)]
        raw = score_rows(self.model, rows, pad_id=self.tokenizer.pad_token_id, batch_size=self.batch_size)
        return [(value - self.offset.mean) / self.offset.std for value in raw]

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Any], **_: Any) -> list[float]:
        """TRL's interface of a reward function."""
        return self.score(prompts, [answer_text(completion) for completion in completions])


def score_rows(model: Any, rows: Sequence[list[int]], *, pad_id: int, batch_size: int = 32) -> list[float]:
    """Raw scores of token rows: the head read at each row's last token, found by length and not by token identity."""
    scores: list[float] = []
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    body, head = getattr(inner, inner.base_model_prefix), inner.score
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            longest = max(len(row) for row in batch)
            ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in batch], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch], device=device)
            last = torch.tensor([len(row) - 1 for row in batch], device=device)
            states = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            read = states[torch.arange(len(batch), device=device), last]
            scores.extend(head(read).squeeze(-1).float().tolist())
    model.train(was_training)
    return scores
