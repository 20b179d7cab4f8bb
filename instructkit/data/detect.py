"""What a file of rows can be used for: looked at whole, with the columns that would have to be renamed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from instructkit.data.checks import check_rows
from instructkit.data.lines import Read
from instructkit.data.ours import ours
from instructkit.data.readers import read_source
from instructkit.data.records import CONTEXT, SHAPES, SYNONYMS, WANTED, Row, into_alpaca, unread
from instructkit.errors import Fault, InputError

KINDS = (
    "preference",
    "feedback",
    "sft",
    "prompt",
)  # from the kind that asks most of a row to the one that asks least


@dataclass(frozen=True)
class Found:
    """
    What the rows of a source are.

    Attributes:
        kind: `preference`, `feedback`, `sft` or `prompt`.
        columns: renaming that makes them so, as `{found: wanted}`.
        rows, faults: all rows, and what is wrong with some of them.
        asks: whether the same rows, so renamed, are prompts as well.
        unread: columns that nothing reads, the most frequent first.
    """

    source: str
    kind: str
    columns: dict[str, str]
    rows: int
    faults: tuple[Fault, ...]
    asks: bool
    unread: tuple[str, ...] = ()

    @property
    def lost(self) -> list[str]:
        """Those of the unread columns that an answer may rest on."""
        return [name for name in self.unread if name in CONTEXT]


def detect(source: str, given: dict[str, str] | None = None) -> Found:
    """
    Look at every row of a source and tell what they are.

    Args:
        given: the user's meaning of columns, as `{column: field}`; other columns are still matched by name.

    Raises:
        InputError: when there are no rows, or they are of no known kind under any of the usual names.
    """
    read = list(read_source(source))
    rows = [(row, place) for row, place in read if not isinstance(row, Fault)]
    broken = [row for row, _ in read if isinstance(row, Fault)]
    if not rows and broken:
        many = f"; of its {len(broken)} rows none is sound" if broken[1:] else ""
        raise InputError(f"{broken[0].where}: {broken[0].message}{many}", hint=broken[0].hint)
    if not rows:
        raise InputError(f"{source} holds no rows", hint="give a file with rows in it")
    given = {name: field for name, field in (given or {}).items() if any(name in row for row, _ in rows)}
    best = next(filter(None, (_best(rows, kind, given) for kind in KINDS)), None)
    if best is None:
        fields = ", ".join(sorted({f"`{key}`" for row, _ in rows for key in row})) or "nothing"
        wanted = "; ".join(f"{kind}: {WANTED[kind]}" for kind in KINDS)
        raise InputError(f"{source}: the rows have {fields}, of no kind that is known", hint=wanted)
    kind, columns, faults = best
    asks = kind == "prompt" or not faults_of(rows, "prompt", columns)
    at_fault = {fault.where for fault in faults}
    left = unread_columns([(row, place) for row, place in rows if place not in at_fault], kind, columns)
    return Found(source, kind, columns, len(read), tuple(_in_order(read, [*broken, *faults])), asks, left)


def _in_order(read: list[Read], faults: list[Fault]) -> list[Fault]:
    """Faults as their rows stand in the source."""
    order = {place: i for i, (_, place) in enumerate(read)}
    return sorted(faults, key=lambda fault: order.get(fault.where, 0))


def fits(found: Found, columns: dict[str, str]) -> bool:
    """Whether another renaming makes as many rows of a source what they are."""
    rows = [(row, place) for row, place in read_source(found.source) if not isinstance(row, Fault)]
    return len(faults_of(rows, found.kind, columns)) <= len(faults_of(rows, found.kind, found.columns))


def _best(
    rows: list[tuple[Row, str]], kind: str, given: dict[str, str]
) -> tuple[str, dict[str, str], list[Fault]] | None:
    """The renaming that makes most rows ones of a kind, and reads most of them; None when fewer than half of them are."""
    tried = [(columns, faults_of(rows, kind, columns)) for columns in (given, *_renamings(rows, kind, given))]
    fewest = min(len(faults) for _, faults in tried)
    best = [each for each in tried if len(each[1]) == fewest]
    columns, faults = min(best, key=lambda each: _lost(rows, kind, each[0])) if len(best) > 1 else best[0]
    return (kind, columns, faults) if 2 * len(faults) < len(rows) else None


def unread_columns(rows: list[tuple[Row, str]], kind: str, columns: dict[str, str]) -> tuple[str, ...]:
    """Columns of the rows of a kind that nothing reads, the most frequent first."""
    found: Counter[str] = Counter()
    for row, place in rows:
        shaped, _ = ours(row, place, columns, kind, Counter())
        found.update(() if isinstance(shaped, Fault) else sorted(unread(shaped, kind)))
    return tuple(name for name, _ in found.most_common())


def _lost(rows: list[tuple[Row, str]], kind: str, columns: dict[str, str]) -> int:
    return sum(name in CONTEXT for name in unread_columns(rows, kind, columns))


def _renamings(rows: list[tuple[Row, str]], kind: str, given: dict[str, str]) -> list[dict[str, str]]:
    """Return for each shape of a kind the names that most rows have for its fields; given names stay."""
    if given:
        renamed = [({given.get(key, key): value for key, value in row.items()}, place) for row, place in rows]
        taken = set(given.values())
        return [
            given | {name: field for name, field in found.items() if name not in taken}
            for found in _renamings(renamed, kind, {})
        ]
    counts = Counter(key for row, _ in rows for key, value in row.items() if value is not None)
    usual = {key for key, count in counts.items() if 2 * count > len(rows)}
    found = []
    for shape in SHAPES[kind]:
        wanted = ("prompt", *shape) if kind == "preference" else shape
        names = {field: _name_for(field, usual) for field in wanted}
        needed = {names[field] for field in shape}
        renamed = {name: field for field, name in names.items() if name not in (None, field)}
        if None not in needed and len(needed) == len(shape) and renamed:
            found.append(renamed)
    # A context may be missing from most rows, as in Dolly.
    if kind != "feedback" and (alpaca := into_alpaca(usual | (set(counts) & set(CONTEXT)), kind)):
        found.append(alpaca)
    return found


def _name_for(field: str, usual: set[str]) -> str | None:
    return next((name for name in (field, *SYNONYMS.get(field, ())) if name in usual), None)


def faults_of(rows: list[tuple[Row, str]], kind: str, columns: dict[str, str]) -> list[Fault]:
    """One fault for each row that is not of the kind."""
    shaped = [ours(row, place, columns, kind, Counter()) for row, place in rows]
    found = {place: row for row, place in shaped if isinstance(row, Fault)}
    good = [(row, place) for row, place in shaped if not isinstance(row, Fault)]
    for fault in check_rows([row for row, _ in good], kind, [place for _, place in good]):
        found.setdefault(fault.where, fault)
    return [found[place] for _, place in rows if place in found]
