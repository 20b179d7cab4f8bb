"""
The registry of a chain of updates: what was made, what it was decided on, what is in force, and who decided otherwise.

Beside the runs, `ROOT/chains/NAME/` holds `updates.jsonl` (see `feedback.history`), the ids of events by update
(`001.trained.gz`, `001.test.gz`), the promoted adapters (`001/`, copies of their runs' models, all of them kept) and `current`, a
link to the one in force.

A move is written into the history first and done by one rename of `current`. When a process is killed between these two, the
move has not happened: the old adapter is in force, and the next writer notes that the move was abandoned.
"""

from __future__ import annotations

import contextlib
import getpass
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructkit.errors import InputError
from instructkit.feedback import history
from instructkit.feedback.events import now
from instructkit.feedback.past import Past
from instructkit.feedback.standing import Standing
from instructkit.feedback.updates import (
    ROLES,
    Update,
    copy_model,
    folder_name,
    forced_past,
    refuse_changed,
    write_ids,
)
from instructkit.runs.chains import CURRENT, HISTORY, point
from instructkit.runs.lock import FolderLock

__all__ = ["Chain", "Superseded", "Update", "user"]

WAIT_SECONDS = 30.0  # for another writer
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class Superseded(InputError):
    """What an update was measured against, or the level of its decision, is not what it was any more."""


