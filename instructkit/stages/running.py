"""A run: from a recipe to a complete run folder, whatever the stage trains."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from instructkit import machine as machines
from instructkit import naming, processes
from instructkit.errors import GateRefused, InstructKitError, NothingNew, RunStopped
from instructkit.recipe.render import to_dict
from instructkit.runs import contents, lineage, temporary
from instructkit.runs.metrics import write_rows
from instructkit.runs.reading import is_run, read_record
from instructkit.runs.record import RunFolder, read_run
from instructkit.stages import checkpoints, closing, resuming
from instructkit.stages.base import (
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
from instructkit.stages.closing import Finish
from instructkit.stages.contention import watch
from instructkit.stages.stopping import Stop, Stopped

Collect, Train = Callable[..., Inputs], Callable[[Frame], Result]


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
        The run record; an empty one in other processes than the first.

    Raises:
        InputError: for what the user can mend, before anything is written.
        GateRefused: when the run is done and a gate says no, or what it decided did not come into force.
    """
    quiet_libraries()
    with Stop(recipe.run.max_minutes, reporter.note) as stop:
        try:
            return _run(recipe, options, reporter, stop, collect, train, finish)
        except Stopped as stopped:
            hint = _way_on(recipe, options, stepped=stop.stepped, timed_out=stop.timed_out)
            raise RunStopped(str(stopped), hint=hint, exit_code=stop.exit_code) from stopped
        finally:
            processes.part()


def _run(
    recipe: Any,
    options: RunOptions,
    reporter: Reporter,
    stop: Stop,
    collect: Collect,
    train: Train,
    finish: Finish,
) -> dict[str, Any]:
    output = Path(recipe.run.output)
    temporary.sweep()
    RunFolder(output).refuse_own_inputs(to_dict(recipe), recipe.source)
    is_done, overtaken = _repair(recipe, options, reporter, finish)
    if is_done:
        return _closed(read_run(output), overtaken) if processes.is_first() else {}
    try:
        with reporter.phase("reading the data"):
            inputs = resuming.collected(recipe, collect, resume=options.resume)
    except NothingNew as nothing:
        if not (options.if_changed and _stands(recipe, output)):
            raise
        reporter.note(f"{nothing}; nothing to do")
        return _closed(read_run(output), closing.again(recipe, output, finish, reporter.note))
    refuse_unfit_parents(recipe, inputs.parents)
    refuse_without_weights(inputs.parents)
    with reporter.phase("hashing the parents"):
        identity = resuming.identity(recipe, inputs)
    if options.if_changed:
        reason = _by_the_first(recipe, lambda: lineage.unchanged(output, identity))
        reporter.note(f"{output}: {reason or 'recipe, data and parents are unchanged; nothing to do'}")
        if reason is None and not processes.is_first():
            return {}
        if reason is None:
            return _closed(read_run(output), closing.again(recipe, output, finish, reporter.note))
        _by_the_first(recipe, lambda: bool(closing.repair(output, recipe.stage, finish, reporter.note)))
    inconclusive, refuses = inputs.undecidable(recipe)
    refuse_undecidable(recipe, inconclusive, refuses and not (options.anyway or options.resume))
    for each in inconclusive:
        reporter.note(f"warning: cannot be decided on so little data: {each}")
    overtaken = _make(recipe, inputs, identity, options, reporter, stop, train, finish)
    if not processes.is_first():
        return {}
    reporter.finished()
    record = read_run(output)
    reporter.table(record)
    return _closed(record, overtaken)


