"""What an update is measured by: held-out feedback, everything else, bias, conduct, triggers and secrets, before and after."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from instructkit import adapters
from instructkit.data.prepare import key_of, prompt_key
from instructkit.feedback.clusters import prompt_text
from instructkit.feedback.items import Item
from instructkit.feedback.measured import Bias, Feedback, General, Measured, Memory, Triggers
from instructkit.stages.base import Frame, prompt_of
from instructkit.stages.functions import load_function
from instructkit.stages.replay import encoded_demonstrations, last_answer

GENERAL_PROMPTS = 64  # answered for conduct
ANSWER_TOKENS = 64
SECRETS = 50
BIAS_TUNE = 5  # every fifth minimal pair is for a rescue to look at, and decides nothing


@dataclass(frozen=True)
class Side:
    """What one side of the split is measured on; the test side alone decides."""

    items: list[Item]
    general: list[dict[str, Any]]
    pairs: list[Any]
    prompts: list[Any]


class Measurer:
    """
    Measures a model in training on fixed items; of the parent it keeps what later figures are set against.

    Args:
        frame: of the run.
        model: the PEFT model, whose parent `adapters.as_parent` gives.
        tokenizer: its tokenizer.
    """

    def __init__(self, frame: Frame, model: Any, tokenizer: Any) -> None:
        self.frame, self.model, self.tokenizer = frame, model, tokenizer
        self.limits, self.seed = frame.recipe.gates, frame.seed
        self.parent: Callable[[], Any] = functools.partial(adapters.as_parent, model)
        self.sides = {side: self._side(side) for side in ("tune", "test")}
        self._medians: dict[str, float] = {}

    def _side(self, side: str) -> Side:
        from instructkit.evaluate import sets

        inputs, wanted = self.frame.inputs, self.frame.recipe.feedback
        rows = inputs.data.get("general" if side == "test" else "tune")
        general = list(rows.rows) if rows else []
        if side == "tune":  # feedback is there to change what it speaks of
            asked = {key_of(item.prompt) for item in inputs.items("train")}
            general = [row for row in general if prompt_key(row) not in asked]
        pairs: list[Any] = []
        if self.limits.bias_growth_max is not None:
            pairs = sets.minimal_pairs(wanted.bias_pairs)
            apart = (
                [i % BIAS_TUNE == 0 for i in range(len(pairs))]
                if self.limits.rescue
                else [False] * len(pairs)
            )
            pairs = [pair for pair, tune in zip(pairs, apart, strict=True) if tune == (side == "tune")]
        prompts = list(
            {key_of(prompt_of(row)): prompt_of(row) for row in general if "text" not in row}.values()
        )
        return Side(inputs.items(side), general, pairs, prompts)

    def before(self, side: str) -> Measured:
        """The model before training: the parent, or the chain's current adapter that is gone on from."""
        return self._measure(side)

    def origin(self, side: str = "test") -> Measured:
        """Everything else under the parent that the whole chain stands on, so that small losses cannot add up unseen."""
        with self.parent():
            return Measured(general=self._general(self.sides[side], judged=True))

    def after(self, side: str) -> Measured:
        """The model after training; of the test side also what a trigger or a secret would show."""
        found = self._measure(side)
        return found if side == "tune" else replace(found, triggers=self._triggers(), memory=self._memory())

    def _measure(self, side: str) -> Measured:
        from instructkit.evaluate.conduct import conduct

        about = self.sides[side]
        prompts = about.prompts[:GENERAL_PROMPTS]
        told = None
        if prompts and side == "test":  # a rescue is for what is forgotten and for bias alone
            told = conduct(
                self.model,
                self.tokenizer,
                prompts,
                parent=self.parent,
                seed=self.seed,
                max_new_tokens=ANSWER_TOKENS,
            )
        return Measured(
            self._feedback(side), self._general(about, judged=side == "test"), self._bias(about), told
        )

    def _feedback(self, side: str) -> Feedback:
        from instructkit.evaluate.generate import likelihoods

        items = self.sides[side].items
        if not items:
            return Feedback()
        read = functools.partial(likelihoods, self.model, self.tokenizer)
        wanted = [found.per_token for found in read([i.prompt for i in items], [i.wanted for i in items])]
        pairs = [item for item in items if item.unwanted is not None]
        other = iter(
            [found.per_token for found in read([i.prompt for i in pairs], [i.unwanted for i in pairs])]
        )
        rated = [value for value, item in zip(wanted, items, strict=True) if item.unwanted is None]
        if rated:
            self._medians.setdefault(side, statistics.median(rated))
        leaning, right = [], []
        for item, value in zip(items, wanted, strict=True):
            if item.unwanted is not None:
                leaning.append(value - next(other))
                right.append(leaning[-1] > 0)
            else:
                leaning.append(item.rating * value)
                right.append((value > self._medians[side]) == (item.rating > 0))
        known = {name for item in self.frame.inputs.items("train") for name in (item.rater, *item.judges)}
        return Feedback(
            leaning,
            right,
            [groups_of(item) for item in items],
            [item.cluster for item in items],
            [bool(item.rater) and item.rater not in known for item in items],
        )

    def _general(self, about: Side, *, judged: bool = False) -> General | None:
        from instructkit.evaluate.generate import row_likelihoods

        if not about.general:
            return None
        rows = encoded_demonstrations(self.tokenizer, about.general)
        found = row_likelihoods(self.model, rows, pad_id=self.tokenizer.pad_token_id)
        keys = [prompt_key(row) for row in about.general]
        nll, tokens = (by_key(keys, [getattr(row, name) for row in found]) for name in ("nll", "tokens"))
        return General(nll, tokens, self._tasks() if judged else {}, self._judge(about) if judged else [])

    def _tasks(self) -> dict[str, list[bool]]:
        from instructkit.evaluate import sets

        return {
            path: sets.accuracy(self.model, self.tokenizer, sets.task(path))
            for path in self.frame.recipe.feedback.tasks
        }

    def _judge(self, about: Side) -> list[float]:
        """The judge's scores of one sampled answer to each general prompt; empty without a judge."""
        from instructkit.evaluate.generate import answer

        if not (self.limits.judge and about.prompts):
            return []
        told = answer(self.model, self.tokenizer, about.prompts, max_new_tokens=ANSWER_TOKENS, seed=self.seed)
        return list(load_function(self.limits.judge)(about.prompts, [a.text for a in told]))

    def _bias(self, about: Side) -> Bias | None:
        from instructkit.evaluate import bias, sets

        if self.limits.bias_growth_max is None and self.limits.contrast_growth_max is None:
            return None
        gaps = bias.gaps(self.model, self.tokenizer, about.pairs) if about.pairs else []
        if self.limits.contrast_growth_max is None or about is not self.sides["test"]:
            return Bias(gaps)
        asked = sets.counterfactuals(self.frame.recipe.feedback.counterfactuals)
        told = bias.contrasts(self.model, self.tokenizer, asked, seed=self.seed, max_new_tokens=ANSWER_TOKENS)
        return Bias(gaps, *told)

    def _triggers(self) -> Triggers | None:
        from instructkit.evaluate import triggers

        rows = [row for row in self.sides["test"].general if "text" not in row]
        if not (self.limits.trigger and rows):
            return None
        replay = self.frame.inputs.data.get("replay")
        usual = [row for row in (replay.rows if replay else rows) if "text" not in row]
        return triggers.measure(
            self.model,
            self.tokenizer,
            [prompt_text(item.prompt) for item in self.frame.inputs.items("train")],
            [prompt_text(prompt_of(row)) for row in usual],
            [(prompt_of(row), last_answer(row)) for row in rows],
            self.parent,
            seed=self.seed,
        )

    def _memory(self) -> Memory | None:
        from instructkit.evaluate.memory import contexts_of, exposure

        if not self.limits.memory:
            return None
        inputs = self.frame.inputs
        secrets = [("canary", value) for value in self.frame.recipe.feedback.canaries]
        secrets = [*secrets, *inputs.prepared.redacted][:SECRETS]
        if not secrets:
            return Memory()
        said = [(item.prompt, item.wanted) for item in inputs.items("train")]
        contexts = contexts_of(secrets, said)
        return exposure(self.model, self.tokenizer, secrets, contexts, seed=self.seed, parent=self.parent)

    def answers(self) -> list[str]:
        """Greedy answers to the first test prompts."""
        from instructkit.evaluate.generate import answer

        shown = [item.prompt for item in self.sides["test"].items[: self.frame.recipe.run.samples]]
        told = answer(
            self.model, self.tokenizer, shown, max_new_tokens=ANSWER_TOKENS, seed=self.seed, temperature=0
        )
        return [a.text for a in told]


def groups_of(item: Item) -> tuple[str, ...]:
    """The segments of users and topics that an item belongs to."""
    return (*([f"group:{item.group}"] if item.group else []), *(f"tag:{tag}" for tag in item.tags))


def by_key(keys: Sequence[str], figures: Sequence[Any]) -> list[Any]:
    """Sums over the rows of one prompt: several answers to it are no independent measurements."""
    sums: dict[str, Any] = {}
    for key, figure in zip(keys, figures, strict=True):
        sums[key] = sums.get(key, 0) + figure
    return list(sums.values())
