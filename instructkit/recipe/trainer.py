"""The fields of `trainer:`: TRL's own, known from a file made from the pinned TRL, so that checking them imports nothing."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from instructkit.errors import Fault
from instructkit.recipe import aliases
from instructkit.recipe.document import Document, Place, dotted
from instructkit.recipe.messages import IN_WORDS, shown_value
from instructkit.recipe.yaml import inline

_LOG = logging.getLogger(__name__)
FILE = Path(__file__).with_name("trainer_fields.json")
UPDATE_PARTS = ("sft", "dpo", "kto")

# Names of other tools, with what TRL and instructkit call the same thing.
FOREIGN = {
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "grad_accumulation_steps": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "n_epochs": "num_train_epochs",
    "steps": "max_steps",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "sequence_len": "max_length",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "cutoff_len": "max_length",
    "sample_packing": "packing",
    "log_every": "logging_steps",
    "kl_coef": "beta",
    "init_kl_coef": "beta",
    "cliprange": "epsilon",
    "clip_range": "epsilon",
    "cliprange_high": "epsilon_high",
    "value_clip": "cliprange_value",
    "num_ppo_epochs": "num_iterations",
    "ppo_epochs": "num_iterations",
    "num_mini_batches": "steps_per_generation",
    "response_length": "max_completion_length",
    "max_new_tokens": "max_completion_length",
    "gae_lambda": "lam",
    "kl_target": "target_kl_per_sequence",
    "adap_kl_ctrl": "target_kl_per_sequence",
    "horizon": "kl_horizon",
    "entropy_coeff": "entropy_coef",
    "critic_learning_rate": "value_learning_rate",
    "whiten_advantages": "normalize_advantages",
}
# Fields of TRL's configs that another part of a recipe, or the command line, sets.
OURS = {
    "output_dir": "the run folder is `run.output`",
    "seed": "the seed of a run is `run.seed`",
    "resume_from_checkpoint": "resume with `--resume`",
    "model_init_kwargs": "the `model:` section says how a model is loaded",
    "bf16": "the number format is `model.dtype`",
    "fp16": "the number format is `model.dtype`",
    "reward_weights": "each entry of `reward:` has its own `weight`",
    "precompute_ref_log_probs": "the reference is the parent, always computed before training",
}
# Numbers that must be above 0, and those that must not be below it; TRL takes others and goes on.
ABOVE_0 = {
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_iterations",
    "steps_per_generation",
    "num_generations",
    "max_completion_length",
    "max_length",
    "max_length_of_text",
    "kl_horizon",
    "reading_batch_size",
    "ptx_rows_per_episode",
    "vllm_importance_sampling_cap",
    "temperature",
    "num_train_epochs",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "eval_accumulation_steps",
    "dataloader_prefetch_factor",
    "generation_batch_size",
    "num_generations_eval",
    "desirable_weight",
    "undesirable_weight",
}
NOT_BELOW_0 = {
    "learning_rate",
    "value_learning_rate",
    "beta",
    "weight_decay",
    "max_grad_norm",
    "warmup_steps",
    "vf_coef",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "label_smoothing_factor",
    "label_smoothing",
    "eval_delay",
    "dataloader_num_workers",
    "neftune_noise_alpha",
    "ptx_coef",
    "entropy_coef",
    "epsilon",
    "value_warmup_steps",
}
BELOW_1 = {"adam_beta1", "adam_beta2", "label_smoothing_factor", "label_smoothing"}
MOST = 2**31  # no number of a config reaches it, but the seed of the data


@cache
def schema() -> dict[str, Any]:
    """Fields by stage: name to `{"types": [...], "default": ...}`; derived anew where another TRL is installed."""
    shipped = json.loads(FILE.read_text(encoding="utf-8"))
    made_for, here = shipped.pop("made_for"), installed()
    if here in (made_for, {}):
        return shipped
    derived = _derived(made_for, here)
    return shipped if derived is None else derived


def installed() -> dict[str, str]:
    """The versions on which the fields depend; empty where one is not installed."""
    try:
        return {name: version(name) for name in ("trl", "transformers")}
    except PackageNotFoundError:
        return {}


def _derived(made_for: dict[str, str], here: dict[str, str]) -> dict[str, Any] | None:
    """The fields of the installed versions, worked out once in a process of its own and kept; None when that fails."""
    kept = _cache_folder() / f"fields-{'-'.join(here.values())}.json"
    told = ", ".join(f"{name} {number} (made for {made_for[name]})" for name, number in here.items())
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or cut off
        _LOG.warning(
            "other versions are installed than the recipe schema was made for, deriving it: %s", told
        )
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "fields.json"
            command = [sys.executable, "-m", "instructkit.recipe.trainer_generate", str(made)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                _LOG.warning("that failed, and the shipped schema is used: %s", done.stderr.strip()[-200:])
                return None
            text = made.read_text(encoding="utf-8")
        _keep(kept, text)
        found = json.loads(text)
    found.pop("made_for")
    return found


def _cache_folder() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("INSTRUCTKIT_CACHE") or home / "instructkit")


def _keep(path: Path, text: str) -> None:
    """Write a file whole or not at all; a cache that cannot be written costs time, not the command."""
    half = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(text, encoding="utf-8")
        half.replace(path)


def fields(stage: str) -> dict[str, dict[str, Any]]:
    """The fields that stand directly under `trainer:` of a stage."""
    return schema()[stage]


def known(key: str, stage: str) -> bool:
    """True when a stage's trainer has a field of this name."""
    return key in schema().get(stage, {})


