"""The critic of PPO: on the policy's backbone where it can be, beginning as the reward model where it can."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructkit.errors import InputError
from instructkit.models import load
from instructkit.models.source import Source, locate
from instructkit.recipe.schema import PpoRecipe
from instructkit.stages.base import Frame

CRITIC_FOLDER = "critic"
HEAD_FILE = "head.safetensors"


@dataclass(frozen=True)
class Start:
    """Where a critic begins: a saved value model and the scale of its head, or (None) as the policy with a zero head."""

    source: Source | None
    mean: float = 0.0
    std: float = 1.0
    told: str = "begins as the policy, with a zero head"


# -- the critic -------------------------------------------------------------------------------------------------------


def kind_of_critic(recipe: PpoRecipe) -> str:
    """The recipe's kind, `auto` resolved: an adapter on the policy's backbone under LoRA, a body of its own otherwise."""
    kind = recipe.critic.kind
    if kind == "auto":
        return "adapter" if recipe.lora else "separate"
    return kind


def build_critic(frame: Frame, model: Any, start: Start) -> Any:
    """The critic that the recipe asks for, and a line that says which and how it begins."""
    kind = kind_of_critic(frame.recipe)
    what = {
        "head": "a head on the policy's hidden states",
        "adapter": "an adapter of its own on the policy's backbone",
        "separate": "a model of its own",
    }
    frame.reporter.note(f"critic: {what[kind]}; it {start.told}")
    return {"head": _head, "adapter": _adapter, "separate": _separate}[kind](frame, model, start)


def _head(frame: Frame, model: Any, start: Start) -> Any:
    from instructkit.ppo.critic import HeadCritic, load_state

    critic = HeadCritic(model.config.get_text_config().hidden_size, detach=frame.recipe.critic.detach)
    if start.source is not None:
        from safetensors.torch import load_file

        with load.in_words(start.source, start.source.base):
            load_state(critic, load_file(str(Path(start.source.base) / HEAD_FILE)))
    return critic


def _adapter(frame: Frame, model: Any, start: Start) -> Any:
    from instructkit.models import adapters
    from instructkit.models.reward import saved_head
    from instructkit.ppo.critic import AdapterCritic

    folder = start.source.adapter if start.source else None
    with load.in_words(start.source, folder) if folder else contextlib.nullcontext():
        role = adapters.add_critic(model, folder)
    return AdapterCritic(
        model.config.get_text_config().hidden_size,
        role,
        lambda name: adapters.adapter_of(name) == adapters.CRITIC,
        head=saved_head(folder) if folder else None,
        mean=start.mean,
        std=start.std,
    )


def _separate(frame: Frame, model: Any, start: Start) -> Any:
    from instructkit.models.reward import saved_head
    from instructkit.ppo.critic import SeparateCritic

    recipe = frame.recipe
    source = start.source or frame.inputs.parents["model"]
    classifier = load.load_for_training(source, recipe.model, frame.machine, recipe.lora, task="SEQ_CLS")
    critic = SeparateCritic(classifier, mean=start.mean, std=start.std, zero_head=start.source is None)
    if start.source is not None and start.source.adapter:
        critic.take_head(saved_head(start.source.adapter))  # a parent's head is not loaded with its adapter
    return critic


def start_of_critic(frame: Frame, tokenizer: Any) -> Start:
    """
    Where the critic begins: as an earlier run's critic, as the reward model, or as the policy with a zero head.

    Raises:
        InputError: when the recipe names a start that this critic cannot have.
    """
    recipe, kind = frame.recipe, kind_of_critic(frame.recipe)
    wanted = recipe.critic.init
    if wanted not in ("auto", "reward", "zero"):
        return earlier(recipe, frame.inputs.parents)
    source = None if wanted == "zero" else _reward_as_start(frame, kind, tokenizer)
    if source is None and wanted == "reward":
        raise InputError(
            f"{recipe.source}: critic.init is reward, and the critic cannot start from this reward model",
            hint="that needs exactly one learned reward model with the policy's tokenizer, of the same kind as the critic: an "
            "adapter on the policy's base for critic.kind adapter, a whole model for separate; use critic.init: zero",
        )
    if source is None:
        return Start(None)
    from instructkit.models.reward import Offset

    offset, weight = Offset.read(source.run), recipe.reward[0].weight
    if weight == 0:
        return Start(None)
    scaled = {"score_scaling", "score_clip"} & set(recipe.trainer)
    told = (
        f"scaled as its scores are before {' and '.join(sorted(scaled))}"
        if scaled
        else "scaled like the scores"
    )
    return Start(
        source, offset.mean, offset.std / weight, f"begins as the reward model {source.name}, {told}"
    )


def _reward_as_start(frame: Frame, kind: str, tokenizer: Any) -> Source | None:
    """The one learned reward model, where a critic of this kind can hold its weights and reads the same tokens."""
    recipe, parents = frame.recipe, frame.inputs.parents
    learned = [parents[f"reward[{i}]"] for i, item in enumerate(recipe.reward) if item.model]
    if len(recipe.reward) != 1 or len(learned) != 1:
        return None
    source = learned[0]
    fits = {
        "head": False,
        "adapter": source.adapter is not None and source.base == parents["model"].base,
        "separate": recipe.lora is None and source.adapter is None,
    }[kind]
    if not fits or load.load_tokenizer(source, recipe.model).get_vocab() != tokenizer.get_vocab():
        return None
    return source


def locate_earlier(recipe: PpoRecipe) -> Source | None:
    """The critic of an earlier run that `critic.init` names, before anything is loaded."""
    name = recipe.critic.init
    if name in ("auto", "reward", "zero"):
        return None
    folder = Path(name) / CRITIC_FOLDER
    if not (folder / "critic.json").exists():
        raise InputError(
            f"{recipe.source}: critic.init names {name}, and there is no critic in it",
            hint="name the folder of a finished run of `instructkit ppo`, or use auto, reward or zero",
        )
    whole = locate(name)
    if (folder / HEAD_FILE).exists():
        return Source(name, str(folder), run=whole.run)
    return replace(locate(str(folder)), run=whole.run)


def earlier(recipe: PpoRecipe, parents: dict[str, Source]) -> Start:
    """
    The start that `critic.init` names by its run.

    Raises:
        InputError: when that critic is of another kind, or stands on another base.
    """
    kind = kind_of_critic(recipe)
    source, folder = parents["critic"], Path(recipe.critic.init) / CRITIC_FOLDER
    saved = json.loads((folder / "critic.json").read_text(encoding="utf-8"))
    if saved["kind"] != kind:
        raise InputError(
            f"{recipe.source}: the critic of {recipe.critic.init} is of kind {saved['kind']}, and this one is of kind {kind}",
            hint=f"set critic.kind: {saved['kind']}, or another critic.init",
        )
    if kind == "adapter" and source.base != parents["model"].base:
        raise InputError(
            f"{recipe.source}: the critic of {recipe.critic.init} stands on {source.base}, the policy on {parents['model'].base}",
            hint="name a run on the policy's own base, or use critic.init: auto",
        )
    return Start(source, saved["mean"], saved["std"], f"goes on from {recipe.critic.init}")


def save_critic(trainer: Any, tokenizer: Any, folder: Path, source: Source) -> None:
    """The critic in a folder of its own beside the policy, as `critic.init` of a next run reads it."""
    from safetensors.torch import save_file

    from instructkit.models import adapters
    from instructkit.ppo.critic import copy_state

    critic = trainer.accelerator.unwrap_model(trainer.critic)
    policy = trainer.accelerator.unwrap_model(trainer.model)
    folder.mkdir(parents=True, exist_ok=True)
    kind = {"policy": "head", "role": "adapter", "tokens": "separate"}[critic.reads]
    if kind == "head":
        save_file(copy_state(critic), folder / HEAD_FILE)
    elif kind == "adapter":
        adapters.save_critic(policy, critic.head, critic.role, folder, source.base)
    else:
        load.save_model(critic.classifier, tokenizer, folder, source)
    scale = {"mean": getattr(critic, "mean", 0.0), "std": getattr(critic, "std", 1.0)}
    (folder / "critic.json").write_text(
        json.dumps({"kind": kind, **scale}, indent=1) + "\n", encoding="utf-8"
    )
