"""From a source, or a mixture of them, to checked rows that know where they stand."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from instructkit.data.files import Read, numbered
from instructkit.data.readers import is_demo, read_source
from instructkit.data.records import Row, check_rows
from instructkit.data.shapes import in_our_shape
from instructkit.errors import DataError, Fault, InputError


class Part(NamedTuple):
    """One source of a mixture; a weight, split or config where the recipe gives one."""

    source: str
    weight: float | None = None
    split: str = "train"
    config: str | None = None

    @classmethod
    def of(cls, given: Any) -> Part:
        """From a name, a mapping, or a section of a recipe."""
        if isinstance(given, str):
            return cls(given)
        values = given if isinstance(given, dict) else vars(given)
        return cls(**values)


@dataclass(frozen=True)
class Skipped:
    """A row that was left out because of a fault, as it was found."""

    fault: Fault
    row: Row | Fault

    def as_dict(self) -> dict[str, Any]:
        """What `skipped.jsonl` keeps: the row, or the text that could not be read as one."""
        row = getattr(self.row, "found", None) if isinstance(self.row, Fault) else self.row
        return {"where": self.fault.where, "reason": self.fault.message, "row": row}


@dataclass(frozen=True)
class Rows:
    """
    Checked rows, where each stands (`file:line`), and what identifies them.

    Attributes:
        fingerprint: a hash of the rows in their order.
        content: the same of the rows in any order.
        shares: of a mixture: each source, its rows used, its rows.
        shapes: shapes of other tools that were read as ours, and how many rows had each.
        skipped: rows with faults that were left out, where the recipe says so.
    """

    rows: list[Row]
    places: list[str]
    source: str
    fingerprint: str
    synthetic: bool = False
    shares: tuple[tuple[str, int, int], ...] = ()
    shapes: tuple[tuple[str, int], ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def content(self) -> str:
        """SHA-256 of the rows in canonical JSON, whatever their order."""
        return hashlib.sha256(b"".join(sorted(_digest(row) for row in self.rows))).hexdigest()

    def summary(self) -> dict[str, Any]:
        """What the run record keeps."""
        kept = {"source": self.source, "fingerprint": self.fingerprint, "content": self.content}
        kept |= {"rows": len(self.rows), "synthetic": self.synthetic}
        if self.shares:
            kept["shares"] = [{"source": source, "used": used, "of": of} for source, used, of in self.shares]
        if self.shapes:
            kept["shapes"] = dict(self.shapes)
        return kept | ({"skipped": len(self.skipped)} if self.skipped else {})

    def pick(self, indices: list[int]) -> Rows:
        """Some of the rows, in the order given."""
        rows = [self.rows[i] for i in indices]
        return replace(
            self, rows=rows, places=[self.places[i] for i in indices], fingerprint=fingerprint(rows)
        )


def load_rows(
    source: str | list[Any],
    *,
    kind: str,
    columns: dict[str, str] | None = None,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    every_column: bool = True,
    skip_faults: bool = False,
) -> Rows:
    """
    Read and check rows.

    Args:
        source: what `read_source` takes, or a list of such, each with a weight where it is a mapping.
        kind: what the rows are for: `sft`, `preference`, `prompt` or `feedback`.
        columns: other names of fields, as `{found: wanted}`.
        limit: keep the first so many rows.
        shuffle: bring the rows into an order of chance first.
        seed: of that order, and of the choice of rows in a weighted mixture.
        every_column: refuse a name in `columns` that no row has.
        skip_faults: leave rows with faults out, and keep them with their reasons, instead of refusing all.

    Raises:
        InputError: when there is no such source, or it is empty.
        DataError: when rows are at fault; all of them are checked.
    """
    parts = [Part.of(item) for item in (source if isinstance(source, list) else [source])]
    first = limit if len(parts) == 1 and not shuffle and not skip_faults else None
    raw = [_rows_of(part, first) for part in parts]
    if every_column:
        _refuse_columns_of_no_row(columns or {}, raw, parts[0].source)
    shapes: Counter[str] = Counter()
    read = [[ours(row, place, columns or {}, kind, shapes) for row, place in part] for part in raw]
    read, skipped = _sound(read, raw, kind, skip_faults)
    counts = _counts(parts, read)
    chosen = _mixture(read, counts, seed) if isinstance(source, list) else read[0]
    if shuffle:
        chosen = random.Random(seed).sample(chosen, len(chosen))
    rows, places = [row for row, _ in chosen[:limit]], [place for _, place in chosen[:limit]]
    told = " + ".join(part.source for part in parts)
    shares = tuple((p.source, n, len(r)) for p, n, r in zip(parts, counts, read, strict=True))
    return Rows(
        rows,
        places,
        told,
        fingerprint(rows),
        synthetic=any(is_demo(place.rpartition(":")[0]) for place in places),
        shares=shares if len(parts) > 1 else (),
        shapes=tuple(sorted(shapes.items())),
        skipped=skipped,
    )


def fingerprint(rows: list[Row]) -> str:
    """SHA-256 of the rows in canonical JSON, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_canonical(row) + b"\n")
    return digest.hexdigest()


