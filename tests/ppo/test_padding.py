"""
How a batch lies in memory plays no part in PPO (O-8).

The same eight responses go through the real trainer, from the reward model to the gradient, in one layout after another: more
padding on both sides, another order of rows, another padding token, a padding token that is the end token. The layouts differ
in what the models are given; what comes out is compared row by row, `s` and `A` and `R` and `V` and the log-probabilities
under policy and reference, and as a whole, the loss and the gradient of an update whose ratios are not 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from ppo.small import PROMPTS, build
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from instructkit.models.reward import Offset, RewardScorer
from instructkit.ppo import rollout
from instructkit.ppo.critic import HeadCritic, SeparateCritic

TOLERANCE = 1e-5  # the specification's; measured over all cases below: 2.9e-6, for values up to 3.8


class Layout(NamedTuple):
    """How a rollout is laid out: columns of further padding left and right, the order of its rows, its padding token."""

    left: int = 0
    right: int = 0
    order: tuple[int, ...] = tuple(range(8))
    pad_token: str = "<|pad|>"


PLAIN = Layout()
LAYOUTS = {
    "more padding": Layout(left=5, right=3),
    "another order": Layout(order=(3, 6, 0, 7, 5, 1, 4, 2)),
    "another padding token": Layout(pad_token="<|system|>"),
    "padding is the end": Layout(pad_token="<|end|>"),
    "all of it": Layout(left=2, right=4, order=(7, 2, 5, 0, 3, 6, 1, 4), pad_token="<|end|>"),
}


def models_of(family: str, folder: Path, size: int) -> tuple:
    """A policy, a reward model and a critic of one family; GPT-2's positions are learned, so padding would move them."""
    torch.manual_seed(0)
    if family == "llama":
        classifiers = [
            AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1) for _ in range(2)
        ]
        return AutoModelForCausalLM.from_pretrained(folder), *classifiers
    small = {"vocab_size": size, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**small, initializer_range=0.1, num_labels=1, pad_token_id=0)
    return GPT2LMHeadModel(config), *(GPT2ForSequenceClassification(config) for _ in range(2))


