"""A run folder and its `run.json`: written at the start, completed at the end or on failure."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from instructkit.errors import InputError
from instructkit.runs import contents
from instructkit.runs.files import sweep, write_json_atomic
from instructkit.runs.lineage import recipe_changes, recipe_hash, run_hash
from instructkit.runs.lock import FolderLock, is_held
from instructkit.runs.read import FORMAT, RECORD, is_run, read_record, read_run

PACKAGES = ("instructkit", "torch", "trl", "transformers", "peft", "datasets", "accelerate", "bitsandbytes")
GIT_SECONDS = 5


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Installed versions of Python and of what shapes a result, without importing any of it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any]:
    """`commit` and `dirty` of the working folder, where the recipes live; None outside git."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    changes = _git("status", "--porcelain")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def hardware() -> dict[str, Any]:
    """The machine as the standard library sees it; a stage adds what torch sees."""
    return {"machine": platform.machine(), "system": platform.system(), "cpu_count": os.cpu_count()}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=False,
            encoding="utf-8",
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


__all__ = ["RunFolder", "is_run", "read_run", "write_json_atomic"]

PREVIOUS, DISCARDED = ".previous", ".discarded"  # endings of hidden folders: of runs that are being replaced


def is_being_replaced(path: Path) -> bool:
    """Say whether a folder holds a run that was moved aside for a newer one."""
    return path.name.startswith(".") and path.name.endswith((PREVIOUS, DISCARDED))