def _repair(
    recipe: Any, options: RunOptions, reporter: Reporter, finish: Finish
) -> tuple[bool, GateRefused | None]:
    """
    Let the first process repair complete runs, before any process reads them.

    Returns:
        Whether that completed the run that is resumed, and what `closing.close` returned for it.
    """
    output, several = Path(recipe.run.output), processes.count() > 1
    # A repair can promote an update and so change what a recipe reads. So --if-changed compares before it repairs its own run.
    apart = output if options.if_changed else None
    raised = output if options.resume else None
    repaired: dict[Path, GateRefused | None] = {}

    def repair() -> bool:
        if RunFolder.put_back(output):
            reporter.note(
                f"{output}: the run that replaced it was killed before its first step; its checkpoints are kept"
            )
        if several:
            naming.locate(recipe.model.name)  # only the first process can save the embedded model
        repaired.update(
            closing.repair(output, recipe.stage, finish, reporter.note, apart=apart, raised=raised)
        )
        return options.resume and output in repaired

    with reporter.phase("waiting for the other processes") if several else contextlib.nullcontext():
        return _by_the_first(recipe, repair), repaired.get(output)


def _way_on(recipe: Any, options: RunOptions, *, stepped: bool, timed_out: bool = False) -> str:
    """
    Return the hint for a run that was stopped.

    Args:
        stepped: whether this process took a training step.
        timed_out: whether `run.max_minutes` stopped it.
    """
    output = Path(recipe.run.output)
    resumable = checkpoints.resumable(output, recipe.stage)
    if not stepped:
        if timed_out:
            return (
                f"raise run.max_minutes: it was over before the first step (it is {recipe.run.max_minutes:g})"
            )
        kept = "the earlier checkpoint is kept" if options.resume and resumable else "no training was lost"
        return f"{kept}; run the same command again"
    if is_run(output) and read_record(output)["status"] == "done":
        return f"the run is complete; `instructkit runs show {output}` prints it"
    if not resumable:
        return "no checkpoint was written; start again with --overwrite"
    instead = " in place of --overwrite" if options.overwrite else ""
    return f"a checkpoint was written; give the same command with --resume{instead} to continue"


def _stands(recipe: Any, output: Path) -> bool:
    """Whether a finished run of this very recipe lies at its place, whole."""
    if not is_run(output):
        return False
    was = read_record(output)
    data = {role: found.get("fingerprint") for role, found in was["data"].items()}
    parents = {role: found.get("hash") for role, found in was["parents"].items()}
    sources = was.get("sources") or {}
    return lineage.unchanged(output, lineage.RunIdentity(to_dict(recipe), data, parents, sources)) is None


def _closed(record: dict[str, Any], overtaken: GateRefused | None) -> dict[str, Any]:
    """Pass a run through that is in force or has nothing against it; another stays refused, however often it is asked for."""
    if error := closing.refused(record, overtaken):
        raise error
    return record


def _make(
    recipe: Any,
    inputs: Inputs,
    identity: lineage.RunIdentity,
    options: RunOptions,
    reporter: Reporter,
    stop: Stop,
    train: Train,
    finish: Finish,
) -> GateRefused | None:
    """Claim the folder of the run, fill it and close the run. Return the error of an update that is not promoted."""
    output = Path(recipe.run.output)
    folder = RunFolder(output)
    overwrite = options.overwrite or (options.if_changed and not options.resume)
    if options.resume:
        lineage.refuse_other_inputs(output, identity)
    else:
        folder.check_free(overwrite=overwrite)
    if processes.alone_against_the_wish():
        reporter.note(
            "warning: accelerate launch started one process. On CPUs it needs mpirun (--mpirun_hostfile) for several. "
            "Use torchrun --nproc-per-node N -m instructkit sft RECIPE"
        )
    with reporter.phase(LOADING, announced=True):
        load_libraries()
        machine = choose_machine(recipe)
    frame = Frame(
        recipe, inputs, machine, output, reporter, options.resume, stop, contention=watch(reporter.note)
    )
    frame.look_for_other_work("at the start")
    for reason in [*frame.machine.reasons, *left_out(inputs), *_altered(inputs, identity.parents)]:
        reporter.note(reason)
    if frame.machine.on_cpu:
        machines.keep_freed_memory()
    _meet(frame)  # all processes have read the folder before the first one changes it
    if not processes.is_first():
        _meet(frame)  # the first holds the folder now
        seed_everything(frame.seed)
        train(frame)
        return None
    folder.start(
        to_dict(recipe),
        stage=recipe.stage,
        command=options.command,
        overwrite=overwrite,
        resume=options.resume,
        refuse=lambda: checkpoints.refuse_none(output, recipe.stage),
        source=recipe.source,
    )
    stop.on_first_step = folder.drop_replaced_checkpoints
    with folder, _full_disk_in_words(output), _nothing_left_before_a_step(frame, folder):
        _meet(frame)
        result = _carry_out(frame, folder, identity, train)
        with stop.deferred():  # what remains takes a moment
            _complete(frame, folder, result)
            return closing.close(recipe, folder, finish, reporter.note)