class Case:
    """A trainer on fixed responses, which can be laid out in any way."""

    def __init__(self, family: str, critic: str, folder: Path, place: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        policy, judge, valued = models_of(family, folder, len(self.tokenizer))
        torch.nn.init.normal_(judge.score.weight, std=0.3)
        scorer = RewardScorer(judge, self.tokenizer, Offset(), policy_tokenizer=self.tokenizer)
        value = HeadCritic(policy.config.hidden_size) if critic == "head" else SeparateCritic(valued)
        torch.nn.init.normal_(value.head.weight if critic == "head" else valued.score.weight, std=0.1)
        self.trainer = build(
            folder, place, model=policy, critic=value, rewards=[scorer], beta=0.3, temperature=0.7
        )
        self.trainer.processing_class = self.trainer._tokenizer = self.tokenizer
        self.trainer.model.train()
        self.responses = self._responses()
        self.away_from_the_reference(0.02)
        self.before = self._state()
        self.away_from_the_reference(0.02)
        self.after = self._state()

    def _responses(self) -> list[list[int]]:
        """Of unequal length, some ended and some cut off, with every token among them that ever serves as padding."""
        end, pad, system = (
            self.tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in ("end", "pad", "system")
        )
        draw = torch.Generator().manual_seed(1)
        words = [torch.randint(10, 300, (n,), generator=draw).tolist() for n in (1, 2, 3, 4, 5, 3, 2, 1)]
        words[3][1], words[4][2], words[5][0] = pad, system, pad
        return [[end], *([*row, end] for row in words[1:4]), *words[4:7], [*words[7], end]]

    def away_from_the_reference(self, distance: float) -> None:
        """Move the policy and the critic by noise."""
        draw = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in [*self.trainer.model.parameters(), *self.trainer.critic.parameters()]:
                parameter.add_(distance * torch.randn(parameter.shape, generator=draw))

    def _state(self) -> list[dict[str, Tensor]]:
        both = self.trainer.model, self.trainer.critic
        return [{name: x.detach().clone() for name, x in part.state_dict().items()} for part in both]

    def _take(self, state: list[dict[str, Tensor]]) -> None:
        for part, saved in zip((self.trainer.model, self.trainer.critic), state, strict=True):
            part.load_state_dict(saved)

    def found(self, layout: Layout, patched: pytest.MonkeyPatch) -> dict[str, Tensor]:
        """Everything that O-8 names, the rows in their first order and without padding."""
        trainer = self.trainer
        self.tokenizer.pad_token = layout.pad_token
        patched.setattr(rollout, "collate", wider(rollout.collate, layout))
        patched.setattr(trainer, "_generate_single_turn", self._answer)
        self._take(self.before)
        kept = {}
        masks = trainer._policy_masks
        patched.setattr(trainer, "_policy_masks", lambda s, old: kept.update(s=s.used) or masks(s, old))
        batch = trainer._generate_and_score_completions([{"prompt": PROMPTS[i]} for i in layout.order])
        assert batch["prompt_ids"].size(1) >= layout.left
        with torch.no_grad():  # with all their padding, where a rollout is read in parts without
            kept["read"] = trainer._read(trainer.model, batch, entropy=True)
            kept["V read"] = trainer._values(trainer.model, batch, kept["read"])
            kept["ref"] = trainer.reference_logprobs(batch)
        rows = {
            "lp": batch["old_logprobs"],
            "V": batch["old_values"],
            "V read": kept["V read"],
            "ref": kept["ref"],
        }
        rows |= {
            "A": batch["advantages"],
            "R": batch["returns"],
            "lp read": kept["read"].logprobs,
            "entropy": kept["read"].entropies,
        }
        by_row = torch.tensor(layout.order).argsort()
        mask = batch["response_mask"][by_row]
        told = {name: x[by_row][mask] for name, x in rows.items()} | {"s": kept["s"][by_row]}
        return told | self._update(batch)

    def _answer(self, prompt_ids: list[list[int]], *_) -> list[list[int]]:
        """In place of generation: each prompt's own response."""
        options = {"add_generation_prompt": True, "return_dict": False}
        known = [self.tokenizer.apply_chat_template(prompt, **options) for prompt in PROMPTS]
        self.trainer._sampler_logprobs = None
        return [self.responses[known.index(ids)] for ids in prompt_ids]

    def _update(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss and gradients, the policy and the critic having moved since the rollout."""
        trainer = self.trainer
        self._take(self.after)
        both = [*trainer.model.parameters(), *trainer.critic.parameters()]
        for parameter in both:
            parameter.grad = None
        loss = trainer._compute_loss(trainer.model, trainer._with_counts([batch])[0])
        loss.backward()
        whole = torch.cat([p.grad.flatten() for p in both if p.grad is not None])
        return {"loss": loss.detach(), "gradient": whole}


def wider(collate, layout: Layout):
    """`rollout.collate` with further columns of padding."""

    def padded(prompts, responses, *, pad_id: int) -> dict[str, Tensor]:
        batch = collate(prompts, responses, pad_id=pad_id)
        fill = {"prompt_ids": pad_id, "prompt_mask": 0, "completion_ids": pad_id, "response_mask": False}
        sides = {n: (layout.left, 0) if n.startswith("prompt") else (0, layout.right) for n in fill}
        return {n: torch.nn.functional.pad(x, sides[n], value=fill[n]) for n, x in batch.items()}

    return padded


@pytest.mark.parametrize("critic", ["head", "separate"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_layout_of_a_batch_changes_nothing(tiny_folder, tmp_path, family: str, critic: str) -> None:
    case = Case(family, critic, tiny_folder, tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        plain = case.found(PLAIN, patched)
    for name in ("s", "V", "A", "lp"):
        assert plain[name].std() > 0.1, name  # nothing here is equal because it is nothing
    assert (plain["lp"] - plain["ref"]).abs().max() > 0.01
    assert plain["gradient"].abs().max() > 0.1
    for title, layout in LAYOUTS.items():
        with pytest.MonkeyPatch.context() as patched:
            found = case.found(layout, patched)
        for name, wanted in plain.items():
            gap = float((found[name] - wanted).abs().max())
            assert gap <= TOLERANCE, (title, name, gap)