class RunFolder:
    """
    The folder of one run, held by one process from `start` to the end of its `with` block.

    On an exception the record says `failed` and why, on Ctrl-C `interrupted`; the lock is always released.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.real = self.path.resolve()  # `path` may be a link, which stays one
        self.record: dict[str, Any] = {}
        self._lock = FolderLock(self.path)
        self._restorable: Path | None = None

    def start(
        self,
        recipe: dict[str, Any],
        *,
        stage: str,
        command: list[str],
        overwrite: bool = False,
        resume: bool = False,
        refuse: Callable[[], None] | None = None,
        source: str = "",
    ) -> None:
        """
        Take the folder and write its first record, with status `running`.

        Keep a finished run that is overwritten as `.NAME.previous` until the new one is finished. A bad
        recipe or a crash does not delete it. Keep an unfinished run that has a checkpoint as `.NAME.discarded`
        until the new one has taken a step. Files that no run wrote stay in the folder.

        Args:
            source: the recipe file.
            refuse: of a run that is resumed, what may still raise an `InputError` once the folder is held.

        Raises:
            InputError: when another process holds the folder, when it is not empty, when it holds something
                else than a run, or when there is nothing to resume. Then nothing was changed.
        """
        if overwrite and resume:
            raise InputError("--overwrite and --resume contradict each other", hint="leave one of them out")
        self.refuse_own_inputs(recipe, source)
        self._lock.acquire()
        try:
            fresh = self._first_record(recipe, stage, command)
            if resume:
                self._take_up(fresh, refuse)
            else:
                self._begin(fresh, overwrite)
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def opened(cls, path: str | Path) -> RunFolder:
        """
        Take the folder of a run that is there, to change its record.

        Raises:
            InputError: when another process holds it, or its record cannot be read.
        """
        folder = cls(path)
        folder._lock.acquire()
        try:
            folder.record = read_record(path)
        except BaseException:
            folder.release()
            raise
        return folder

    def update(self, **fields: Any) -> None:
        """Set fields of the record and write it."""
        self.record.update(fields)
        write_json_atomic(self.path / RECORD, self.record)

    def complete(
        self,
        *,
        metrics: dict[str, Any] | None = None,
        measurements: Iterable[dict[str, Any]] = (),
        gates: Iterable[dict[str, Any]] = (),
        timings: dict[str, float] | None = None,
        verdict: str | None = None,
        closing: bool = False,
    ) -> None:
        """
        Close the record with status `done`; call it last, because it takes the hash of the model files.

        The verdict is the one given, else the one set by `update`, else `done`.

        Args:
            closing: mark that closing steps follow; if the process is killed, the next start repeats them.
        """
        self.update(
            status="done",
            ended=now(),
            metrics=metrics or {},
            measurements=list(measurements),
            gates=list(gates),
            timings_seconds=timings or {},
            verdict=verdict or self.record.get("verdict") or "done",
            error=None,
            previous=None,
            closing=closing,
            hash=run_hash(self.path),
        )
        contents.discard(self._previous, self.real)
        self.drop_replaced_checkpoints()

    def fail(self, error_text: str) -> None:
        """Close the record with status `failed` and the reason."""
        self.update(status="failed", ended=now(), error=error_text)

    def interrupted(self, why: str = "") -> None:
        """Close the record with status `interrupted` and the reason."""
        error = why or "interrupted from the keyboard"
        self.update(status="interrupted", ended=now(), error=error)

    def withdraw(self) -> None:
        """Remove a run that ended before its first step, and put back the run that it should have replaced."""
        if self._restorable is None and contents.foreign(self.real):
            return
        if self._restorable is not None:
            contents.give_back(self.real, self._restorable)
        shutil.rmtree(self.real, ignore_errors=True)
        if self._restorable is not None:
            self._restorable.rename(self.real)
        self.record = {}

    def drop_replaced_checkpoints(self) -> None:
        """Delete the unfinished run that this one replaces; call it after the first step."""
        contents.give_back(self._discarded, self.real)
        (self._discarded / RECORD).unlink(missing_ok=True)  # a half-deleted run is not put back
        shutil.rmtree(self._discarded, ignore_errors=True)

    @classmethod
    def put_back(cls, path: str | Path) -> bool:
        """Put back an unfinished run if its replacement was killed before its first step; return whether it was."""
        folder = cls(path)
        if not is_run(folder._discarded) or is_held(folder.path):
            return False
        folder._lock.acquire()
        try:
            if folder.path.exists() and not (is_run(folder.path) and folder._took_no_step()):
                return False
            folder._restorable = folder._discarded
            folder.withdraw()
            return True
        finally:
            folder.release()

    def release(self) -> None:
        """Give the folder back; the `with` block does it."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close(error)
        except OSError:
            # A full disk must not hide the error that ended the run.
            if error is None:
                raise
        finally:
            self.release()

    def _close(self, error: BaseException | None) -> None:
        if self.record.get("status") != "running":
            return
        if isinstance(error, KeyboardInterrupt):
            self.interrupted(str(error))
        elif error is not None:
            self.fail(f"{type(error).__name__}: {error}")
        else:
            self.fail("the run ended without a result")

    @property
    def _previous(self) -> Path:
        return self.real.parent / f".{self.real.name}{PREVIOUS}"

    @property
    def _discarded(self) -> Path:
        return self.real.parent / f".{self.real.name}{DISCARDED}"

    def refuse_own_inputs(self, recipe: dict[str, Any], source: str = "") -> None:
        """
        Refuse a run whose folder holds what it reads; changes nothing.

        Raises:
            InputError: naming the keys and what they name.
        """
        if inside := contents.inputs_inside(recipe, source, self.path):
            named = ", ".join(f"{key} ({value})" for key, value in inside)
            raise InputError(
                f"run.output {self.path} contains inputs of the run: {named}",
                hint="give the run a folder of its own with run.output=FOLDER, or move these files out of it",
            )

    def _first_record(self, recipe: dict[str, Any], stage: str, command: list[str]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.path.name,
            "stage": stage,
            "status": "running",
            "verdict": None,
            "error": None,
            "command": list(command),
            "recipe": recipe,
            "recipe_hash": recipe_hash(recipe),
            "seed": (recipe.get("run") or {}).get("seed"),
            "versions": versions(),
            **git_state(),
            "hardware": hardware(),
            "started": now(),
            "ended": None,
            "data": {},
            "parents": {},
            "synthetic": False,
            "timings_seconds": {},
            "peak_memory_bytes": None,
            "metrics": {},
            "measurements": [],
            "gates": [],
            "previous": None,
            "closing": False,
            "files": None,
        }

    def _begin(self, fresh: dict[str, Any], overwrite: bool) -> None:
        aside = self._move_aside(overwrite)
        if self._previous.is_dir():
            fresh["previous"] = str(self._previous)
            self._restorable = self._previous
        try:
            self.real.mkdir(parents=True, exist_ok=True)
            self.record = fresh
            write_json_atomic(self.path / RECORD, fresh)
        except BaseException:
            if aside is not None:
                shutil.rmtree(self.real, ignore_errors=True)
                aside.rename(self.real)
            raise
        contents.give_back(self._previous, self.real)
        contents.give_back(self._discarded, self.real)
        if is_run(self._discarded) and self._has_checkpoint(self._discarded):
            self._restorable = self._discarded
        else:
            self.drop_replaced_checkpoints()

    def check_free(self, *, overwrite: bool) -> bool:
        """
        Say whether the folder is empty; changes nothing, so that a refusal costs the user no time.

        Raises:
            InputError: when it is not, and may not be replaced.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file, not a folder", hint="choose another run.output=FOLDER")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return True
        if not is_run(self.path):
            raise InputError(
                f"{self.path} is not empty and holds no run (no {RECORD}); it is left alone",
                hint="choose another folder with run.output=FOLDER",
            )
        status = read_run(self.path)["status"]
        if not overwrite and not self._holds_nothing(status):
            raise InputError(
                f"{self.path} already holds a run ({_in_words(status)})", hint=self._ways_on(status)
            )
        return False

    def _holds_nothing(self, status: str) -> bool:
        """Say whether a run ended before its first step."""
        return status in ("failed", "interrupted") and self._took_no_step()

    def _took_no_step(self) -> bool:
        """Say whether a run is not complete and has neither a checkpoint nor a logged step."""
        metrics = self.path / "metrics.jsonl"
        logged = metrics.is_file() and metrics.stat().st_size > 0
        done = read_record(self.path)["status"] == "done"
        return not (done or logged or self._has_checkpoint(self.path))

    @staticmethod
    def _has_checkpoint(folder: Path) -> bool:
        return any(folder.glob("checkpoints/**/checkpoint-*"))

    def _ways_on(self, status: str) -> str:
        other = "or choose another folder with run.output=FOLDER"
        if status == "running":
            return f"wait until it is done, {other}"
        begun = status != "done" and self._has_checkpoint(self.path)
        return f"{'go on with --resume, ' if begun else ''}replace it with --overwrite, {other}"

    def _move_aside(self, overwrite: bool) -> Path | None:
        """Rename what lies in the folder, if it may go; an unfinished run is deleted after the first step of the new one."""
        if self.check_free(overwrite=overwrite):
            return None
        finished = read_run(self.path)["status"] == "done"
        aside = self._previous if finished else self._discarded
        contents.discard(aside, self.real)
        self.real.rename(aside)
        return aside

    def unfinished(self, recipe: dict[str, Any], stage: str) -> dict[str, Any]:
        """
        The record of a run that can be gone on with: unfinished, of the same stage and recipe.

        Raises:
            InputError: when there is none. Nothing is changed.
        """
        if not is_run(self.path):
            raise InputError(f"{self.path} holds no run to resume", hint="leave out --resume to start one")
        old = read_record(self.path)
        if old["status"] == "done":
            raise InputError(
                f"{self.path} is finished; nothing to resume", hint="train it anew with --overwrite"
            )
        if old["stage"] != stage:
            raise InputError(f"{self.path} is a run of `{old['stage']}`, not of `{stage}`")
        changes = recipe_changes(old["recipe"], recipe)
        if changes:
            raise InputError(
                f"{self.path} was begun with another recipe: {', '.join(changes)} differ(s)",
                hint="resume with the recipe it was begun with, or start anew with --overwrite",
            )
        return old

    def _take_up(self, fresh: dict[str, Any], refuse: Callable[[], None] | None) -> None:
        """Go on with an unfinished run, its first start kept."""
        old = self.unfinished(fresh["recipe"], fresh["stage"])
        if refuse is not None:
            refuse()
        sweep(self.real)
        shutil.rmtree(self.real / contents.SAVING_FOLDER, ignore_errors=True)
        kept = {"started": old["started"], "previous": old.get("previous"), "files": old.get("files")}
        self.record = {**fresh, **kept, "resumed": [*old.get("resumed", []), fresh["started"]]}
        write_json_atomic(self.path / RECORD, self.record)


def _in_words(status: str) -> str:
    return {"done": "finished", "running": "still running"}.get(status, status)
