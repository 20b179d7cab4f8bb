"""What an update is measured by: held-out feedback, everything else, bias, conduct, triggers and secrets, before and after."""

from __future__ import annotations

import functools
import itertools
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from instructkit.data.split import prompt_key
from instructkit.data.table import mapped
from instructkit.evaluate.results import Bias, Contrasts, Feedback, General, Measured, Memory, Triggers
from instructkit.evaluate.statistics import level_of_look
from instructkit.feedback.preprocess.items import Item
from instructkit.feedback.promotion.preference import met, of_ratings
from instructkit.feedback.promotion.side_effects import enough_alternatives, enough_contrasts
from instructkit.feedback.store import store
from instructkit.feedback.store.events import content_id
from instructkit.feedback.store.personal_data import Redactor
from instructkit.models import adapters
from instructkit.recipe.schema import LoraUpdateRecipe
from instructkit.stages.base import Frame, prompt_of
from instructkit.stages.lora_update.feedback import is_store, warnings
from instructkit.stages.lora_update.overlap import GENERAL_PROMPTS, Side, groups_of, side_of
from instructkit.stages.lora_update.train import encoded_demonstrations, last_answer
from instructkit.stages.user_functions import scoring_function

SECRETS = 50  # that are looked for

Secret = tuple[str, str]  # kind and value


def looked_for(
    canaries: Sequence[Secret], found: Iterable[Secret], seed: int, most: int = SECRETS
) -> tuple[list[Secret], int]:
    """
    Canaries, and as many of the other values as there is room for, drawn by seed; and how many distinct ones there are in all.
    """
    planted = list(dict.fromkeys(canaries))
    others = sorted(set(found).difference(planted))
    room = max(0, most - len(planted))
    kept = random.Random(seed).sample(others, min(room, len(others)))
    return [*planted, *kept][:most], len(planted) + len(others)


def kept(inputs: Any) -> Iterator[Secret]:
    """Personal data in the answers that are trained on as they are, of new events and of earlier ones."""
    redactor = Redactor()
    for item in itertools.chain(inputs.items("train"), inputs.earlier):
        yield from redactor.redact(item.wanted)[1]


def replaced(inputs: Any, recipe: LoraUpdateRecipe) -> Iterator[Secret]:
    """
    What placeholders stand for in the events that are trained on, new and earlier ones.

    They are looked up in the events as they were given. What held-out events or those set aside say alone was never trained on,
    so it is left out: it would rank by chance, and take the place of what may be learned.
    """
    redacted, redactor, stored = set(inputs.prepared.redacted), Redactor(), is_store(recipe)
    if not redacted:
        return
    learned = set(inputs.prepared.learned)
    for row in inputs.data["events"].rows:
        said = redactor.row(row)[1]
        redacted.difference_update(said)
        if (row["id"] if stored else content_id(row)) in learned:
            yield from said
    for row in inputs.data["test"].rows if "test" in inputs.data else ():
        redacted.difference_update(redactor.row(row)[1])
    yield from redacted  # of earlier events, since none of the new ones says it
    if inputs.earlier:
        ids = [item.event for item in inputs.earlier]
        for row in store.events_with(recipe.feedback.events, ids).rows:
            yield from redactor.row(row)[1]