Found = tuple[Place, Fault]

_CHECKS = {
    "bool": lambda v: isinstance(v, bool),
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: type(v) is int or isinstance(v, float) and math.isfinite(v),
    "str": lambda v: isinstance(v, str),
    "list": lambda v: isinstance(v, list),
    "dict": lambda v: isinstance(v, dict),
    "null": lambda v: v is None,
    "any": lambda v: True,
}


def check(document: Document, stage: str) -> list[Found]:
    """Faults of the `trainer:` section: unknown names with the nearest right one, and values of the wrong type."""
    given = document.values.get("trainer")
    if not isinstance(given, dict):
        return []
    if stage != "lora-update":
        return _check(document, ("trainer",), given, stage, stage)
    common = {key: value for key, value in given.items() if key not in UPDATE_PARTS}
    found = _check(document, ("trainer",), common, stage, stage)
    for part in UPDATE_PARTS:
        place: Place = ("trainer", part)
        if part in given and not isinstance(given[part], dict):
            told = f"`trainer.{part}` is {shown_value(given[part])}; wanted a section"
            hint = f"its fields stand below it; remove `{part}:` if there are none"
            found.append((place, Fault(document.where(place), told, hint)))
        elif part in given:
            found += _check(document, place, given[part], stage, part)
    return found


def take_back(document: Document, stage: str) -> None:
    """Fields of `trainer:` that are null where TRL takes no null are as if nobody had given them: a base's value is gone."""
    given = document.values.get("trainer")
    if not isinstance(given, dict):
        return
    _without_nulls(document, ("trainer",), given, schema()[stage])
    for part in UPDATE_PARTS if stage == "lora-update" else ():
        if isinstance(given.get(part), dict):
            _without_nulls(document, ("trainer", part), given[part], schema()[part])


def _without_nulls(document: Document, place: Place, given: dict[str, Any], allowed: dict[str, Any]) -> None:
    gone = [
        key
        for key, value in given.items()
        if value is None
        and (*place, key) not in document.spoiled
        and not {"null", "any"} & set(allowed.get(key, {}).get("types", ["any"]))
    ]
    for key in gone:
        del given[key]
        document.forget((*place, key))


def _check(document: Document, place: Place, given: dict[str, Any], stage: str, fields: str) -> list[Found]:
    section, found = dotted(place), []
    for key, value in given.items():
        told, hint = _told(key, value, section, schema()[fields])
        if told and key not in schema()[fields] and key not in OURS:
            hint = _remedy(key, section, stage, fields)
        if told:
            here = (*place, key)
            found.append((here, Fault(document.where(here), told, hint)))
    return found


def _told(key: str, value: Any, section: str, allowed: dict[str, Any]) -> tuple[str | None, str | None]:
    """What is wrong with a field, and the way on."""
    if key in OURS:
        return f"`{section}.{key}` is not set here", OURS[key]
    if key not in allowed:
        return f"unknown key `{key}` in `{section}`", None
    told = f"`{section}.{key}` is {shown_value(value)}"
    if not any(_CHECKS[kind](value) for kind in allowed[key]["types"]):
        return f"{told}; wanted {_wanted(value, allowed[key]['types'])}", None
    if isinstance(value, int | float) and not isinstance(value, bool) and (wanted := _range(key, value)):
        return f"{told}; {wanted}", None
    if isinstance(value, str) and value not in (choices := allowed[key].get("choices", [value])):
        return told, _nearest(value, choices)
    return None, None


def _range(key: str, value: float) -> str | None:
    if key in ABOVE_0 and value <= 0:
        return "it must be above 0"
    if key in NOT_BELOW_0 and value < 0:
        return "it must not be below 0"
    if key in BELOW_1 and value >= 1:
        return "it must be below 1"
    if value >= MOST and key != "data_seed":
        return f"it must be below {MOST}"
    if key == "max_steps" and value < 1 and value != -1:
        return "it must be above 0, or -1 for none"
    return None


