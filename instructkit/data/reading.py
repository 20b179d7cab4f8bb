"""Reading one source after another: every row renamed, brought into our shape, checked, and kept or refused."""

from __future__ import annotations

import bisect
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from instructkit.data.checks import Checker, form_told
from instructkit.data.ours import as_learned, ours
from instructkit.data.readers import file_of, read_source
from instructkit.data.records import Row, unread
from instructkit.data.scales import Scale
from instructkit.data.shapes import as_messages
from instructkit.data.table import Table
from instructkit.data.thumbs import is_ulid
from instructkit.data.turns import fields_beside
from instructkit.errors import Fault, Faults, InputError

_SHOWN_SOURCES = 4  # of those that differ


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


class Reading:
    """
    Rows of one source after another, checked as they are read; what is good goes into a table.

    Args:
        kind: what the rows are for.
        columns: other names of fields, as `{found: wanted}`.
        skip_faults: keep rows with faults apart, with their reasons, instead of refusing all.
    """

    def __init__(self, kind: str, columns: dict[str, str], *, skip_faults: bool) -> None:
        self.table, self.shapes, self.skipped = Table(), Counter(), []
        self.columns, self.skip_faults = columns, skip_faults
        self._checker, self._keys = Checker(kind), set()
        self._starts: list[int] = []  # where each source begins among the good rows
        self._order = array("Q")  # of each good row, which it is among all
        self._seen, self._faults = 0, Faults()
        self._margins = False  # whether any good comparison has one
        self._forms_of: dict[str, set[tuple[str, ...]]] = {}  # by file, the shapes of its good rows
        self._scales: dict[str, Scale] = {}  # by file
        self._unread: dict[
            tuple[str, ...], Counter[str]
        ] = {}  # by form, how many rows have a column that nothing reads
        self.beside: Counter[str] = Counter()  # the same of messages' fields, which some templates read

    def read(self, part: Part, limit: int | None) -> None:
        """
        Read a source to its end, or so many rows; where faults are skipped, so many good ones.

        Raises:
            InputError: when there is no such source, or it is empty.
        """
        self._starts.append(len(self.table))
        before = self._seen
        for raw, place in read_source(part.source, split=part.split, config=part.config):
            self._take(raw, place)
            self._seen += 1
            if limit is not None and limit <= (len(self.table) if self.skip_faults else self._seen):
                break
        if self._seen == before:
            raise InputError(
                f"{part.source} holds no rows", hint="check the file; each line of a .jsonl is one row"
            )

    def _take(self, raw: Row | Fault, place: str) -> None:
        self._keys.update(() if isinstance(raw, Fault) else raw)
        row, _ = ours(raw, place, self.columns, self._checker.kind, self.shapes)
        faults = [row] if isinstance(row, Fault) else self._checker.faults(row, place)
        if self._checker.kind == "feedback" and not isinstance(row, Fault):
            scale = self._scales.setdefault(file_of(place), Scale())
            scale.add(row.get("rating"), kept=is_ulid(row.get("id")))
        if faults:
            self._refuse(self._seen, faults)
            if self.skip_faults:
                self.skipped.append(Skipped(faults[0], raw))
            return
        self.table.append((as_learned(row) if self._checker.kind == "sft" else row, place))
        self._order.append(self._seen)
        self._margins |= self._checker.kind == "preference" and row.get("margin") is not None
        left = self._unread.setdefault(self._checker.form, Counter())
        left.update(sorted(unread(row, self._checker.kind)))
        self.beside.update(sorted(fields_beside(row)))
        self._forms_of.setdefault(file_of(place), set()).add(self._checker.form)

    @property
    def unread(self) -> Counter[str]:
        """Columns that nothing reads, and how many of the rows that are kept have each."""
        strange = self._checker.strange_forms()
        return sum((found for form, found in self._unread.items() if form not in strange), Counter())

    def _refuse(self, i: int, faults: list[Fault]) -> None:
        for fault in faults:
            self._faults.add(fault, i)

    def refuse_columns_of_no_row(self, source: str) -> None:
        """
        Find names in `columns` that no row has.

        Raises:
            InputError: naming them.
        """
        if self._keys and (missing := [name for name in self.columns if name not in self._keys]):
            raise InputError(
                f"{source}: `columns` renames `{'`, `'.join(missing)}`, which no row has",
                hint=f"the rows have {', '.join(sorted(self._keys))}; `columns` is written `found: wanted`",
            )

    def sound(self, parts: list[Part]) -> list[Sequence[int]]:
        """
        The good rows of each source, by their places in the table.

        Raises:
            InputError: when sources of one shape each differ, and cannot be brought into one; when some rows have margins.
            DataError: for faults, those of the whole in the order of the rows; with `skip_faults`, when none is left.
        """
        self._bring_together()
        self._read_thumbs()
        strangers = self._strangers()
        ends = [*self._starts[1:], len(self.table)]
        kept: list[Sequence[int]] = [range(*ends_) for ends_ in zip(self._starts, ends, strict=True)]
        if strangers:
            kept = [array("Q", (i for i in part if i not in strangers)) for part in kept]
        if not self._faults.total:
            self._refuse_some_margins(kept, parts)
            return kept
        other = next((scale.error(file) for file, scale in self._scales.items() if scale.is_another), None)
        if not self.skip_faults:
            raise self._faults.error(other and other.hint)
        if other:  # what is left is within our scale by chance
            raise other
        if not all(kept):
            hint = "no row is left; `on_fault: skip` needs some without faults"
            raise self._faults.error(hint)
        self._refuse_some_margins(kept, parts)
        if strangers:
            self._skip(strangers, parts)
        return kept

    def by_source(self, chosen: Iterable[int]) -> list[int]:
        """How many of these good rows are of each source."""
        found = Counter(map(self._source_of, chosen))
        return [found[i] for i in range(len(self._starts))]

    def _source_of(self, i: int) -> int:
        """Return the number of the source that a good row is of."""
        return bisect.bisect_right(self._starts, i) - 1

    def _refuse_some_margins(self, kept: list[Sequence[int]], parts: list[Part]) -> None:
        """A trainer reads margins of all rows or of none; which of the two would depend on the order of the file."""
        if not self._margins:
            return
        count = sum(map(len, kept))
        without = [i for part in kept for i in part if self.table[i][0].get("margin") is None]
        if 0 < len(without) < count:
            name, first = " + ".join(part.source for part in parts), self.table[without[0]][1]
            raise InputError(
                f"{name}: {count - len(without)} of {count} comparisons have a `margin`; {first} has none",
                hint="give all of them one, or none (`columns: {margin: unused}`): a trainer reads margins of all rows or none",
            )

    def _bring_together(self) -> None:
        """
        Where each file is of one shape and the files differ, all rows become messages.

        Where they cannot, and there are faults to be told or rows to be left out, rows of another shape are among these.
        """
        kind, forms = self._checker.kind, self._checker.forms
        if len(forms) < 2 or any(len(found) > 1 for found in self._forms_of.values()):
            return
        whole = ("`messages` as messages",) in forms
        table, checker, changed = Table(), Checker(kind), 0
        for i in range(len(self.table)):
            row, place = self.table[i]
            made = as_messages(row, kind, whole=whole)
            if made is None or checker.faults(made, place):
                self._differ()
                return
            changed += made is not row
            table.append((made, place))
        if len(checker.forms) > 1:
            self._differ()
            return
        self.table, self._checker = table, checker
        self.shapes["messages, as the other sources are"] += changed

    def _read_thumbs(self) -> None:
        """Turn ratings of 0 into -1 in the files whose ratings are thumbs as 1 and 0."""
        thumbs = {file for file, scale in self._scales.items() if scale.is_thumbs}
        if not thumbs:
            return
        table, changed = Table(), 0
        for i in range(len(self.table)):
            row, place = self.table[i]
            down = row.get("rating") == 0 and file_of(place) in thumbs
            changed += down
            table.append(({**row, "rating": -1.0} if down else row, place))
        self.table = table
        self.shapes["thumbs down, a rating of 0 among 1 and 0"] += changed

    def _differ(self) -> None:
        if self.skip_faults or self._faults.total:
            return
        told = [f"{name} has {form_told(next(iter(found)))}" for name, found in self._forms_of.items()]
        more = f"; and {len(told) - _SHOWN_SOURCES} more" if len(told) > _SHOWN_SOURCES else ""
        raise InputError(
            f"the sources differ in shape: {'; '.join(told[:_SHOWN_SOURCES])}{more}",
            hint="bring them into one shape, or train on one after the other",
        )

    def _strangers(self) -> dict[int, Fault]:
        """Good rows of another form than most, which makes them bad ones."""
        found = {}
        for i, told in self._checker.strangers():
            found[i] = Fault(self.table[i][1], *told)
            self._faults.add(found[i], self._order[i])
        return found

    def _skip(self, strangers: dict[int, Fault], parts: list[Part]) -> None:
        """Keep these apart as they were found: their sources are read once more."""
        wanted: dict[str, list[Fault]] = {}
        for fault in strangers.values():
            wanted.setdefault(fault.where, []).append(fault)  # a source may be named twice
        for part in parts:
            for raw, place in read_source(part.source, split=part.split, config=part.config):
                if waiting := wanted.get(place):
                    self.skipped.append(Skipped(waiting.pop(), raw))