ANSWER_TOKENS = 64
ALTERNATIVES, MOST_ALTERNATIVES = 200, 1000  # that a secret is ranked among, beside itself


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
        self.sides = {side: side_of(frame, side) for side in ("tune", "test")}
        self._canaries()  # refused before anything is trained
        for warning in warnings(frame.inputs):
            frame.reporter.note(warning)
        self._known = known_raters(frame.inputs)
        self._medians: dict[str, float] = {}
        self._who = ""  # the model that is being measured, for messages

    def before(self, side: str) -> Measured:
        """The model before training: the parent, or the chain's current adapter that is gone on from."""
        self._who = "the active adapter" if self.frame.inputs.current else "the parent"
        return self._measure(side)

    def origin(self, side: str = "test") -> Measured:
        """All but the feedback under the parent that the whole chain stands on, so that small harms cannot add up unseen."""
        self._who = "the first parent"
        with self.parent():
            return self._harmed(side, parent=None)

    def after(self, side: str) -> Measured:
        """The model after training; of the test side also what answers to two groups, a trigger or a secret would show."""
        self._who = "the update" if side == "test" else "the update on the tune side"
        found = self._measure(side)
        if side == "tune":
            return found
        return replace(found, contrasts=self._contrasts(), triggers=self._triggers(), memory=self._memory())

    def _measure(self, side: str) -> Measured:
        return replace(self._harmed(side, parent=self.parent), feedback=self._feedback(side))

    def _phase(self, what: str) -> AbstractContextManager[None]:
        return self.frame.reporter.phase(f"measuring {self._who}: {what}")

    def _harmed(self, side: str, *, parent: Callable[[], Any] | None) -> Measured:
        """What no update may harm, of the model as it is now; `parent` gives its parent, None where it is that itself."""
        about = self.sides[side]
        found = Measured(general=self._general(about), bias=self._bias(about))
        if side == "tune":  # a rescue is for what is forgotten and for bias alone
            return found
        found = replace(found, general=replace(found.general or General(), tasks=self._tasks()))
        if not about.prompts:
            return found
        return self._with_answers(found, about.prompts[:GENERAL_PROMPTS], parent)

    def _with_answers(
        self, found: Measured, prompts: list[Any], parent: Callable[[], Any] | None
    ) -> Measured:
        """Add the habits of sampled answers to general prompts, and the scores of the judge."""
        from instructkit.evaluate.conduct import conduct
        from instructkit.models.generate import answer

        with self._phase("answers to general prompts"):
            with adapters.folded(self.model):
                answers = answer(
                    self.model,
                    self.tokenizer,
                    prompts,
                    max_new_tokens=ANSWER_TOKENS,
                    seed=self.seed,
                    batch_size=64,
                )
            habits = conduct(self.model, answers, parent=parent, pad_id=self.tokenizer.pad_token_id)
        general, judge = found.general, self.limits.judge
        if judge:
            texts = self.frame.inputs.data["general"].rendered
            scores = scoring_function(judge, texts=texts)(prompts, [each.text for each in answers])
            general = replace(general, judge=list(scores))
        return replace(found, general=general, conduct=habits)

    def _feedback(self, side: str) -> Feedback:
        items = self.sides[side].items
        if not items:
            return Feedback()
        read = self._read_feedback
        wanted = [found.per_token for found in read([i.prompt for i in items], [i.wanted for i in items])]
        pairs = [item for item in items if item.unwanted is not None]
        other = iter(
            [found.per_token for found in read([i.prompt for i in pairs], [i.unwanted for i in pairs])]
        )
        rated = [value for value, item in zip(wanted, items, strict=True) if item.unwanted is None]
        if rated:
            self._medians.setdefault(side, statistics.median(rated))
        ratings = [item.rating if item.unwanted is None else 0.0 for item in items]
        signs = [rating for rating in ratings if rating]
        of_rated = iter(of_ratings(signs, rated).tolist())
        met_rated = iter(met(signs, rated, self._medians.get(side, 0.0)))
        leaning, right = [], []
        for item, value in zip(items, wanted, strict=True):
            paired = item.unwanted is not None
            leaning.append(value - next(other) if paired else next(of_rated))
            right.append(leaning[-1] > 0 if paired else next(met_rated))
        return Feedback(
            leaning,
            right,
            [groups_of(item) for item in items],
            [item.cluster for item in items],
            [bool(item.rater) and item.rater not in self._known for item in items],
            ratings,
            [item.rater for item in items],
            self._scores(items) if side == "test" else [],
        )

    def _read_feedback(self, prompts: list[Any], texts: list[str]) -> list[Any]:
        from instructkit.models.generate import likelihoods

        with self._phase("held-out feedback"):
            return likelihoods(self.model, self.tokenizer, prompts, texts)

    def _scores(self, items: list[Item]) -> list[float]:
        """The reward model's scores of one sampled answer to each item's prompt; empty without one. It is held no longer."""
        if not self.limits.reward_model:
            return []
        from instructkit.models.generate import answer
        from instructkit.models.reward import RewardScorer

        prompts = [item.prompt for item in items]
        with self._phase("answers for the reward model"):
            told = answer(self.model, self.tokenizer, prompts, max_new_tokens=ANSWER_TOKENS, seed=self.seed)
        section = self.frame.recipe.model.of_another()
        with self._phase("scores of the reward model"):
            reward = RewardScorer.load(self.frame.inputs.parents["reward"], section, self.frame.machine)
            return reward.score(prompts, [a.text for a in told])

    def _general(self, about: Side) -> General | None:
        from instructkit.models.generate import row_likelihoods

        if not about.general:
            return None
        rows = encoded_demonstrations(self.tokenizer, about.general)
        with self._phase("general rows"):
            found = row_likelihoods(self.model, rows, pad_id=self.tokenizer.pad_token_id)
        keys = [prompt_key(row) for row in about.general]
        nll, tokens = (by_key(keys, [getattr(row, name) for row in found]) for name in ("nll", "tokens"))
        return General(nll, tokens)

    def _tasks(self) -> dict[str, list[bool]]:
        from instructkit.evaluate import sets

        found = {}
        for path in self.frame.recipe.feedback.tasks:
            with self._phase(f"task {path}"):
                found[path] = sets.accuracy(self.model, self.tokenizer, sets.task(path))
        return found

    def _bias(self, about: Side) -> Bias | None:
        from instructkit.evaluate import bias

        if self.limits.bias_growth_max is None:
            return None
        with self._phase("minimal pairs of stereotypes"):
            return Bias(bias.gaps(self.model, self.tokenizer, about.pairs) if about.pairs else [])

    def _contrasts(self) -> Contrasts | None:
        """Compare answers about groups until the gate can be decided or there are no more questions."""
        from instructkit.evaluate import bias, sets

        if (maximum := self.limits.contrast_growth_max) is None:
            return None
        level = level_of_look(self.frame.inputs.power()["look"])
        with self._phase("answers to questions about two groups"):
            return bias.contrasts(
                self.model,
                self.tokenizer,
                sets.counterfactuals(self.frame.recipe.feedback.counterfactuals),
                self.parent,
                seed=self.seed,
                max_new_tokens=ANSWER_TOKENS,
                enough=lambda so_far: enough_contrasts(so_far, maximum, level, self.seed),
            )

    def _triggers(self) -> Triggers | None:
        from instructkit.evaluate import triggers
        from instructkit.evaluate.ngrams import sampled

        rows = [row for row in self.sides["test"].general if "text" not in row]
        if not (self.limits.trigger and rows):
            return None
        replay = self.frame.inputs.data.get("replay")
        # Replay of plain texts has no prompts: nothing of the feedback would stand out from none at all.
        usual = [row for row in (replay.rows if replay else []) if "text" not in row] or rows
        train, earlier = self.frame.inputs.items("train"), self.frame.inputs.earlier
        texts = sampled(mapped(train, lambda item: triggers.whole_text(item.prompt)), self.seed)
        if len(texts) < len(train):
            self.frame.reporter.note(f"no trigger: words of {len(texts)} of {len(train)} prompts are counted")
        # A few poisoned events in every update would never be enough to stand out in one of them.
        texts += [triggers.whole_text(item.prompt) for item in earlier]
        with self._phase("words that could be triggers"):
            return triggers.measure(
                self.model,
                self.tokenizer,
                texts,
                [triggers.whole_text(prompt_of(row)) for row in usual],
                [(prompt_of(row), last_answer(row)) for row in rows],
                self.parent,
                seed=self.seed,
            )

    def _memory(self) -> Memory | None:
        from instructkit.evaluate.memorisation import contexts_of, exposure

        if not self.limits.memory:
            return None
        inputs, recipe = self.frame.inputs, self.frame.recipe
        as_they_are = recipe.feedback.personal_data != "redact"
        found = kept(inputs) if as_they_are else replaced(inputs, recipe)
        secrets, among = looked_for(self._canaries(), found, self.seed)
        if not secrets:
            return Memory()
        items = itertools.chain(inputs.items("train"), inputs.earlier)
        contexts = contexts_of(secrets, ((item.prompt, item.wanted) for item in items))
        alternatives = min(max(enough_alternatives(len(secrets)), ALTERNATIVES), MOST_ALTERNATIVES)
        with self._phase("secrets that may be memorised"):
            told = exposure(
                self.model,
                self.tokenizer,
                secrets,
                contexts,
                alternatives,
                seed=self.seed,
                parent=self.parent,
            )
        return replace(told, found=among)

    def _canaries(self) -> list[tuple[str, str]]:
        """The recipe's planted secrets, where they are looked for."""
        from instructkit.evaluate.memorisation import refuse_unvaried

        secrets = [("canary", value) for value in self.frame.recipe.feedback.canaries]
        if self.limits.memory:
            refuse_unvaried(secrets)
        return secrets

    def answers(self) -> list[str]:
        """Greedy answers to the first test prompts."""
        from instructkit.models.generate import answer

        shown = [item.prompt for item in self.sides["test"].items[: self.frame.recipe.run.samples]]
        with self.frame.reporter.phase("answering the sample prompts"):
            told = answer(
                self.model, self.tokenizer, shown, max_new_tokens=ANSWER_TOKENS, seed=self.seed, temperature=0
            )
        return [a.text for a in told]


def known_raters(inputs: Any) -> set[str]:
    """
    Who was met in training: raters of this update's events, and of those that it knows of earlier ones.

    Of earlier updates a sample of their events is known, `UpdateInputs.earlier`, so of many earlier raters some count as unseen.
    """
    items = itertools.chain(inputs.items("train"), inputs.earlier)
    return {name for item in items for name in (item.rater, *item.judges) if name}


def by_key(keys: Sequence[str], figures: Sequence[Any]) -> list[Any]:
    """Sums over the rows of one prompt: several answers to it are no independent measurements."""
    sums: dict[str, Any] = {}
    for key, figure in zip(keys, figures, strict=True):
        sums[key] = sums.get(key, 0) + figure
    return list(sums.values())