@contextlib.contextmanager
def _nothing_left_before_a_step(frame: Frame, folder: RunFolder) -> Iterator[None]:
    """Remove the folder of a new run that ends before its first step, and put back what it replaced."""
    try:
        yield
    except BaseException:
        began = frame.resume or frame.stop.stepped
        if not began and folder.record.get("status") == "running":
            folder.withdraw()
        raise


def _meet(frame: Frame) -> None:
    processes.meet(timeout_seconds=_timeout_seconds(frame.recipe))


def _by_the_first(recipe: Any, work: Callable[[], Any]) -> Any:
    """Let the first process alone change folders and decide, so that all processes take the same way."""
    return processes.by_the_first(work, timeout_seconds=_timeout_seconds(recipe))


def _timeout_seconds(recipe: Any) -> float:
    return recipe.trainer.get("ddp_timeout", 1800)  # transformers' own default


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


def _carry_out(frame: Frame, folder: RunFolder, identity: lineage.RunIdentity, train: Train) -> Result:
    """Train and save in a folder that is held."""
    inputs = frame.inputs
    folder.update(
        hardware=machines.hardware(),
        choices=[*frame.machine.reasons, str(inputs.format)],
        data_format=inputs.format.name,
        **identity.as_record(
            {role: rows.summary() for role, rows in inputs.data.items()},
            {role: lineage.place_of(s.name, folder.path) for role, s in inputs.parents.items()},
        ),
        begun=inputs.begun(),
        processes=processes.count(),
        synthetic=any(rows.synthetic for rows in inputs.data.values()),
    )
    _keep_skipped(frame)
    seed_everything(frame.seed)
    result = train(frame)
    _keep_skipped(frame)  # a stage may have left out more, which only its model tells
    frame.timed("save", lambda: _save(result, folder), phase="saving the model")
    write_rows(frame.folder / "samples.jsonl", result.samples)
    frame.look_for_other_work("while measuring and saving")
    return result


def _save(result: Result, folder: RunFolder) -> None:
    """Write the model to a folder of its own and move it into place when it is whole."""
    saving = folder.path / contents.SAVING_FOLDER
    saving.mkdir(exist_ok=True)
    result.save(saving)
    contents.put_in_place(folder.path, lambda files: folder.update(files=files))


def _complete(frame: Frame, folder: RunFolder, result: Result) -> None:
    """Complete the record."""
    noted = {"dropped": frame.dropped, "busy": frame.contention.as_dict() if frame.contention else None}
    folder.update(peak_memory_bytes=peak_memory(), **noted, **result.details)
    with frame.reporter.phase("hashing the model files"):
        folder.complete(
            metrics=result.metrics,
            measurements=result.measurements,
            gates=[gate.as_dict() for gate in result.gates],
            timings=frame.clock,
            closing=True,
        )


def _keep_skipped(frame: Frame) -> None:
    """Every row that was left out for a fault, with its reason."""
    found = [
        {"role": role, **row.as_dict()} for role, rows in frame.inputs.data.items() for row in rows.skipped
    ]
    if found:
        write_rows(frame.folder / "skipped.jsonl", found)
