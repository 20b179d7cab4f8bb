"""Values of a recipe that remember where they stand, and what is laid over them: another file, or the command line."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from instructkit.errors import Fault

Place = tuple[str | int, ...]


@dataclass
class Document:
    """Values, and where each key stands: `file:line`, or the override on the command line that set it."""

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Place, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    spoiled: set[Place] = field(default_factory=set)  # values that a fault has already spoken about
    incomplete: bool = (
        False  # a recipe that it extends could not be read, so that what is missing may stand there
    )

    def where(self, place: Place) -> str:
        """Where a value stands, or the nearest mapping around it that does."""
        while place and place not in self.places:
            place = place[:-1]
        return self.places.get(place, f"{self.file}:1")

    def spoil(self, place: Place, where: str, message: str, hint: str) -> None:
        """Note a fault of a value, after which nothing more is to be said about that value."""
        self.faults.append(Fault(where, message, hint))
        self.spoiled.add(place)

    def forget(self, place: Place) -> None:
        """Where a value and all within it stood."""
        for known in [known for known in self.places if known[: len(place)] == place]:
            del self.places[known]
        self.spoiled = {known for known in self.spoiled if known[: len(place)] != place}


def lay_over(base: Document, over: Document) -> Document:
    """
    One document above another: sections are merged key by key, and everything else, lists too, is replaced as a whole.

    Neither document is changed; a `null` above switches off what stands below. A fault that both have is told once.
    """
    replaced: set[Place] = set()
    values = copy.deepcopy(base.values)
    _merge(values, over.values, (), replaced)
    kept = {place: told for place, told in base.places.items() if not _is_within(place, replaced)}
    own = {place: told for place, told in over.places.items() if place in kept or _is_within(place, replaced)}
    spoiled = {place for place in base.spoiled if not _is_within(place, replaced)}
    return Document(
        over.file,
        values,
        {**kept, **own, (): over.places.get((), f"{over.file}:1")},
        list(dict.fromkeys([*base.faults, *over.faults])),
        spoiled | over.spoiled,
        base.incomplete or over.incomplete,
    )


def _merge(below: dict[str, Any], above: dict[str, Any], place: Place, replaced: set[Place]) -> None:
    """Lay values over others, and note the places of all that was replaced as a whole."""
    for key, value in above.items():
        here = (*place, key)
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(below[key], value, here, replaced)
            continue
        replaced.add(here)
        below[key] = copy.deepcopy(value)


def _is_within(place: Place, places: set[Place]) -> bool:
    """Whether a place is one of these, or within one."""
    return any(place[:i] in places for i in range(1, len(place) + 1))


def dotted(place: Place) -> str:
    """A place as a user writes it: `section.key`."""
    return ".".join(str(part) for part in place)
