"""The fields of `trainer:`: TRL's own, known from a file made from the pinned TRL, so that checking them imports nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
            command = [sys.executable, "-m", "instructkit.recipe.generate", str(made)]
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
