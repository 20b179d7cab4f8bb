"""The frame of a run: from a recipe to a run folder, whatever the stage trains."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from instructkit import machine as machines
from instructkit import models
from instructkit.data.sources import Rows
from instructkit.errors import GateRefused, NothingNew
from instructkit.feedback.gates import stands_against
from instructkit.feedback.remedies import remedies
from instructkit.machine import Machine
from instructkit.recipe.render import to_dict
from instructkit.runs import lineage
from instructkit.runs.metrics import MetricsWriter, write_rows
from instructkit.runs.reading import is_run, read_record
from instructkit.runs.record import RunFolder, read_run

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class RunOptions:
    """What the command line says beside the recipe."""

    overwrite: bool = False
    resume: bool = False
    if_changed: bool = False
    command: list[str] = field(default_factory=list)


class Reporter(Protocol):
    """Where a run tells how it goes: a terminal, plain lines, or nothing."""

    def note(self, text: str) -> None: ...  # noqa: D102
    def stage_started(self, title: str, total_steps: int | None) -> None: ...  # noqa: D102
    def step(self, step: int, total: int, figures: dict[str, float]) -> None: ...  # noqa: D102
    def finished(self) -> None: ...  # noqa: D102
    def table(self, run: dict[str, Any]) -> None: ...  # noqa: D102


@dataclass
class Inputs:
    """What a stage reads: rows by role (`train`, `eval`, ...) and the models it stands on by role (`model`, `reward`, ...)."""

    data: dict[str, Rows]
    parents: dict[str, models.Source]

    def notes(self) -> list[str]:
        """What a plan tells of them beside their rows, a line each."""
        return []

    def as_dict(self) -> dict[str, Any]:
        """The same as data."""
        return {}


@dataclass
class Result:
    """What a stage leaves behind: a function that writes its model, and what was measured before and after."""

    save: Callable[[Path], None]
    measurements: list[dict[str, Any]]
    gates: list[Any] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Frame:
    """What a stage is given to work with."""

    recipe: Any
    inputs: Inputs
    machine: Machine
    folder: Path
    reporter: Reporter
    resume: bool
    clock: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)  # rows that a trainer leaves out, by reason

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.recipe.run.seed

    def timed(self, what: str, work: Callable[[], Any]) -> Any:
        """Do `work`, add its seconds to the run record under `what`, return its result."""
        started = time.perf_counter()
        try:
            return work()
        finally:
            self.clock[what] = round(self.clock.get(what, 0.0) + time.perf_counter() - started, 2)


def run(
    recipe: Any,
    options: RunOptions,
    reporter: Reporter,
    *,
    collect: Callable[[Any], Inputs],
    train: Callable[[Frame], Result],
    finish: Callable[[Any, Path, Callable[[str], None]], None] | None = None,
) -> dict[str, Any]:
    """
    Carry out one stage: check everything that is cheap to check, then train, measure, save and decide.

    Args:
        finish: what a stage does with its recipe and a complete run folder; done again it must change nothing, since a run
            that is there already may have been cut off before it.

    Returns:
        The run record.

    Raises:
        InputError: for what the user can mend, before anything is written.
        GateRefused: when the run is done and a gate says no.
    """
    quiet_libraries()
    try:
        inputs = collect(recipe)
    except NothingNew as nothing:
        if not options.if_changed or (stays := _as_it_was(recipe)) is None:
            raise
        reporter.note(f"{nothing}; nothing to do")
        return _stands(recipe, stays, reporter, finish)
    refuse_unfit_parents(recipe, inputs.parents)
    output, resolved = Path(recipe.run.output), to_dict(recipe)
    data = {role: rows.fingerprint for role, rows in inputs.data.items()}
    parents = {role: parent_hash(source) for role, source in inputs.parents.items()}
    if options.if_changed:
        reason = lineage.unchanged(output, resolved, data, parents)
        if reason is None:
            reporter.note(f"{output}: recipe, data and parents are unchanged; nothing to do")
            return _stands(recipe, output, reporter, finish)
        reporter.note(f"{output}: {reason}")
    folder = RunFolder(output)
    overwrite = options.overwrite or (options.if_changed and not options.resume)
    if options.resume:
        lineage.refuse_other_inputs(output, data, parents)
    else:
        folder.check_free(overwrite=overwrite)
    frame = Frame(recipe, inputs, choose_machine(recipe), output, reporter, options.resume)
    for reason in [*frame.machine.reasons, *left_out(inputs)]:
        reporter.note(reason)
    if frame.machine.on_cpu:
        machines.keep_freed_memory()
    folder.start(
        resolved, stage=recipe.stage, command=options.command, overwrite=overwrite, resume=options.resume
    )
    with folder:
        _carry_out(frame, folder, parents, train)
    if finish is not None:
        finish(recipe, output, reporter.note)
    reporter.finished()
    record = read_run(output)
    reporter.table(record)
    return _refuse_again(record)


def _as_it_was(recipe: Any) -> Path | None:
    """The run folder, where a finished run of this very recipe lies there, whole."""
    output = Path(recipe.run.output)
    if not is_run(output):
        return None
    was = read_record(output)
    data = {role: found.get("fingerprint") for role, found in was["data"].items()}
    parents = {role: found.get("hash") for role, found in was["parents"].items()}
    return output if lineage.unchanged(output, to_dict(recipe), data, parents) is None else None


def _stands(
    recipe: Any, output: Path, reporter: Reporter, finish: Callable[..., None] | None
) -> dict[str, Any]:
    """The record of a run that is not made again."""
    if finish is not None:
        finish(recipe, output, reporter.note)
    return _refuse_again(read_run(output))


def refuse_unfit_parents(recipe: Any, parents: dict[str, models.Source]) -> None:
    """A reward model may go on from any run; otherwise policies answer and reward models score."""
    for role, source in parents.items():
        if role == "critic":
            continue  # a part of a ppo run, which `critic.init` has looked for
        if role != "model" or recipe.stage != "reward":
            models.refuse_wrong_role(source, as_reward=role != "model")
    models.refuse_dora_above_an_adapter(parents["model"], recipe.lora)


def _carry_out(
    frame: Frame, folder: RunFolder, parents: dict[str, str], train: Callable[[Frame], Result]
) -> None:
    """Train, save and complete the record of a folder that is held."""
    recipe, inputs = frame.recipe, frame.inputs
    folder.update(
        hardware=machines.hardware(),
        choices=list(frame.machine.reasons),
        data={role: rows.summary() for role, rows in inputs.data.items()},
        parents={role: {"path": s.name, "hash": parents[role]} for role, s in inputs.parents.items()},
        synthetic=any(rows.synthetic for rows in inputs.data.values()),
    )
    skipped = [{"role": role, **row.as_dict()} for role, rows in inputs.data.items() for row in rows.skipped]
    if skipped:
        write_rows(frame.folder / "skipped.jsonl", skipped)
    seed_everything(frame.seed)
    result = train(frame)
    frame.timed("save", lambda: result.save(frame.folder))
    drop_checkpoints(recipe, frame.folder)
    write_rows(frame.folder / "samples.jsonl", result.samples)
    folder.update(peak_memory_bytes=peak_memory(), dropped=frame.dropped, **result.details)
    folder.complete(
        metrics=result.metrics,
        measurements=result.measurements,
        gates=[gate.as_dict() for gate in result.gates],
        timings=frame.clock,
    )


def seed_everything(seed: int) -> None:
    """Seed before the model is built: a fresh adapter or head is random, and trainers seed only after that."""
    from transformers import set_seed

    set_seed(seed)


def drop_checkpoints(recipe: Any, output: Path) -> None:
    """Remove what only `--resume` needs, unless the recipe asked for checkpoints itself."""
    if not {"save_strategy", "save_steps", "save_total_limit"} & set(recipe.trainer):
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)


def _refuse_again(record: dict[str, Any]) -> dict[str, Any]:
    """Pass a run through whose gates were all reached; another stays refused, however often it is asked for."""
    against = [gate for gate in record["gates"] if stands_against(gate, record)]
    failed = [gate["text"] for gate in against]
    if record.get("verdict") == "REFUSED":
        told = ["the adapter is kept for study; what would have to change:", *remedies(against)]
        raise GateRefused(f"{record['name']} is REFUSED: " + "; ".join(failed), hint="\n  - ".join(told))
    if failed:
        raise GateRefused(
            f"{record['name']} is done, and its gates say no: " + "; ".join(failed),
            hint="the model is kept; train it better, or change `gates:` in the recipe",
        )
    return record


def left_out(inputs: Inputs) -> list[str]:
    """What a mixture's weights and faults leave out, and what was read in another shape, in words."""
    told = []
    for role, rows in inputs.data.items():
        for source, used, of in rows.shares:
            if used < of:
                told.append(f"data {role}: {used} of {of} rows of {source}, by its weight")
        for shape, count in rows.shapes:
            told.append(f"data {role}: {count} rows of {rows.source} read as {shape}")
        if rows.skipped:
            first = rows.skipped[0].fault
            told.append(f"data {role}: {len(rows.skipped)} rows skipped, the first {first}")
    return told


