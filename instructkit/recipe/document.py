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

    Neither document is changed; a `null` above switches off what stands below.
    """
    merged = Document(
        over.file,
        copy.deepcopy(base.values),
        dict(base.places),
        [*base.faults, *over.faults],
        base.spoiled | over.spoiled,
    )
    merged.places[()] = over.places.get((), f"{over.file}:1")
    _merge(merged, merged.values, over, over.values, ())
    return merged


def _merge(
    merged: Document, below: dict[str, Any], over: Document, above: dict[str, Any], place: Place
) -> None:
    for key, value in above.items():
        here = (*place, key)
        merged.places[here] = over.places[here]
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(merged, below[key], over, value, here)
            continue
        merged.forget(here)
        below[key] = copy.deepcopy(value)
        merged.places.update(
            {known: told for known, told in over.places.items() if known[: len(here)] == here}
        )


def dotted(place: Place) -> str:
    """A place as a user writes it: `section.key`."""
    return ".".join(str(part) for part in place)
