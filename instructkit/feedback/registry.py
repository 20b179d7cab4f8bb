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
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructkit.errors import InputError
from instructkit.feedback import history
from instructkit.feedback.events import now
from instructkit.feedback.standing import Standing, moves, standing
from instructkit.feedback.updates import (
    ROLES,
    Update,
    copy_model,
    folder_name,
    forced_past,
    read_ids,
    write_ids,
)
from instructkit.runs.chains import CHAINS, CURRENT, HISTORY, point, pointed
from instructkit.runs.lock import FolderLock, is_held
from instructkit.runs.reading import is_run

__all__ = ["Chain", "Update", "user"]

WAIT_SECONDS = 30.0  # for another writer
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Chain:
    """One chain of updates on disk: its folder is `root/chains/name`, made by the first `record`."""

    root: Path
    name: str

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

    @property
    def folder(self) -> Path:
        """Where the chain lies."""
        return self.root / CHAINS / self.name

    def entries(self) -> list[dict[str, Any]]:
        """
        The history, oldest first: updates, promotions, rollbacks, and moves that were abandoned.

        Raises:
            InputError: when it was changed or is damaged; a torn last line is left out, and `torn` says so.
        """
        return history.read(self.folder / HISTORY).entries

    def torn(self) -> bool:
        """Whether the last line of the history is unfinished, its writer having been killed."""
        return history.read(self.folder / HISTORY).torn and not is_held(self.folder)

    def current(self) -> Path | None:
        """
        The folder of the adapter in force; None where it is the parent itself.

        Raises:
            InputError: when `current` was moved by hand to what the history does not say.
        """
        found = self.standing()
        if found.astray is not None:
            says = folder_name(found.current) if found.current else "nothing"
            raise InputError(
                f"{self.folder / CURRENT} points to {found.astray or 'nothing'}, and the history says {says}",
                hint=f"`instructkit runs rollback {self.name} --to {found.current} --why TEXT` sets it right",
            )
        return self.folder / folder_name(found.current) if found.current else None

    def standing(self) -> Standing:
        """What the history and `current` say together."""
        link = self.folder / CURRENT
        while True:
            pointer = pointed(link)
            found = standing(self.entries(), pointer)
            if pointed(link) == pointer:  # else another process has just moved it
                return found

    def updates(self) -> dict[int, dict[str, Any]]:
        """The entries of the updates, by number."""
        return {entry["number"]: entry for entry in self.entries() if entry["kind"] == "update"}

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

    def was_promoted(self, number: int) -> bool:
        """Whether an update was ever put in force; a promotion that was cut short has not happened."""
        entries = self.entries()
        undone = standing(entries, pointed(self.folder / CURRENT)).undone
        return any(
            (entry["kind"], entry["number"]) == ("promotion", number) and place != undone
            for place, entry in moves(entries)
        )

    def promote(self, number: int, *, why: str | None = None, forced_by: str | None = None) -> Path:
        """
        Put an update in force: copy its adapter into the chain, then move `current`.

        Args:
            why, forced_by: of an update that was refused, who promotes it all the same, and the reason; kept for ever.

        Returns:
            The folder of the copy.

        Raises:
            GateRefused: when the update was refused and nobody forces it.
            InputError: when there is no such update, it is in force, or its run is not what it was.
        """
        with self._writing():
            update, before = self._update(number), self.standing()
            forced = forced_past(update, why, forced_by)
            self._refuse_where_it_is(number, before)
            target = self.folder / folder_name(number)
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

    def looks(self, test_ids: Collection[str]) -> int:
        """
        Which look at these test events the next decision is: `1 + ceil(sum of the shares used in each earlier decision)`.

        Args:
            test_ids: of the events that it will be made on; none of them: the first look.
        """
        wanted = set(test_ids)
        used = sum(
            sum(id_ in wanted for id_ in self._read_ids(entry, "test")) for entry in self.updates().values()
        )
        return 1 - (-used // len(wanted)) if wanted else 1

    def since(self) -> str | None:
        """The last event that the adapter in force has seen, in its own update or else in one that it goes on from."""
        updates = self.updates()
        seen = (updates[number]["newest"] for number in self.line(self.standing().current))
        return next((id_ for id_ in seen if id_ is not None), None)

    def line(self, number: int) -> list[int]:
        """The numbers of the updates that are in an adapter: its own, and those that it goes on from, newest first."""
        updates, found = self.updates(), []
        while number:
            found.append(number)
            update = updates[number]
            same = [n for n in updates if n < number and updates[n]["run_hash"] == update["parent_hash"]]
            number = max(same, default=0) if update["continues"] is None else update["continues"]
        return found

    def trained_on(self, ids: Collection[str]) -> list[int]:
        """The numbers of the updates that trained on any of these events."""
        return list(self.count_trained(ids))

    def learned(self, number: int) -> Iterator[str]:
        """The ids of the events that an adapter has learned from, those of its latest update first."""
        updates = self.updates()
        for each in self.line(number):
            yield from self._read_ids(updates[each], "trained")

    def count_trained(self, ids: Collection[str]) -> dict[int, int]:
        """How many of these events each update trained on, by number; those that did on none are left out."""
        wanted = set(ids)
        counts = {
            number: sum(id_ in wanted for id_ in self._read_ids(entry, "trained"))
            for number, entry in self.updates().items()
        }
        return {number: count for number, count in counts.items() if count}

    def _ids(self, number: int, role: str) -> Path:
        return self.folder / f"{folder_name(number)}.{role}.gz"

    def _read_ids(self, entry: dict[str, Any], role: str) -> Iterator[str]:
        return read_ids(self._ids(entry["number"], role), entry[role])

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
        if to and not is_run(self.folder / folder_name(to)):
            raise InputError(
                f"{self.folder / folder_name(to)} is not there any more",
                hint="restore it, or choose another one with --to",
            )
        return to

    def _refuse_where_it_is(self, number: int, found: Standing) -> None:
        if number == found.current and found.astray is None:
            said = f"update {number}" if number else "the parent itself"
            raise InputError(
                f"{said} is in force in the chain {self.name} already", hint="nothing is to be done"
            )

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