class Chain(Past):
    """One chain of updates on disk, which can be written; the first `record` makes its folder."""

    @classmethod
    def at(cls, root: str | Path, name: str) -> Chain:
        """
        The chain of a name, whether it has updates yet or not.

        Args:
            root: where the runs lie.

        Raises:
            InputError: when the name cannot be that of a chain.
        """
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} cannot be the name of a chain",
                hint="use letters, digits, - _ and ., beginning with none of - and .; 100 at most",
            )
        return cls(Path(root), name)

    def record(self, update: Update) -> int:
        """
        Add an update to the history, whatever its verdict; one that is there already, by its `id`, stays as it is.

        Returns:
            Its number.

        Raises:
            InputError: when the history is damaged, or another process writes it all the time.
        """
        with self._writing():
            updates = self.updates()
            for number, entry in updates.items():
                if update.id and entry.get("id") == update.id:
                    return number
            number = max(updates, default=0) + 1
            looks = self.looks(update.test)
            files = {role: write_ids(self._ids(number, role), getattr(update, role)) for role in ROLES}
            said = {**update.as_entry(), "looks": looks, **files}
            self._append({"kind": "update", "number": number, "by": user(), **said})
            return number

    def promote(
        self,
        number: int,
        *,
        expected: int | None = None,
        why: str | None = None,
        forced_by: str | None = None,
    ) -> Path:
        """
        Put an update in force: copy its adapter into the chain, then move `current`.

        Of the one that is in force already, a copy that is gone is made again, which is no move.

        Args:
            expected: number of the adapter that must be in force still, 0 for the parent itself: the update was measured against
                it. No later look at the same test events may have come in between either. None: somebody promotes it by hand,
                and must force it where either is not so.
            why, forced_by: of an update that was refused or overtaken, who promotes it all the same, and the reason; kept for
                ever.

        Returns:
            The folder of the copy.

        Raises:
            GateRefused: when the update was refused or overtaken, and nobody forces it.
            Superseded: when something was expected, and another adapter is in force, or the test events were looked at
                meanwhile.
            InputError: when there is no such update, it is in force, or its run is not what it was.
        """
        with self._writing():
            update, before = self._update(number), self.standing()
            target = self.folder / folder_name(number)
            if number == before.current and self._restored(update, target):
                return target
            overtaken = self._overtaken(update, expected, before.current)
            if overtaken and expected is not None:
                told = f"`instructkit runs promote {self.name} {number} --force --why TEXT` puts it in force as it is"
                raise Superseded(overtaken, hint=f"run it again; or {told}")
            self._refuse_where_it_is(number, before)
            forced = forced_past(update, overtaken, why, forced_by)
            copy_model(update["run"], update["run_hash"], root=self.root, target=target)
            said = {"from": before.current, "forced": forced, "why": why}
            self._append({"kind": "promotion", "number": number, "by": forced_by or user(), **said})
            point(self.folder / CURRENT, target.name)
            return target

    def rollback(self, *, to: int | None = None, why: str) -> int:
        """
        Put an earlier adapter in force again; nothing is removed but what is in force changes at once.

        Args:
            to: its number, 0 for the parent itself; None for the one that was in force before the last promotion.

        Returns:
            The number that is in force now.

        Raises:
            InputError: when nothing is promoted, no reason is given, or `to` was not in force before.
        """
        if not why.strip():
            raise InputError("a rollback needs a reason", hint="give it with --why TEXT")
        with self._writing():
            before = self.standing()
            number = self._earlier(before, to)
            self._refuse_where_it_is(number, before)
            said = {"from": before.current, "why": why}
            self._append({"kind": "rollback", "number": number, "by": user(), **said})
            point(self.folder / CURRENT, folder_name(number) if number else None)
            return number

    def _append(self, entry: dict[str, Any]) -> None:
        history.append(self.folder / HISTORY, {"kind": entry["kind"], "time": now(), **entry})

    def _update(self, number: int) -> dict[str, Any]:
        updates = self.updates()
        if number not in updates:
            known = f"its updates are 1 to {max(updates)}" if updates else "it has none"
            raise InputError(
                f"the chain {self.name} has no update {number}",
                hint=f"{known}; `instructkit runs history {self.name}` lists them",
            )
        return updates[number]

    def _earlier(self, found: Standing, to: int | None) -> int:
        """The number that a rollback means."""
        if not found.stack and found.astray is None:
            raise InputError(
                f"the chain {self.name} has nothing to roll back: none of it is promoted",
                hint=f"`instructkit runs history {self.name}` shows its updates",
            )
        if to is None:
            to = found.stack[-2] if len(found.stack) > 1 else 0
        if to and to not in found.stack:
            raise InputError(
                f"update {to} of the chain {self.name} was not in force before what is now",
                hint=f"`instructkit runs promote {self.name} {to}` puts an update in force",
            )
        if to:
            again = f"choose another one with --to, or promote {to} again when it is in force no more"
            refuse_changed(self.folder / folder_name(to), self.updates()[to]["run_hash"], again=again)
        return to

    def _restored(self, update: dict[str, Any], target: Path) -> bool:
        """Make the copy of a promoted adapter again if it is gone, and say so; one that was changed is refused."""
        gone = not target.exists()
        copy_model(update["run"], update["run_hash"], root=self.root, target=target)
        return gone

    def _refuse_where_it_is(self, number: int, found: Standing) -> None:
        if number == found.current and found.astray is None:
            said = f"update {number}" if number else "the parent itself"
            raise InputError(
                f"{said} is in force in the chain {self.name} already", hint="nothing is to be done"
            )

    def _overtaken(self, update: dict[str, Any], expected: int | None, current: int) -> str | None:
        """
        What has happened since an update was decided, so that its decision holds no more; None where nothing has.

        Args:
            expected: the adapter that must be in force; None: the one that the update says it was measured against, unless it
                was in force itself before.
        """
        number, named = update["number"], lambda n: f"update {n}" if n else "the parent itself"
        if expected is None:
            if self.was_promoted(number):
                return None
            expected = update.get("in_force")
        if expected is not None and current != expected:
            return (
                f"update {number} of the chain {self.name} was measured against {named(expected)}, and {named(current)} is in "
                "force since"
            )
        if update.get("look") is not None and update["look"] < update["looks"]:
            return (
                f"update {number} was decided as look {update['look']} at its test events, and it was look {update['looks']}: "
                "another update was decided on them meanwhile"
            )
        return None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """The chain for one writer; a move that another one left undone is noted first."""
        lock = FolderLock(self.folder)
        _wait_for(lock)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if (undone := self.standing().undone) is not None:
                self._append({"kind": "abandoned", "of": undone, "by": user()})
            yield
        finally:
            lock.release()


def _wait_for(lock: FolderLock) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return lock.acquire()
        except InputError as error:
            if time.monotonic() >= until:
                raise InputError(error.message, hint="wait until it has ended, and try again") from error
            time.sleep(0.02)


def user() -> str:
    """Who this process runs for, as the system knows them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "unknown"