def _digest(row: Row) -> bytes:
    return hashlib.sha256(_canonical(row)).digest()


def _canonical(row: Row) -> bytes:
    return json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


def _rows_of(part: Part, limit: int | None) -> list[Read]:
    read = list(itertools.islice(read_source(part.source, split=part.split, config=part.config), limit))
    if not read:
        raise InputError(
            f"{part.source} holds no rows", hint="check the file; each line of a .jsonl is one row"
        )
    return read


def _refuse_columns_of_no_row(columns: dict[str, str], read: list[list[Read]], source: str) -> None:
    there = {key for part in read for row, _ in part if not isinstance(row, Fault) for key in row}
    if there and (missing := [name for name in columns if name not in there]):
        raise InputError(
            f"{source}: `columns` renames `{'`, `'.join(missing)}`, which no row has",
            hint=f"the rows have {', '.join(sorted(there))}; `columns` is written `found: wanted`",
        )


def ours(row: Row | Fault, place: str, columns: dict[str, str], kind: str, shapes: Counter[str]) -> Read:
    """A row under the names and in the shape that we use, its numbers as numbers; the shape that it had is counted."""
    if isinstance(row, Fault):
        return row, place
    try:
        found, shape = in_our_shape(numbered(_renamed(row, columns), place), kind)
    except ValueError as error:
        return Fault(place, str(error)), place
    if shape is not None:
        shapes[shape] += 1
    return found, place


def _sound(
    parts: list[list[Read]], raw: list[list[Read]], kind: str, skip_faults: bool
) -> tuple[list[list[Read]], tuple[Skipped, ...]]:
    """The rows without faults; those with faults are refused, all at once in the order of the file, or left out and kept."""
    read = [item for part in parts for item in part]
    faults = [row for row, _ in read if isinstance(row, Fault)]
    good = [(row, place) for row, place in read if not isinstance(row, Fault)]
    faults += check_rows([row for row, _ in good], kind, [place for _, place in good])
    if not faults:
        return parts, ()
    order = {place: i for i, (_, place) in enumerate(read)}
    faults.sort(key=lambda fault: order[fault.where])
    if not skip_faults:
        raise DataError(faults, len(faults))
    reasons: dict[str, Fault] = {}
    for fault in faults:
        reasons.setdefault(fault.where, fault)
    found = {place: row for part in raw for row, place in part}
    kept = [[(row, place) for row, place in part if place not in reasons] for part in parts]
    if not all(kept):
        raise DataError(
            faults, len(faults), hint="no row is left; `on_fault: skip` needs some without faults"
        )
    return kept, tuple(Skipped(fault, found[place]) for place, fault in reasons.items())


def _counts(parts: list[Part], read: list[list[Read]]) -> list[int]:
    """Rows to take of each source: all of them without weights; by weight, the scarcest for its weight whole."""
    if all(part.weight is None for part in parts):
        return [len(rows) for rows in read]
    weights = [1.0 if part.weight is None else part.weight for part in parts]
    unit = min(len(rows) / weight for rows, weight in zip(read, weights, strict=True))
    counts = [round(unit * weight) for weight in weights]
    if 0 in counts:
        raise InputError(
            f"{parts[counts.index(0)].source}: its weight leaves none of its rows", hint="raise its weight"
        )
    return counts


def _mixture(read: list[list[Read]], counts: list[int], seed: int) -> list[Read]:
    """So many rows of each source, drawn and shuffled together."""
    rng, mixed = random.Random(seed), []
    for rows, count in zip(read, counts, strict=True):
        mixed += rng.sample(rows, count)
    rng.shuffle(mixed)
    return mixed


def _renamed(row: Row, columns: dict[str, str]) -> Row:
    kept = {key: value for key, value in row.items() if key not in columns}
    return kept | {columns[key]: value for key, value in row.items() if key in columns}
