"""A run: from a recipe to a complete run folder, whatever the stage trains."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from instructkit import machine as machines
from instructkit import processes
from instructkit.errors import GateRefused, InstructKitError, NothingNew
from instructkit.feedback.gates import stands_against
from instructkit.feedback.remedies import refusal
from instructkit.recipe.render import to_dict
from instructkit.runs import lineage
from instructkit.runs.metrics import write_rows
from instructkit.runs.reading import is_run, read_record
from instructkit.runs.record import RunFolder, read_run
from instructkit.stages import checkpoints, resuming
from instructkit.stages.base import (
    CHECKPOINTS,
    LOADING,
    Frame,
    Inputs,
    Reporter,
    Result,
    RunOptions,
    choose_machine,
    left_out,
    load_libraries,
    peak_memory,
    quiet_libraries,
    refuse_undecidable,
    refuse_unfit_parents,
    refuse_without_weights,
    seed_everything,
)
from instructkit.stages.contention import Contention

Collect, Train = Callable[..., Inputs], Callable[[Frame], Result]
Finish = Callable[[Any, Path, Callable[[str], None]], GateRefused | None]


def run(
    recipe: Any, options: RunOptions, reporter: Reporter, *, collect: Collect, train: Train, finish: Finish
) -> dict[str, Any]:
    """
    Carry out one stage: check everything that is cheap to check, then train, measure, save and decide.

    Args:
        collect: what reads data and parents of a recipe; of a run that is resumed it is also given what its `Inputs.begun` said.
        finish: what a stage does with its recipe and a complete run folder, calling `note` with what it did; it returns why
            what was decided did not come into force, else None. Done again it must change nothing, since a run that is there
            already may have been cut off before it.

    Returns:
        The run record; nothing in a process that joined another one's run.

    Raises:
        InputError: for what the user can mend, before anything is written.
        GateRefused: when the run is done and a gate says no, or what it decided did not come into force.
    """
    quiet_libraries()
    output = Path(recipe.run.output)
    try:
        with reporter.phase("reading the data"):
            inputs = resuming.collected(recipe, collect, resume=options.resume)
    except NothingNew as nothing:
        if not (options.if_changed and _stands(recipe, output)):
            raise
        reporter.note(f"{nothing}; nothing to do")
        return _closed(read_run(output), finish(recipe, output, reporter.note))
    refuse_unfit_parents(recipe, inputs.parents)
    refuse_without_weights(inputs.parents)
    with reporter.phase("hashing the parents"):
        parents = resuming.hashes(inputs)
    if options.if_changed:
        reason = lineage.unchanged(output, to_dict(recipe), resuming.fingerprints(inputs), parents)
        reporter.note(f"{output}: {reason or 'recipe, data and parents are unchanged; nothing to do'}")
        if reason is None:
            return _closed(read_run(output), finish(recipe, output, reporter.note))
    if not (options.anyway or options.resume):
        refuse_undecidable(recipe, *inputs.undecidable(recipe))
    try:
        _make(recipe, inputs, parents, options, reporter, train)
    finally:
        processes.part()
    if not processes.is_first():
        return {}
    overtaken = finish(recipe, output, reporter.note)
    reporter.finished()
    record = read_run(output)
    reporter.table(record)
    return _closed(record, overtaken)


def _stands(recipe: Any, output: Path) -> bool:
    """Whether a finished run of this very recipe lies at its place, whole."""
    if not is_run(output):
        return False
    was = read_record(output)
    data = {role: found.get("fingerprint") for role, found in was["data"].items()}
    parents = {role: found.get("hash") for role, found in was["parents"].items()}
    return lineage.unchanged(output, to_dict(recipe), data, parents) is None


def _closed(record: dict[str, Any], overtaken: GateRefused | None) -> dict[str, Any]:
    """Pass a run through that is in force or has nothing against it; another stays refused, however often it is asked for."""
    against = [gate for gate in record["gates"] if stands_against(gate, record)]
    if against:
        message, hint = refusal(record, against)
        raise GateRefused(message, hint=hint)
    if overtaken is not None:
        raise overtaken
    return record


def _make(
    recipe: Any,
    inputs: Inputs,
    parents: dict[str, str],
    options: RunOptions,
    reporter: Reporter,
    train: Train,
) -> None:
    """Claim the run's folder, and fill it."""
    output = Path(recipe.run.output)
    folder = RunFolder(output)
    overwrite = options.overwrite or (options.if_changed and not options.resume)
    if options.resume:
        lineage.refuse_other_inputs(output, resuming.fingerprints(inputs), parents)
    else:
        folder.check_free(overwrite=overwrite)
    contention = Contention(reporter.note)
    if processes.alone_against_the_wish():
        reporter.note(
            "warning: accelerate launch started one process: on CPUs it needs mpirun (--mpirun_hostfile) for several. "
            "Use torchrun --nproc-per-node N -m instructkit sft RECIPE"
        )
    with reporter.phase(LOADING, announced=True):
        load_libraries()
        machine = choose_machine(recipe)
    frame = Frame(recipe, inputs, machine, output, reporter, options.resume, contention=contention)
    frame.look_for_other_work("at the start")
    for reason in [*frame.machine.reasons, *left_out(inputs), *_altered(inputs, parents)]:
        reporter.note(reason)
    if frame.machine.on_cpu:
        machines.keep_freed_memory()
    _meet(frame)  # all have looked at the folder before one of them changes it
    if not processes.is_first():
        _meet(frame)  # the first holds the folder now
        seed_everything(frame.seed)
        train(frame)
        return
    folder.start(
        to_dict(recipe),
        stage=recipe.stage,
        command=options.command,
        overwrite=overwrite,
        resume=options.resume,
        refuse=lambda: checkpoints.refuse_none(output, recipe.stage),
    )
    with folder, _full_disk_in_words(output):
        _meet(frame)
        _carry_out(frame, folder, parents, train)


