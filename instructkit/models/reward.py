"""A reward model as instructkit uses it: the template and end of turn of its training, scores centred by its own offset."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from instructkit.models import load, source
from instructkit.models.generate import evaluating
from instructkit.models.machine import Machine
from instructkit.models.tokens import Prompt, answer_text, encode_answered, encode_sampled, same_tokens
from instructkit.ppo import prefix
from instructkit.ppo.masks import position_ids
from instructkit.runs.progress import counted


@dataclass(frozen=True)
class Offset:
    """What is taken from a raw score: `score = (raw - mean) / std`, so that the chosen answers of training average 0."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def read(cls, folder: Path | None) -> Offset:
        """The offset kept in a run folder; none for a reward model from elsewhere."""
        path = folder / load.SCORE_FILE if folder else None
        if path is None or not path.exists():
            return cls()
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class RewardScorer:
    """
    Scores of finished answers, callable as a TRL reward function.

    Args:
        model: sequence classifier with one label, or a policy that is one in a role.
        tokenizer: the reward model's own; it need not be the policy's.
        offset: centring of its scores.
        role: context manager factory under which a policy's backbone is the reward model.
        head: the reward model's score head, where the backbone has none.
        policy_tokenizer: where it cuts and renders words as the reward model's own does, sampled ids are read as they are.
        ends: the tokens that end the policy's answers; left out: its tokenizer's end.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        offset: Offset,
        *,
        name: str = "reward",
        batch_size: int = 32,
        role: Callable[[Any], contextlib.AbstractContextManager] = contextlib.nullcontext,
        head: Any = None,
        policy_tokenizer: Any = None,
        ends: Collection[int] = (),
    ):
        self.model, self.tokenizer, self.offset, self.batch_size = model, tokenizer, offset, batch_size
        self.role, self.head = role, head
        self.reads_ids = policy_tokenizer is not None and same_tokens(tokenizer, policy_tokenizer)
        self.ends = ends or [tokenizer.eos_token_id]
        self.__name__ = name

    @classmethod
    def load(cls, source: source.Source, section: Any, machine: Machine, **options: Any) -> RewardScorer:
        """A reward model by run folder, folder or hub id, ready to score."""
        model = load.load_for_use(source, section, machine, task="SEQ_CLS")
        tokenizer = load.load_tokenizer(source, section)
        name = Path(source.name).name
        return cls(model, tokenizer, Offset.read(source.run), name=name, **options)

    @classmethod
    def on_backbone(
        cls, policy: Any, source: source.Source, tokenizer: Any, adapter: str, **options: Any
    ) -> RewardScorer:
        """
        A reward model that is an adapter on the policy's base: no second backbone is loaded.

        Args:
            policy: the PEFT model; the adapter is put on it, frozen, under the name `adapter`.
            source: the reward model's run, an adapter on the same base.
        """
        from instructkit.models import adapters

        with load.in_words(source, source.adapter):
            adapters.add_saved(policy, adapter, source.adapter)
            weight = saved_head(source.adapter)
        adapters.settle(policy)
        head = torch.nn.Linear(weight.size(1), 1, bias=False, dtype=weight.dtype, device=policy.device)
        head.weight.data.copy_(weight)
        head.requires_grad_(False)
        role = adapters.Role([adapter])
        name, offset = Path(source.name).name, Offset.read(source.run)
        return cls(policy, tokenizer, offset, name=name, role=role, head=head, **options)

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """Centred scores of answers to prompts, in units of the reward model's logit."""
        return self._score_rows(
            [encode_answered(self.tokenizer, p, a) for p, a in zip(prompts, answers, strict=True)]
        )

    def _score_rows(self, rows: Sequence[list[int]]) -> list[float]:
        options = {"pad_id": self.tokenizer.pad_token_id, "batch_size": self.batch_size, "head": self.head}
        with self.role(self.model):
            raw = score_rows(self.model, rows, **options)
        return [(value - self.offset.mean) / self.offset.std for value in raw]

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Any],
        completion_ids: Sequence[list[int]] | None = None,
        **_: Any,
    ) -> list[float]:
        """TRL's interface of a reward function."""
        if not self.reads_ids or completion_ids is None:
            return self.score(prompts, [answer_text(completion) for completion in completions])
        rows = []
        for prompt, completion, ids in zip(prompts, completions, completion_ids, strict=True):
            row = encode_sampled(self.tokenizer, prompt, ids, self.ends)
            rows.append(row or encode_answered(self.tokenizer, prompt, answer_text(completion)))
        return self._score_rows(rows)


def saved_head(adapter: Path) -> torch.Tensor:
    """The score head `(1, H)` that PEFT saved beside a reward model's adapter."""
    from peft.utils import load_peft_weights

    weights = load_peft_weights(str(adapter), device="cpu")
    return next(tensor for name, tensor in weights.items() if name.endswith("score.weight"))


def takes_positions(body: Any) -> bool:
    """Whether a model reads positions that count from 0; RoBERTa and its kin count from behind their padding's, by themselves."""
    if "position_ids" not in inspect.signature(body.forward).parameters:
        return False
    tables = (module for name, module in body.named_modules() if name.endswith("position_embeddings"))
    return all(getattr(table, "padding_idx", None) is None for table in tables)


def score_rows(
    model: Any, rows: Sequence[list[int]], *, pad_id: int, batch_size: int = 32, head: Any = None
) -> list[float]:
    """
    Raw scores of token rows: the head read at each row's last token, found by length and not by token identity.

    Args:
        model: sequence classifier, or with `head` any model with a body.
        rows: token ids; read in batches of like length.
        head: maps hidden states `(B, H)` to `(B, 1)`; the model's own when None.
    """
    scores: list[float] = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    body, head = inner.base_model, head or inner.score
    device = next(model.parameters()).device
    with torch.no_grad(), evaluating(model):
        parts = (order[start : start + batch_size] for start in range(0, len(rows), batch_size))
        for places in counted(parts, len(rows)):
            batch = [rows[i] for i in places]
            longest = max(len(row) for row in batch)
            ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in batch], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch], device=device)
            last = torch.tensor([len(row) - 1 for row in batch], device=device)
            positions = position_ids(mask) if takes_positions(body) else None
            states, shared = prefix.states(body, ids, mask, positions, needed=int(last.min()))
            weight = next(head.parameters())
            read = states[torch.arange(len(batch), device=device), last - shared].to(
                weight.device, weight.dtype
            )
            for place, value in zip(places, head(read).squeeze(-1).float().tolist(), strict=True):
                scores[place] = value
    return scores
