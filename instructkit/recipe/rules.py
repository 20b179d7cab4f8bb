"""What each section allows and the recipe as a whole does not."""

from __future__ import annotations

from typing import Any

from instructkit.ppo import limits
from instructkit.recipe import trainer_fields
from instructkit.recipe.document import Place

Told = list[tuple[Place, str, str | None]]


def contradictions(recipe: Any, *, trainer_is_sound: bool = True) -> Told:
    """Place, what is wrong, and the way on; fields of a trainer section with faults of its own are not compared."""
    found: Told = []
    bits = recipe.model.quantization
    if bits != "none" and recipe.lora is None:
        told = f"`model.quantization` is {bits}, and quantised weights cannot be trained"
        found.append((("model", "quantization"), told, "add a `lora:` section, or set quantization: none"))
    set_gates = sorted(
        name for name in recipe.gates.model_fields_set if getattr(recipe.gates, name) is not None
    )
    if set_gates and getattr(recipe, "data", None) and recipe.data.eval is None:
        told = f"`data.eval` is null, so `gates.{set_gates[0]}` could not be measured"
        found.append((("data", "eval"), told, "hold out a share, or name a held-out source"))
    if (
        recipe.stage == "ppo"
        and recipe.gates.kl_max_nats is not None
        and recipe.lora is None
        and recipe.trainer.get("beta") == 0
    ):
        told = "`gates.kl_max_nats` could not be measured: with `trainer.beta` 0 no reference is loaded"
        hint = "set a small beta, add a `lora:` section (its reference costs nothing), or remove the gate"
        found.append((("gates", "kl_max_nats"), told, hint))
    if recipe.stage == "ppo":
        found += _about_critic(recipe)
        found += _about_settings(recipe) if trainer_is_sound else []
    return found


def _about_settings(recipe: Any) -> Told:
    """What PPO's config would refuse, told before anything is loaded."""
    defaults = {name: field["default"] for name, field in trainer_fields.fields("ppo").items()}
    found = limits.faults({**defaults, **recipe.trainer})
    return [(("trainer", name), f"`trainer.{name}`{told.removeprefix(name)}", None) for name, told in found]


def _about_critic(recipe: Any) -> Told:
    """Kinds and starts of a critic that these roles cannot have."""
    critic, found = recipe.critic, []
    kind = critic.kind if critic.kind != "auto" else "adapter" if recipe.lora else "separate"
    if kind == "adapter" and recipe.lora is None:
        told = "`critic.kind` is adapter, and without `lora:` there is no frozen backbone to stand on"
        found.append((("critic", "kind"), told, "add a `lora:` section, or set kind: separate or head"))
    if critic.detach and kind != "head":
        told = (
            f"`critic.detach` is true, and a critic of kind {kind} shares no trained weight with the policy"
        )
        found.append((("critic", "detach"), told, "set kind: head, or leave detach out"))
    if critic.init == "reward":
        learned = [item for item in recipe.reward if item.model]
        if kind == "head":
            told, hint = (
                "a head on the policy starts at zero",
                "set kind: adapter or separate, or leave init out",
            )
        elif kind == "separate" and recipe.lora is not None:
            told = "a critic of kind separate above `lora:` cannot hold a reward model's weights"
            hint = "set kind: adapter, or leave init out"
        elif len(recipe.reward) != 1 or not learned:
            told = f"`reward` has {len(recipe.reward)} entries, {len(learned)} of them learned models"
            hint = "a critic starts as the one learned reward model; leave init out, or use init: zero"
        else:
            return found
        found.append((("critic", "init"), f"`critic.init` is reward, and {told}", hint))
    return found
