"""Separate the files that a run wrote into its folder from those of a user; only the former may be deleted."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from instructkit.runs.files import TEMPORARIES
from instructkit.runs.lineage import model_files, run_hash
from instructkit.runs.read import RECORD, is_run, read_record

SAVING_FOLDER = ".saving"  # holds the model files while they are written
CHECKPOINTS = "checkpoints"
LOGS = {RECORD, "metrics.jsonl", "samples.jsonl", "skipped.jsonl", "eval_samples.jsonl"}
# Earlier versions kept no list of their files. These were written next to a model, at the top or in the two folders.
_NEXT_TO_A_MODEL = {"README.md", "training_args.bin", "entry.json", "preprocess.json"}
_MODEL_NAMES = (
    *(
        "config.json",
        "generation_config.json",
        "adapter_config.json",
        "score_offset.json",
        "chat_template.jinja",
    ),
    *(
        "model*.safetensors",
        "model.safetensors.index.json",
        "adapter_model.*",
        "head.safetensors",
        "critic.json",
    ),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "entry.json"),
    *("preprocess.json", "training_args.bin"),
)
_MODEL_FOLDERS = {".", "update", "critic"}
# Keys of a recipe whose values may name a file or a folder that the run reads; lists of them end in a number.
_NAMES_A_PLACE = {
    *("name", "train", "eval", "source", "ptx", "model", "function", "init", "judge", "reward_model"),
    *(
        "events",
        "filter",
        "replay",
        "general",
        "tasks",
        "bias_pairs",
        "counterfactuals",
        "chat_template_path",
    ),
}


def foreign(folder: Path) -> list[Path]:
    """Return the files below a run folder that its run did not write, relative to it, sorted."""
    own = _own(folder)
    return [file for file in _every(folder) if file not in own and not _is_internal(file)]


def give_back(aside: Path, home: Path) -> None:
    """Move what a run did not write from its folder `aside` to `home`; a name that is taken there gets the ending `.kept`."""
    for file in foreign(aside) if aside.is_dir() else []:
        target = _free_name(home / file)
        target.parent.mkdir(parents=True, exist_ok=True)
        (aside / file).rename(target)


def discard(aside: Path, home: Path) -> None:
    """Delete a run folder that was moved aside, after what its run did not write was moved to `home`."""
    give_back(aside, home)
    shutil.rmtree(aside, ignore_errors=True)


def put_in_place(folder: Path, note_files: Callable[[list[str]], None]) -> None:
    """
    Move the saved model files from `SAVING_FOLDER` into their run folder.

    Args:
        note_files: called first with the list of these files, so that they are known as the run's own from then on.
    """
    saving = folder / SAVING_FOLDER
    fresh, own = _every(saving), _own(folder)
    for file in fresh:
        if file not in own and os.path.lexists(folder / file):  # a user's file of the same name
            (folder / file).rename(_free_name(folder / file))
    note_files([file.as_posix() for file in fresh])
    for file in fresh:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (saving / file).replace(folder / file)
    shutil.rmtree(saving)


def _free_name(path: Path) -> Path:
    while os.path.lexists(path):
        path = path.with_name(f"{path.name}.kept")
    return path


def _own(folder: Path) -> set[Path]:
    """
    Return the model files of a run: those that it listed.

    Of an earlier version they are all model files if they are as the run wrote them. Else something was added or the run is
    not finished, and only the usual names of model files count: what a user put there keeps its place.
    """
    record = read_record(folder) if is_run(folder) else {}
    if (listed := record.get("files")) is not None:
        return {Path(name) for name in listed}
    if record.get("hash") and record["hash"] == run_hash(folder):
        return {file.relative_to(folder) for file in model_files(folder)} | set(map(Path, _NEXT_TO_A_MODEL))
    earlier = bool(record) and "files" not in record
    return {file for file in _every(folder) if earlier and _has_a_usual_name(file)}


def _has_a_usual_name(file: Path) -> bool:
    return str(file.parent) in _MODEL_FOLDERS and any(fnmatch(file.name, name) for name in _MODEL_NAMES)


def _every(folder: Path) -> list[Path]:
    """Return all files and links below a folder, relative to it; links are not followed."""
    paths: list[Path] = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        paths += [(Path(place) / name).relative_to(folder) for name in [*files, *links]]
    return sorted(paths)


def _is_internal(file: Path) -> bool:
    """Say whether a file is a log, a checkpoint or a temporary file of the run."""
    inside = file.parts[0] in (CHECKPOINTS, SAVING_FOLDER) and len(file.parts) > 1
    return inside or str(file) in LOGS or any(file.match(pattern) for pattern in TEMPORARIES)


def inputs_inside(recipe: dict[str, Any], source: str, output: Path) -> list[tuple[str, str]]:
    """
    Return the inputs of a recipe that lie inside its output folder, as (key, value).

    Args:
        recipe: the resolved recipe; every text under a key that may name a place counts.
        source: the recipe file.
        output: the run folder.
    """
    home = output.resolve()
    named = [(key, value) for key, value in _texts(recipe) if _last_name(key) in _NAMES_A_PLACE]
    return [(key, value) for key, value in [("the recipe", source), *named] if _lies_in(value, home)]


def _last_name(key: str) -> str:
    return next((part for part in reversed(key.split(".")) if not part.isdecimal()), "")


def _texts(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Return every text of a nested value with its dotted key."""
    if isinstance(value, str):
        return [(key, value)]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [pair for name, item in pairs for pair in _texts(item, f"{key}.{name}" if key else str(name))]


def _lies_in(value: str, home: Path) -> bool:
    """Say whether a text names something in a folder: a file, a folder, a pattern, or `file.py:function`."""
    name = value.rpartition(":")[0] if ".py:" in value else value
    try:
        names = [name] if name and not glob.has_magic(name) else glob.glob(name, recursive=True)  # noqa: PTH207 - may be absolute
        real = [Path(path).resolve() for path in names]
        return any(path.is_relative_to(home) and path.exists() for path in real)
    except (OSError, ValueError):  # a text that cannot be a path
        return False
