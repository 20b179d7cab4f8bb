"""What the sections of a LoRA update do not allow together."""

from __future__ import annotations

from typing import Any

from instructkit.recipe.document import Place

_BALANCED = ("group:", "tag:")


def contradictions(recipe: Any) -> Told:
    """Place, what is wrong, and the way on."""
    return _about_shares(recipe.feedback) + _about_learning(recipe) + _about_gates(recipe)


def _about_shares(feedback: Any) -> Told:
    found: Told = []
    if isinstance(feedback.eval, float) and feedback.eval + feedback.tune >= 1:
        told = f"`feedback.eval` {feedback.eval:g} and `tune` {feedback.tune:g} leave no events to learn from"
        place = "tune" if "tune" in feedback.model_fields_set else "eval"
        found.append((("feedback", place), told, "keep their sum below 1"))
    for name in feedback.balance:
        if not any(name.startswith(kind) and name != kind for kind in _BALANCED):
            told = f"`feedback.balance` names {name!r}; wanted `group:NAME` or `tag:NAME`"
            found.append((("feedback", "balance", name), told, "such as `'group:women': 0.5`"))
    groups = sum(share for name, share in feedback.balance.items() if name.startswith("group:"))
    if groups > 1 + 1e-9:  # an event has one group, and may have many tags
        told = f"`feedback.balance` gives groups {groups:g} of the weight; an event has one group"
        found.append((("feedback", "balance"), told, "keep the sum of their shares at 1 or below"))
    return found


def _about_learning(recipe: Any) -> Told:
    feedback, bits, found = recipe.feedback, recipe.model.quantization, []
    if feedback.mode == "merge" and bits != "none":
        told = f"`feedback.mode` is merge, and `model.quantization` {bits}: nothing is merged into quantised weights"
        found.append((("feedback", "mode"), told, "set mode: new or continue, or quantization: none"))
    for name in ("self_replay", "anchor"):
        if getattr(feedback, name) and not feedback.replay_share:
            told = f"`feedback.{name}` acts on replayed rows, and `replay_share` is 0"
            found.append((("feedback", name), told, f"set a replay_share such as 0.25, or {name}: 0"))
    return found


def _about_gates(recipe: Any) -> Told:
    gates, found = recipe.gates, []
    low, high = gates.length_ratio_min, gates.length_ratio_max
    if low is not None and high is not None and low > high:
        told = (
            f"`gates.length_ratio_min` {low:g} is above `length_ratio_max` {high:g}, so no adapter could pass"
        )
        found.append((("gates", "length_ratio_min"), told, "let the first be the smaller one"))
    measured = "general_accuracy_loss_max" not in gates.model_fields_set or recipe.feedback.tasks
    if not measured and gates.general_accuracy_loss_max is not None:
        told = "`gates.general_accuracy_loss_max` could not be measured: `feedback.tasks` names no file"
        hint = "name files of questions under `feedback.tasks`, or remove the gate"
        found.append((("gates", "general_accuracy_loss_max"), told, hint))
    return found
