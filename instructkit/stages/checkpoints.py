"""Which checkpoint a resumed run goes on from: the newest that was written to its end."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

from instructkit.errors import InputError
from instructkit.stages.base import CHECKPOINTS

STATE = "trainer_state.json"
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
_NAME = re.compile(r"checkpoint-(\d+)")


def newest(folder: Path, stage: str) -> Path | None:
    """The newest whole checkpoint of a trainer's folder; None where there is none."""
    return next((path for path in reversed(_every(folder)) if fault(path, stage) is None), None)


def fault(checkpoint: Path, stage: str) -> str | None:
    """
    Why a run cannot go on from a checkpoint, in words; None when it can.

    Trainer writes weights, optimizer, scheduler and random state, and its own state last, so a process that was killed leaves
    no state or half of one. A machine that stopped may also leave files that end too early, so their ends are looked at too.
    """
    try:
        names = {path.name for path in [*checkpoint.iterdir(), *checkpoint.glob("*/*")]}
        for name in (STATE, *_beside(stage)):
            if name not in names:
                return f"it has no {name}"
        if not names & set(WEIGHTS):
            return "it has no weights"
        return next((told for path in sorted(checkpoint.rglob("*")) if (told := _torn(path))), None)
    except OSError as error:
        return f"it cannot be read: {error}"


def refuse_none(output: Path, stage: str) -> None:
    """
    Refuse to resume a run that has nothing to go on from; changes nothing.

    Args:
        output: the run folder; the phases of an update have folders of their own below its checkpoints.

    Raises:
        InputError: naming the checkpoints that are not whole, if there are some.
    """
    folder = output / CHECKPOINTS
    places = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
    if any(newest(place, stage) for place in places):
        return
    halves = [f"{path.name} is damaged: {fault(path, stage)}" for place in places for path in _every(place)]
    if halves:
        raise InputError(
            f"{output} has no whole checkpoint to resume from: {'; '.join(halves)}",
            hint="start again with --overwrite",
        )
    raise InputError(
        f"{output} has no checkpoint to resume from",
        hint="it ended before the first one (trainer.save_steps); start again with --overwrite",
    )


def remove_halves(folder: Path, stage: str) -> str | None:
    """
    Delete the checkpoints that are not whole, and say so in words; return None where all are.

    Left in place, a half that looks newer than what is written next would have Trainer delete that as the older one.
    """
    told = []
    for path in _every(folder):
        if why := fault(path, stage):
            shutil.rmtree(path)
            told.append(f"{path.name} was left incomplete ({why})")
    for left in folder.glob("half-checkpoint-*"):  # of an earlier version
        shutil.rmtree(left, ignore_errors=True)
    return f"{'; '.join(told)}: deleted" if told else None


def resumable(output: Path, stage: str) -> bool:
    """Return whether a run can be resumed: its folder has a whole checkpoint."""
    try:
        refuse_none(output, stage)
    except InputError:
        return False
    return True


def _beside(stage: str) -> tuple[str, ...]:
    """What a stage needs beside what Trainer writes."""
    if stage != "ppo":
        return ()
    from instructkit.ppo.checkpoint import CRITIC_FILE

    return (CRITIC_FILE,)


def _every(folder: Path) -> list[Path]:
    """The checkpoints of a folder, whole or not, the newest last."""
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def _torn(path: Path) -> str | None:
    """What is wrong with a file that resuming reads, by its ends alone."""
    if path.suffix in (".pt", ".pth"):
        return None if zipfile.is_zipfile(path) else f"{path.name} ends too early"
    if path.suffix == ".safetensors":
        return _torn_tensors(path)
    if path.name == STATE or path.name.endswith(".index.json"):
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return f"{path.name} ends too early"
        missing = {n for n in said.get("weight_map", {}).values() if not path.with_name(n).is_file()}
        return f"it has no {min(missing)}" if missing else None
    return None


def _torn_tensors(path: Path) -> str | None:
    """Opening a file of tensors compares its length with what its head says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return None
    except SafetensorError:
        return f"{path.name} ends too early"