def _nearest(value: str, choices: list[str]) -> str:
    """The choice that is near, or the first whose first word is: `adamw` is nearer to `adamw_torch` than to `grokadamw`."""
    words = {choice.partition("_")[0]: choice for choice in reversed(choices)}
    names = {choice: choice for choice in choices} | words
    near = difflib.get_close_matches(value, list(names), n=1, cutoff=0.6)
    return f"did you mean `{names[near[0]]}`?" if near else f"it is one of {', '.join(choices)}"


def _wanted(value: Any, kinds: list[str]) -> str:
    """The kinds that a field takes; of a number that is none, that it be one."""
    if isinstance(value, float) and not math.isfinite(value) and {"int", "float"} & set(kinds):
        return "a finite number"
    return " or ".join(IN_WORDS.get(kind, kind) for kind in kinds)


def _remedy(key: str, section: str, stage: str, fields: str) -> str:
    """The way on from a name that TRL's config does not have."""
    allowed = schema()[fields]
    if FOREIGN.get(key) in allowed:
        return f"TRL's name for it is `{FOREIGN[key]}`"
    parts = UPDATE_PARTS if fields == "lora-update" else ()
    if part := next((part for part in parts if key in schema()[part]), None):
        return f"it belongs under `trainer.{part}:`"
    if told := aliases.home(key, stage, within="trainer") or aliases.near_home(key, stage, list(allowed)):
        return told
    near = difflib.get_close_matches(key.replace("-", "_"), sorted(allowed), n=1, cutoff=0.6)
    if near:
        return OURS.get(near[0]) or f"did you mean `{near[0]}`?"
    others = [stage for stage, theirs in schema().items() if key in theirs]
    if others:
        return f"it is a field of {' and '.join(others)}, not of this stage"
    return f"`instructkit explain {stage}.{section}` lists the fields"


FIXED: dict[str, Any] = {
    "report_to": "none",
    "disable_tqdm": True,
    # Four checkpoints a run and an early one (see `stages/stop_callback.py`), the last one kept; gone when the run is finished.
    "save_strategy": "steps",
    "save_steps": 0.25,
    "save_total_limit": 1,
}
# Held-out rows of sft are measured one by one, so they are not packed with the training rows.
OF_STAGE: dict[str, dict[str, Any]] = {"sft": {"eval_packing": False}}
ADAPTERS_LEARN = {"learning_rate": 1e-5, "value_learning_rate": 5e-5}  # PPO's, under `lora:`
_ON_A_GPU = "true on a GPU, false on a CPU"
_IN_WORDS = {  # what depends on the machine, by the stage that has it; "" is every stage
    "": {
        "gradient_checkpointing": _ON_A_GPU,
        "dataloader_pin_memory": _ON_A_GPU,
        "use_cpu": "true where there is no GPU",
    },
    "sft": {"assistant_only_loss": "true where the rows are conversations, else false"},
    "ppo": {
        "missing_eos_penalty": "0 where functions alone score and no mode is named, else {trl}",
        "value_warmup_steps": "0 where the critic knows something, else up to 10",
        **{name: f"{rate:g} with `lora:`, else {{trl}}" for name, rate in ADAPTERS_LEARN.items()},
    },
    "kto": dict.fromkeys(
        ("desirable_weight", "undesirable_weight"), "1, or what makes both classes weigh alike"
    ),
}


def value(stage: str, name: str, otherwise: Any) -> Any:
    """The default that a run has as one value; TRL's where it has no other, or none that does not depend on the machine."""
    return {**FIXED, **OF_STAGE.get(stage, {})}.get(name, otherwise)


def depends(stage: str, name: str) -> bool:
    """Whether a field's default depends on machine, data or model, so that it is none of a schema."""
    return name in _IN_WORDS[""] or name in _IN_WORDS.get(stage, {})


def in_words(stage: str, name: str, trl: str) -> str:
    """
    The default of a trainer's field, and TRL's own beside it where a run has another.

    Args:
        trl: TRL's default, as a recipe would write it.
    """
    words = {**_IN_WORDS[""], **_IN_WORDS.get(stage, {})}.get(name)
    if words is not None:
        return words.format(trl=trl) if "{trl}" in words else f"{words} (TRL's own {trl})"
    ours = {**FIXED, **OF_STAGE.get(stage, {})}
    return f"{inline(ours[name])} (TRL's own {trl})" if name in ours and inline(ours[name]) != trl else trl
