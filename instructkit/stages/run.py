"""A run: from a recipe to a complete run folder, whatever the stage trains."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from instructkit.errors import GateRefused, InstructKitError, NothingNew, RunStopped
from instructkit.models import machine as machines
from instructkit.models import source
from instructkit.recipe.render import to_dict
from instructkit.runs import contents, files, lineage, processes
from instructkit.runs.metrics import write_rows
from instructkit.runs.read import is_run, read_record
from instructkit.runs.record import RunFolder, read_run
from instructkit.stages import checkpoints, closing
from instructkit.stages.base import (
    LOADING,
    Frame,
    Inputs,
    InputsT,
    RecipeT,
    Reporter,
    Result,
    RunOptions,
    Stage,
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
from instructkit.stages.contention import watch
from instructkit.stages.identity import collected, identity_of
from instructkit.stages.stopping import Stop, Stopped


def run(
    stage: Stage[RecipeT, InputsT], recipe: RecipeT, options: RunOptions, reporter: Reporter
) -> dict[str, Any]:
    """
    Run one stage: check everything that is cheap to check, then train, measure, save and decide.

    Returns:
        The run record; an empty one in other processes than the first.

    Raises:
        InputError: for an error that the user can fix, before anything is written.
        GateRefused: when the run is complete and a gate failed, or its update was not promoted.
    """
    quiet_libraries()
    with Stop(recipe.run.max_minutes, reporter.note) as stop:
        started = _Run(stage, recipe, options, reporter, stop)
        try:
            return started.carry_out()
        except Stopped as stopped:
            raise RunStopped(
                str(stopped), hint=started.hint_after_stop(), exit_code=stop.exit_code
            ) from stopped
        finally:
            processes.part()


@dataclass
class _Run(Generic[RecipeT, InputsT]):
    """One start of a training command."""

    stage: Stage[RecipeT, InputsT]
    recipe: RecipeT
    options: RunOptions
    reporter: Reporter
    stop: Stop

    @property
    def output(self) -> Path:
        return Path(self.recipe.run.output)

    def carry_out(self) -> dict[str, Any]:
        """Return the record of the run that is made, or of the one that is complete already."""
        files.sweep_temporary()
        RunFolder(self.output).refuse_own_inputs(to_dict(self.recipe), self.recipe.source)
        is_done, overtaken = self._repair()
        if is_done:
            return _closed(read_run(self.output), overtaken) if processes.is_first() else {}
        try:
            with self.reporter.phase("reading the data"):
                inputs = collected(self.stage, self.recipe, resume=self.options.resume)
        except NothingNew as nothing:
            if not (self.options.if_changed and self._is_complete()):
                raise
            self.reporter.note(f"{nothing}; nothing to do")
            return self._closed_again()
        refuse_unfit_parents(self.recipe, inputs.parents)
        refuse_without_weights(inputs.parents)
        with self.reporter.phase("hashing the parents"):
            identity = identity_of(self.recipe, inputs)
        if self.options.if_changed and self._is_unchanged(identity):
            return self._closed_again() if processes.is_first() else {}
        self._refuse_undecidable(inputs)
        overtaken = self._make(inputs, identity)
        if not processes.is_first():
            return {}
        self.reporter.finished()
        record = read_run(self.output)
        self.reporter.table(record)
        return _closed(record, overtaken)

    def _repair(self) -> tuple[bool, GateRefused | None]:
        """
        Let the first process repair complete runs, before any process reads them.

        Returns:
            Whether that completed the run that is resumed, and what `closing.close` returned for it.
        """
        output, several = self.output, processes.count() > 1
        # A repair can promote an update, which changes what a recipe reads: --if-changed compares before it repairs its own run.
        apart = output if self.options.if_changed else None
        raised = output if self.options.resume else None
        repaired: dict[Path, GateRefused | None] = {}

        def repair() -> bool:
            if RunFolder.put_back(output):
                self.reporter.note(
                    f"{output}: the run that replaced it was killed before its first step; its checkpoints are kept"
                )
            if several:
                source.locate(self.recipe.model.name)  # only the first process can save the embedded model
            repaired.update(
                closing.repair(self.stage, output, self.reporter.note, apart=apart, raised=raised)
            )
            return self.options.resume and output in repaired

        waiting = (
            self.reporter.phase("waiting for the other processes") if several else contextlib.nullcontext()
        )
        with waiting:
            return self._by_the_first(repair), repaired.get(output)

    def _is_complete(self) -> bool:
        """Return whether a complete and intact run of this recipe is in the output folder."""
        if not is_run(self.output):
            return False
        record = read_record(self.output)
        data = {role: entry.get("fingerprint") for role, entry in record["data"].items()}
        parents = {role: entry.get("hash") for role, entry in record["parents"].items()}
        sources = record.get("sources") or {}
        identity = lineage.RunIdentity(to_dict(self.recipe), data, parents, sources)
        return lineage.unchanged(self.output, identity) is None

    def _is_unchanged(self, identity: lineage.RunIdentity) -> bool:
        """Report whether the run in the output folder has the same inputs; repair it where it has not."""
        reason = self._by_the_first(lambda: lineage.unchanged(self.output, identity))
        self.reporter.note(
            f"{self.output}: {reason or 'recipe, data and parents are unchanged; nothing to do'}"
        )
        if reason is not None:
            self._by_the_first(lambda: bool(closing.repair(self.stage, self.output, self.reporter.note)))
        return reason is None

    def _closed_again(self) -> dict[str, Any]:
        overtaken = closing.again(self.stage, self.recipe, self.output, self.reporter.note)
        return _closed(read_run(self.output), overtaken)

    def _refuse_undecidable(self, inputs: Inputs) -> None:
        inconclusive, refuses = inputs.undecidable(self.recipe)
        refuse_undecidable(
            self.recipe, inconclusive, refuses and not (self.options.anyway or self.options.resume)
        )
        for each in inconclusive:
            self.reporter.note(f"warning: cannot be decided on so little data: {each}")

    def _make(self, inputs: InputsT, identity: lineage.RunIdentity) -> GateRefused | None:
        """Claim the folder of the run, fill it and close the run. Return the error of an update that is not promoted."""
        options, recipe = self.options, self.recipe
        folder = RunFolder(self.output)
        overwrite = options.overwrite or (options.if_changed and not options.resume)
        if options.resume:
            lineage.refuse_other_inputs(self.output, identity)
        else:
            folder.check_free(overwrite=overwrite)
        frame = self._frame(inputs, identity)
        self._meet()  # all processes have read the folder before the first one changes it
        if not processes.is_first():
            self._meet()  # the first holds the folder now
            seed_everything(frame.seed)
            self.stage.train(frame)
            return None
        folder.start(
            to_dict(recipe),
            stage=recipe.stage,
            command=options.command,
            overwrite=overwrite,
            resume=options.resume,
            refuse=lambda: checkpoints.refuse_none(self.output, recipe.stage),
            source=recipe.source,
        )
        self.stop.on_first_step = folder.drop_replaced_checkpoints
        with folder, _full_disk_in_words(self.output), _nothing_left_before_a_step(frame, folder):
            self._meet()
            result = _carry_out(frame, folder, identity, self.stage)
            with self.stop.deferred():  # what remains takes a moment
                _complete(frame, folder, result)
                return closing.close(self.stage, recipe, folder, self.reporter.note)

    def _frame(self, inputs: InputsT, identity: lineage.RunIdentity) -> Frame[RecipeT, InputsT]:
        """Load the libraries, choose the machine and note every choice."""
        if processes.alone_against_the_wish():
            self.reporter.note(
                "warning: accelerate launch started one process. On CPUs it needs mpirun (--mpirun_hostfile) for several. "
                "Use torchrun --nproc-per-node N -m instructkit sft RECIPE"
            )
        with self.reporter.phase(LOADING, announced=True):
            load_libraries()
            machine = choose_machine(self.recipe)
        frame = Frame(
            self.recipe, inputs, machine, self.output, self.reporter, self.options.resume, self.stop,
            contention=watch(self.reporter.note),
        )  # fmt: skip
        frame.look_for_other_work("at the start")
        for reason in [*machine.reasons, *left_out(inputs), *_altered(inputs, identity.parents)]:
            self.reporter.note(reason)
        if machine.on_cpu:
            machines.keep_freed_memory()
        return frame

    def hint_after_stop(self) -> str:
        """Return the hint for a run that was stopped."""
        resumable = checkpoints.resumable(self.output, self.recipe.stage)
        if not self.stop.stepped:
            if self.stop.timed_out:
                return f"raise run.max_minutes: it was over before the first step (it is {self.recipe.run.max_minutes:g})"
            kept = self.options.resume and resumable
            return f"{'the earlier checkpoint is kept' if kept else 'no training was lost'}; run the same command again"
        if is_run(self.output) and read_record(self.output)["status"] == "done":
            return f"the run is complete; `instructkit runs show {self.output}` prints it"
        if not resumable:
            return "no checkpoint was written; start again with --overwrite"
        instead = " in place of --overwrite" if self.options.overwrite else ""
        return f"a checkpoint was written; give the same command with --resume{instead} to continue"

    def _meet(self) -> None:
        processes.meet(timeout_seconds=self._timeout_seconds)

    def _by_the_first(self, work: Callable[[], Any]) -> Any:
        """Let the first process alone change folders and decide, so that all processes take the same way."""
        return processes.by_the_first(work, timeout_seconds=self._timeout_seconds)

    @property
    def _timeout_seconds(self) -> float:
        return self.recipe.trainer.get("ddp_timeout", 1800)  # transformers' own default


def _closed(record: dict[str, Any], overtaken: GateRefused | None) -> dict[str, Any]:
    """Return the record of a run that passed its gates; raise the refusal of another, however often it is asked for."""
    if error := closing.refused(record, overtaken):
        raise error
    return record


@contextlib.contextmanager
def _nothing_left_before_a_step(frame: Frame[Any, Any], folder: RunFolder) -> Iterator[None]:
    """Remove the folder of a new run that ends before its first step, and put back what it replaced."""
    try:
        yield
    except BaseException:
        began = frame.resume or frame.stop.stepped
        if not began and folder.record.get("status") == "running":
            folder.withdraw()
        raise


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


def _carry_out(
    frame: Frame[Any, Any], folder: RunFolder, identity: lineage.RunIdentity, stage: Stage[Any, Any]
) -> Result:
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
    result = stage.train(frame)
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


def _complete(frame: Frame[Any, Any], folder: RunFolder, result: Result) -> None:
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


def _keep_skipped(frame: Frame[Any, Any]) -> None:
    """Every row that was left out for a fault, with its reason."""
    found = [
        {"role": role, **row.as_dict()} for role, rows in frame.inputs.data.items() for row in rows.skipped
    ]
    if found:
        write_rows(frame.folder / "skipped.jsonl", found)
