"""What each section allows and the recipe as a whole does not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from instructkit.ppo import limits
from instructkit.recipe import trainer
from instructkit.recipe.document import Place

_BALANCED = ("group:", "tag:")


def update_contradictions(recipe: Any) -> Told:
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


Told = list[tuple[Place, str, str | None]]
_FILES = (
    "deepspeed",
    "fsdp_config",
    "accelerator_config",
    "chat_template_path",
)  # of `trainer:`; some may be a mapping
# The fields of rows that a stage reads, which `data.columns` may give to others. Prompts take any: reward functions see all.
FIELDS = {
    "sft": ("messages", "prompt", "completion", "text", "conversations")
    + ("instruction", "input", "output", "system", "history"),
    "reward": ("prompt", "chosen", "rejected", "margin", "chosen_rating", "rejected_rating", "conversations")
    + ("instruction", "input", "system", "history", "preferred_output", "non_preferred_output"),
}


def contradictions(recipe: Any) -> Told:
    """Place, what is wrong, and the way on."""
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
    found += _about_columns(recipe) + _about_judge(recipe)
    found += _about_evaluation(recipe) + _about_steps(recipe.trainer) + _about_files(recipe.trainer)
    if recipe.stage == "lora-update":
        found += update_contradictions(recipe)
    if recipe.stage == "ppo":
        found += _about_critic(recipe) + _about_settings(recipe)
    return found


def _about_columns(recipe: Any) -> Told:
    """Two names for one field, and fields that nothing reads; a field that is read may be moved out of the way."""
    section = "feedback" if recipe.stage == "lora-update" else "data"
    columns: dict[str, str] = getattr(recipe, section).columns
    known, found = FIELDS.get(recipe.stage), []
    for name, wanted in columns.items():
        if wanted == "unused":
            continue
        place, first = (section, "columns", name), next(key for key in columns if columns[key] == wanted)
        if first != name:
            told = f"`{section}.columns` makes both `{first}` and `{name}` to `{wanted}`"
            found.append((place, told, "keep one of them"))
        elif known and wanted not in known and name not in known:
            told = f"`{section}.columns` makes `{name}` to `{wanted}`, which {recipe.stage} does not read"
            found.append((place, told, f"it reads {', '.join(known)}; `columns` is written `found: wanted`"))
    return found


def _about_judge(recipe: Any) -> Told:
    gates = recipe.gates
    if "judge_gain_min" not in gates.model_fields_set or gates.judge is not None:
        return []
    told = "`gates.judge_gain_min` could not be measured: there is no `gates.judge`"
    return [(("gates", "judge_gain_min"), told, "name a judge, such as demo/judge, or remove the gate")]


def _about_evaluation(recipe: Any) -> Told:
    """What TRL says of evaluation while training, after it has loaded everything."""
    given, found = recipe.trainer, []
    evaluated, saved = given.get("eval_strategy", "no"), given.get("save_strategy", "steps")
    if evaluated != "no" and getattr(recipe, "data", None) and recipe.data.eval is None:
        told = f"`trainer.eval_strategy` is {evaluated}, and `data.eval` is null: there is nothing to evaluate on"
        found.append(
            (("trainer", "eval_strategy"), told, "hold out a share with `data.eval`, or set it to no")
        )
    if not given.get("load_best_model_at_end"):
        return found
    place = ("trainer", "load_best_model_at_end")
    if saved != "best" and evaluated != saved or evaluated == "no":
        told = f"`trainer.load_best_model_at_end` needs one strategy; eval_strategy is {evaluated}, save_strategy {saved}"
        found.append((place, told, "set both to steps, or both to epoch"))
    elif evaluated == saved == "steps":
        every = (
            given.get("eval_steps")
            or given.get("logging_steps")
            or trainer.fields("sft")["logging_steps"]["default"]
        )
        kept = given.get("save_steps", 0.25)  # a share of all steps, as the stages set it
        if (every < 1) != (kept < 1) or round(kept * 1e6) % round(every * 1e6):
            told = f"`trainer.load_best_model_at_end` needs save_steps ({kept:g}) to be a multiple of eval_steps ({every:g})"
            found.append((place, told, "set save_steps to it, so that every kept model is measured"))
    return found


def _about_steps(trainer: dict[str, Any]) -> Told:
    steps, warmup = trainer.get("max_steps", -1), trainer.get("warmup_steps", 0)
    # A trial run of a few steps under a recipe's own warm-up is no mistake.
    if steps < 1 or warmup < 1 or warmup < 100 * steps:
        return []
    told = (
        f"`trainer.warmup_steps` is {warmup:g} of {steps} steps, so the learning rate would never be reached"
    )
    return [(("trainer", "warmup_steps"), told, "set fewer, or a share below 1")]


def _about_files(trainer: dict[str, Any]) -> Told:
    """Files that TRL would ask a hub for, or stumble over, long after the start."""
    found: Told = []
    for name in _FILES:
        path = trainer.get(name)
        if (
            isinstance(path, str)
            and Path(path).suffix in (".json", ".jinja", ".j2")
            and not Path(path).is_file()
        ):
            hint = "paths are looked for where the command is given"
            found.append((("trainer", name), f"`trainer.{name}` names {path}, where no file is", hint))
    if trainer.get("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        told = "`trainer.deepspeed` needs the package deepspeed, which is not installed"
        found.append((("trainer", "deepspeed"), told, "`pip install deepspeed`, or remove it"))
    return found


def _about_settings(recipe: Any) -> Told:
    """What PPO's config would refuse, told before anything is loaded."""
    defaults = {name: field["default"] for name, field in trainer.fields("ppo").items()}
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
