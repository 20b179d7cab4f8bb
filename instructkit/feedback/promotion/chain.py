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
from instructkit.feedback.promotion import update
from instructkit.feedback.promotion.update import (
    ROLES,
    Update,
    copy_model,
    folder_name,
    forced_past,
    read_ids,
    refuse_changed,
    write_ids,
)
from instructkit.feedback.store.events import now
from instructkit.runs import pointer
from instructkit.runs.lock import FolderLock, is_held
from instructkit.runs.pointer import CHAINS, CURRENT, HISTORY, point, pointed

MOVES = ("promotion", "rollback")


@dataclass(frozen=True)
class Standing:
    """
    How a chain stands.

    Attributes:
        stack: numbers of the adapters promoted one above the other; the last is in force, a rollback takes off what lies above.
        undone: the entry, counted from 1, of a move that was written down and not carried out; None when there is none.
        astray: what `current` points to (empty: nothing) where the history says something else; None when they agree.
    """

    stack: tuple[int, ...] = ()
    undone: int | None = None
    astray: str | None = None

    @property
    def current(self) -> int:
        """The number in force; 0 for the parent itself."""
        return self.stack[-1] if self.stack else 0


def standing(entries: list[dict[str, Any]], pointer: str | None) -> Standing:
    """
    How a chain stands.

    The last move counts when `current` is where it led. When `current` is still where it was before, the move was cut short.

    Args:
        entries: of the history.
        pointer: name of the folder that `current` points to; None where there is none.
    """
    stack = before = ()
    for number, entry in moves(entries):
        before, stack, last = stack, moved(stack, entry), number
    found = Standing(stack)
    if _means(pointer, found.current):
        return found
    cut_short = Standing(before, undone=last) if stack != before and last == len(entries) else None
    if cut_short and _means(pointer, cut_short.current):
        return cut_short
    return Standing(stack, astray=pointer or "")


