"""From a source, or a mixture of them, to checked rows that know where they stand."""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

from instructkit.data import table
from instructkit.data.readers import is_demo
from instructkit.data.reading import Part, Reading, Skipped
from instructkit.data.records import Row
from instructkit.data.turns import as_conversation
from instructkit.errors import InputError


@dataclass(frozen=True)
class Rows:
    """
    Checked rows, where each stands (`file:line`), and what identifies them.

    Attributes:
        fingerprint: a hash of the rows in their order.
        kind: what the rows are for: `sft`, `preference`, `prompt` or `feedback`.
        content: the same of the rows in any order.
        shares: of a mixture: each source, its rows used, its rows.
        shapes: shapes of other tools that were read as ours, and how many rows had each.
        skipped: rows with faults that were left out, where the recipe says so.
        unread: columns that hold something and that nothing reads, the most frequent first.
        beside: of messages the fields beside role and content, which a chat template reads only where it names them.
        rendered: whether texts were converted to messages, see `in_conversations`.
    """

    rows: Sequence[Row]
    places: Sequence[str]
    source: str
    fingerprint: str
    synthetic: bool = False
    shares: tuple[tuple[str, int, int], ...] = ()
    shapes: tuple[tuple[str, int], ...] = ()
    skipped: tuple[Skipped, ...] = ()
    unread: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    kind: str = "sft"
    rendered: bool = False

    @property
    def content(self) -> str:
        """The sum of the rows' own SHA-256 hashes, modulo 2 ** 256: the same in any order."""
        total = sum(int.from_bytes(hashlib.sha256(_canonical(row)).digest()) for row in self.rows)
        return f"{total % 2**256:064x}"

    def summary(self) -> dict[str, Any]:
        """What the run record keeps."""
        kept = {"source": self.source, "fingerprint": self.fingerprint, "content": self.content}
        kept |= {"rows": len(self.rows), "synthetic": self.synthetic}
        if self.shares:
            kept["shares"] = [{"source": source, "used": used, "of": of} for source, used, of in self.shares]
        if self.shapes:
            kept["shapes"] = dict(self.shapes)
        if self.unread:
            kept["unread"] = list(self.unread)
        if self.beside:
            kept["beside"] = list(self.beside)
        return kept | ({"skipped": len(self.skipped)} if self.skipped else {})

    def told_elsewhere(self) -> Rows:
        """The same rows without what is said of the source, where another side of it says so already."""
        return replace(self, shares=(), shapes=(), skipped=(), unread=(), beside=())

    def in_conversations(self) -> Rows:
        """Return the rows with texts as messages, for a chat template; the same rows when none changes."""
        if not any(as_conversation(row, self.kind) is not row for row in self.rows):
            return self
        rows = table.mapped(self.rows, lambda row: as_conversation(row, self.kind))
        return replace(self, rows=rows, fingerprint=fingerprint(rows), rendered=True)

    def pick(self, indices: Sequence[int]) -> Rows:
        """Some of the rows, in the order given."""
        rows, places = (table.pick(items, indices) for items in (self.rows, self.places))
        return replace(self, rows=rows, places=places, fingerprint=fingerprint(rows))


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
    reading = Reading(kind, columns or {}, skip_faults=skip_faults)
    first = limit if len(parts) == 1 and not shuffle else None
    for part in parts:
        reading.read(part, first)
    if every_column:
        reading.refuse_columns_of_no_row(parts[0].source)
    sound = reading.sound(parts)
    counts = _counts(parts, [len(rows) for rows in sound])
    chosen = _mixture(sound, counts, seed) if isinstance(source, list) else sound[0]
    if shuffle:
        chosen = array("Q", random.Random(seed).sample(chosen, len(chosen)))
    chosen = chosen[:limit]
    rows, places = (reading.table.column(chosen, itemgetter(i)) for i in (0, 1))
    used = reading.by_source(chosen) if len(parts) > 1 else [len(chosen)]
    shares = tuple((p.source, n, len(r)) for p, n, r in zip(parts, used, sound, strict=True))
    return Rows(
        rows,
        places,
        " + ".join(part.source for part in parts),
        fingerprint(rows),
        synthetic=any(is_demo(place.rpartition(":")[0]) for place in places),
        shares=shares if len(parts) > 1 else (),
        shapes=tuple(sorted(reading.shapes.items())),
        skipped=tuple(reading.skipped),
        unread=tuple(name for name, _ in reading.unread.most_common()),
        beside=tuple(name for name, _ in reading.beside.most_common()),
        kind=kind,
    )


def fingerprint(rows: Iterable[Row]) -> str:
    """SHA-256 of the rows in canonical JSON, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_canonical(row) + b"\n")
    return digest.hexdigest()


def _canonical(row: Row) -> bytes:
    return json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


def _counts(parts: list[Part], sizes: list[int]) -> list[int]:
    """Rows to take of each source: all of them without weights; by weight, the scarcest for its weight whole."""
    if all(part.weight is None for part in parts):
        return sizes
    weights = [1.0 if part.weight is None else part.weight for part in parts]
    unit = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    counts = [round(unit * weight) for weight in weights]
    if 0 in counts:
        raise InputError(
            f"{parts[counts.index(0)].source}: its weight leaves none of its rows", hint="raise its weight"
        )
    return counts


def _mixture(sound: list[Sequence[int]], counts: list[int], seed: int) -> Sequence[int]:
    """So many rows of each source, drawn and shuffled together."""
    rng, mixed = random.Random(seed), array("Q")
    for rows, count in zip(sound, counts, strict=True):
        mixed.extend(rng.sample(rows, count))
    rng.shuffle(mixed)
    return mixed