def quiet_libraries() -> None:
    """No telemetry and no progress bars but ours; said here, before the first heavy import."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The fused 4-bit CPU kernels would be fetched from a hub; bitsandbytes' own are used instead.
    os.environ.setdefault("USE_HUB_KERNELS", "NO")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports those kernels as missing


def choose_machine(recipe: Any) -> Machine:
    """The machine for a recipe, with reasons."""
    return machines.choose(recipe.model.dtype, recipe.model.quantization)


def parent_hash(source: models.Source) -> str:
    """What identifies a parent: the run's hash, or the path or id of a model that is no run."""
    return lineage.run_hash(source.run) if source.run else f"model:{source.base}"


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes; on a GPU the largest allocation there."""
    import resource
    import sys

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def measurement(name: str, **figures: Any) -> dict[str, Any]:
    """One line of the closing table: `unit, n, before, after, change (mean, low, high), better, note`."""
    blank = {
        "unit": "",
        "n": None,
        "before": None,
        "after": None,
        "change": None,
        "better": None,
        "note": None,
    }
    unknown = set(figures) - set(blank)
    if unknown:
        raise ValueError(f"a measurement has no {sorted(unknown)}")
    return {"name": name, **blank, **figures}


def metrics_writer(frame: Frame) -> MetricsWriter:
    """The writer of every logged step of this run."""
    return MetricsWriter(frame.folder / "metrics.jsonl")


def prompt_of(row: dict[str, Any]) -> Any:
    """The prompt of a demonstration: everything before the last answer."""
    return row["messages"][:-1] if "messages" in row else row["prompt"]