def _meet(frame: Frame) -> None:
    timeout = frame.recipe.trainer.get("ddp_timeout", 1800)  # transformers' own default
    processes.meet(on_cpu=frame.machine.on_cpu, timeout_seconds=timeout)


@contextlib.contextmanager
def _full_disk_in_words(output: Path) -> Iterator[None]:
    """What writes files says in many ways that there is no space left, and mostly not where."""
    try:
        yield
    except Exception as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise InstructKitError(
            f"{output}: the disk is full, so the run ended",
            hint="free some space, then go on with --resume if a checkpoint was written, or run it again with --overwrite",
        ) from error


def _altered(inputs: Inputs, parents: dict[str, str]) -> list[str]:
    """Which parents are runs whose files are not those that they wrote, in words."""
    return [
        f"warning: {source.name} is not what its run wrote: its model files were changed since, or damaged"
        for role, source in inputs.parents.items()
        if source.run and read_run(source.run).get("hash") != parents[role]
    ]


def _carry_out(frame: Frame, folder: RunFolder, parents: dict[str, str], train: Train) -> None:
    """Train, save and complete the record of a folder that is held."""
    recipe, inputs = frame.recipe, frame.inputs
    folder.update(
        hardware=machines.hardware(),
        choices=[*frame.machine.reasons, str(inputs.format)],
        data_format=inputs.format.name,
        data={role: rows.summary() for role, rows in inputs.data.items()},
        parents={role: {"path": s.name, "hash": parents[role]} for role, s in inputs.parents.items()},
        begun=inputs.begun(),
        processes=processes.count(),
        synthetic=any(rows.synthetic for rows in inputs.data.values()),
    )
    _keep_skipped(frame)
    seed_everything(frame.seed)
    result = train(frame)
    _keep_skipped(frame)  # a stage may have left out more, which only its model tells
    frame.timed("save", lambda: result.save(frame.folder), phase="saving the model")
    _drop_checkpoints(recipe, frame.folder)
    write_rows(frame.folder / "samples.jsonl", result.samples)
    frame.look_for_other_work("while measuring and saving")
    told = {"dropped": frame.dropped, "busy": frame.contention.as_dict() if frame.contention else None}
    folder.update(peak_memory_bytes=peak_memory(), **told, **result.details)
    with frame.reporter.phase("hashing the model files"):
        folder.complete(
            metrics=result.metrics,
            measurements=result.measurements,
            gates=[gate.as_dict() for gate in result.gates],
            timings=frame.clock,
        )


def _keep_skipped(frame: Frame) -> None:
    """Every row that was left out for a fault, with its reason."""
    found = [
        {"role": role, **row.as_dict()} for role, rows in frame.inputs.data.items() for row in rows.skipped
    ]
    if found:
        write_rows(frame.folder / "skipped.jsonl", found)


def _drop_checkpoints(recipe: Any, output: Path) -> None:
    """Remove what only `--resume` needs, unless the recipe asked for checkpoints itself."""
    if not {"save_strategy", "save_steps", "save_total_limit"} & set(recipe.trainer):
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
