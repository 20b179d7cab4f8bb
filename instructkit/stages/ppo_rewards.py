"""What PPO is rewarded by: reward models, on the policy's backbone where they can be, and Python functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from instructkit import models
from instructkit.stages.base import Frame
from instructkit.stages.functions import scoring_function


def scorers(frame: Frame, policy: Any, tokenizer: Any) -> list[Callable[..., Any]]:
    """The recipe's `reward:` list as callables of TRL's form, each with a name of its own, under which it is logged."""
    found = [scorer(frame, i, policy, tokenizer) for i in range(len(frame.recipe.reward))]
    times = Counter(each.__name__ for each in found)
    for i, each in enumerate(found):
        if times[each.__name__] > 1:
            each.__name__ = f"{each.__name__}[{i}]"
    return found


def scorer(frame: Frame, index: int, policy: Any, tokenizer: Any) -> Callable[..., Any]:
    """One entry of the recipe's `reward:` list as a callable of TRL's form."""
    from instructkit.evaluate.generate import end_ids
    from instructkit.scoring import RewardScorer

    item = frame.recipe.reward[index]
    if item.function:
        return scoring_function(item.function, texts=frame.inputs.data["train"].rendered)
    options = {
        "batch_size": frame.recipe.trainer.get("reading_batch_size", 32),
        "policy_tokenizer": tokenizer,
        "ends": end_ids(policy, tokenizer),
    }
    source = frame.inputs.parents[f"reward[{index}]"]
    if frame.recipe.lora is not None and source.adapter and source.base == frame.inputs.parents["model"].base:
        frame.reporter.note(f"reward {source.name}: an adapter on the policy's backbone")
        own = models.load_tokenizer(source, frame.recipe.model)
        return RewardScorer.on_backbone(policy, source, own, f"reward_{index}", **options)
    return RewardScorer.load(source, frame.recipe.model.of_another(), frame.machine, **options)