def moves(entries: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Promotions and rollbacks that were not noted as abandoned, each with its number in the history."""
    abandoned = {entry["of"] for entry in entries if entry["kind"] == "abandoned"}
    return [
        (number, entry)
        for number, entry in enumerate(entries, start=1)
        if entry["kind"] in MOVES and number not in abandoned
    ]


def story(entries: list[dict[str, Any]], found: Standing) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """
    What became of each update, by number: `promoted`, `forced` and `rolled back`, each a list of the moves that did it.

    Args:
        entries: of the history.
        found: how the chain stands by it; a move that was not carried out did nothing.
    """
    told: dict[int, dict[str, list[dict[str, Any]]]] = {}
    stack: tuple[int, ...] = ()
    for number, entry in moves(entries):
        if number == found.undone:
            continue
        before, stack = stack, moved(stack, entry)
        said = {name: entry[name] for name in ("time", "by", "why")}
        if entry["kind"] == "promotion":
            _tell(told, entry["number"], "promoted", said)
            if entry["forced"]:
                _tell(told, entry["number"], "forced", said)
        for gone in dict.fromkeys(before[len(stack) :]):
            _tell(told, gone, "rolled back", said)
    return told


def _tell(
    told: dict[int, dict[str, list[dict[str, Any]]]], number: int, what: str, said: dict[str, Any]
) -> None:
    told.setdefault(number, {"promoted": [], "forced": [], "rolled back": []})[what].append(said)


def moved(stack: tuple[int, ...], entry: dict[str, Any]) -> tuple[int, ...]:
    """The stack after a move."""
    number = entry["number"]
    if entry["kind"] == "promotion":
        return (*stack, number)
    while stack and stack[-1] != number:
        stack = stack[:-1]
    return stack


def _means(pointer: str | None, number: int) -> bool:
    if pointer is None or number == 0:
        return pointer is None and number == 0
    return pointer.isdecimal() and int(pointer) == number


@dataclass(frozen=True)
class Past:
    """One chain of updates on disk: its folder is `root/chains/name`."""

    root: Path
    name: str

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
        return update.read(self.folder / HISTORY).entries

    def torn(self) -> bool:
        """Whether the last line of the history is unfinished, its writer having been killed."""
        return update.read(self.folder / HISTORY).torn and not is_held(self.folder)

    def current(self) -> Path | None:
        """
        The folder of the adapter in force; None where it is the parent itself.

        Raises:
            InputError: as `adapter` does.
        """
        return self.adapter(self.standing())

    def adapter(self, found: Standing) -> Path | None:
        """
        The folder of the adapter that is in force when the chain stands so; None where it is the parent itself.

        Raises:
            InputError: when `current` was moved by hand to what the history does not say, or that adapter is gone or damaged.
        """
        if found.astray is not None:
            says = folder_name(found.current) if found.current else "nothing"
            raise InputError(
                f"{self.folder / CURRENT} points to {found.astray or 'nothing'}, and the history says {says}",
                hint=f"`instructkit runs rollback {self.name} --to {found.current} --why TEXT` sets it right",
            )
        if not found.current:
            return None
        folder, update = self.folder / folder_name(found.current), self.updates()[found.current]
        again = (
            f"`instructkit runs promote {self.name} {found.current}` copies it from its run {update['run']}"
        )
        refuse_changed(folder, update["run_hash"], again=again)
        return folder

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

    def was_promoted(self, number: int) -> bool:
        """Whether an update was ever put in force; a promotion that was cut short has not happened."""
        undone = self.standing().undone
        return any(
            (entry["kind"], entry["number"]) == ("promotion", number) and place != undone
            for place, entry in moves(self.entries())
        )

    def looks(self, test_ids: Collection[str]) -> int:
        """
        Which look at these test events the next decision is: `1 + ceil(sum of the shares used in each earlier decision)`.

        Args:
            test_ids: of the events that it will be made on; none of them: the first look.

        Raises:
            InputError: when the history of a chain below the same root is damaged: its looks cannot be counted then.
        """
        wanted = set(test_ids)
        if not wanted:
            return 1
        # Over every chain below the root: another name for a chain does not make test events fresh.
        others = [Past(self.root, name) for name in pointer.names(self.root)]
        used = sum(
            sum(id_ in wanted for id_ in past._read_ids(entry, "test"))
            for past in others
            for entry in past.updates().values()
        )
        return 1 - (-used // len(wanted))

    def since(self, number: int) -> str | None:
        """The last event that an adapter has seen, in its own update or else in one that it goes on from."""
        updates = self.updates()
        seen = (updates[each]["newest"] for each in self.line(number))
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

    def learned(self, number: int) -> Iterator[str]:
        """The ids of the events that an adapter has learned from, those of its latest update first."""
        return self._in_line(number, "trained")

    def standing_ids(self, number: int) -> Iterator[str]:
        """Of what an adapter has learned, the ids of the events that stand for it, those of its latest update first."""
        return self._in_line(number, "standing")

    def count_trained(self, ids: Collection[str]) -> dict[int, int]:
        """How many of these events each adapter learned from, in its own update or one before it; those of none are left out."""
        wanted = set(ids)
        own = {
            number: wanted.intersection(self._read_ids(entry, "trained"))
            for number, entry in self.updates().items()
        }
        counts = {number: len(set().union(*(own[each] for each in self.line(number)))) for number in own}
        return {number: count for number, count in counts.items() if count}

    def _in_line(self, number: int, role: str) -> Iterator[str]:
        updates = self.updates()
        for each in self.line(number):
            yield from self._read_ids(updates[each], role)

    def _ids(self, number: int, role: str) -> Path:
        return self.folder / f"{folder_name(number)}.{role}.gz"

    def _read_ids(self, entry: dict[str, Any], role: str) -> Iterator[str]:
        """The ids of a role; none of one that histories did not keep when the update was entered."""
        return read_ids(self._ids(entry["number"], role), entry[role]) if role in entry else iter(())


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
        update.append(self.folder / HISTORY, {"kind": entry["kind"], "time": now(), **entry})

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
