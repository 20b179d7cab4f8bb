"""What a chain of updates says of its past: read, and nothing is written."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructkit.errors import InputError
from instructkit.feedback import history
from instructkit.feedback.standing import Standing, moves, standing
from instructkit.feedback.updates import folder_name, read_ids, refuse_changed
from instructkit.runs import chains
from instructkit.runs.chains import CHAINS, CURRENT, HISTORY, pointed
from instructkit.runs.lock import is_held


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
        return history.read(self.folder / HISTORY).entries

    def torn(self) -> bool:
        """Whether the last line of the history is unfinished, its writer having been killed."""
        return history.read(self.folder / HISTORY).torn and not is_held(self.folder)

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
        others = [Past(self.root, name) for name in chains.names(self.root)]
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
