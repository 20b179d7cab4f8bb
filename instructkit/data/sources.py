"""Where rows come from: demo sets, files, globs, hub ids, and mixtures of them."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructkit.data.files import SUFFIXES, Read, numbered, read_file
from instructkit.data.records import Row, check_rows
from instructkit.errors import DataError, Fault, InputError

_HUB_ID = re.compile(r"^[\w][\w.-]*/[\w][\w.-]*$")


@dataclass(frozen=True)
class Rows:
    """Checked rows, where each stands (`file:line`), and what identifies them: a hash of the rows in their order."""

    rows: list[Row]
    places: list[str]
    source: str
    fingerprint: str
    synthetic: bool = False
    shares: tuple[tuple[str, int, int], ...] = ()  # of a mixture: each source, its rows used, its rows

    def summary(self) -> dict[str, Any]:
        """What the run record keeps."""
        kept = {"source": self.source, "fingerprint": self.fingerprint, "rows": len(self.rows)}
        shares = [{"source": source, "used": used, "of": of} for source, used, of in self.shares]
        return {**kept, "synthetic": self.synthetic} | ({"shares": shares} if shares else {})

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
    seed: int = 0,
    every_column: bool = True,
) -> Rows:
    """
    Read and check rows.

    Args:
        source: `demo/NAME`, a file or glob, a hub id, or a list of these, each with a weight where it is a mapping.
        kind: what the rows are for: `sft`, `preference`, `prompt` or `feedback`.
        columns: other names of fields, as `{found: wanted}`.
        limit: keep the first so many rows.
        seed: of the choice of rows in a weighted mixture.
        every_column: refuse a name in `columns` that no row has.

    Raises:
        InputError: when there is no such source, or it is empty.
        DataError: when rows are at fault; all of them are checked.
    """
    parts = source if isinstance(source, list) else [source]
    raw = [_rows_of(_name(part), limit if len(parts) == 1 else None) for part in parts]
    if every_column:
        _refuse_columns_of_no_row(columns or {}, raw, _name(parts[0]))
    read = [[_named(row, place, columns or {}) for row, place in part] for part in raw]
    _refuse_faults([row for part in read for row in part], kind)
    counts = _counts(parts, read)
    chosen = _mixture(read, counts, seed) if isinstance(source, list) else read[0]
    rows, places = [row for row, _ in chosen[:limit]], [place for _, place in chosen[:limit]]
    told = " + ".join(_name(part) for part in parts)
    shares = tuple((_name(p), n, len(r)) for p, n, r in zip(parts, counts, read, strict=True))
    is_synthetic = any(_is_demo(place) for place in places)
    return Rows(rows, places, told, fingerprint(rows), is_synthetic, shares if len(parts) > 1 else ())


def fingerprint(rows: list[Row]) -> str:
    """SHA-256 of the rows in canonical JSON, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(
            json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
            + b"\n"
        )
    return digest.hexdigest()


def _rows_of(source: str, limit: int | None) -> list[Read]:
    read = list(itertools.islice(_read(source), limit))
    if not read:
        raise InputError(f"{source} holds no rows", hint="check the file; each line of a .jsonl is one row")
    return read


def _refuse_columns_of_no_row(columns: dict[str, str], read: list[list[Read]], source: str) -> None:
    there = {key for part in read for row, _ in part if not isinstance(row, Fault) for key in row}
    if there and (missing := [name for name in columns if name not in there]):
        raise InputError(
            f"{source}: `columns` renames `{'`, `'.join(missing)}`, which no row has",
            hint=f"the rows have {', '.join(sorted(there))}; `columns` is written `found: wanted`",
        )


def _named(row: Row | Fault, place: str, columns: dict[str, str]) -> Read:
    """A row with its fields under the names that we use, and its numbers as numbers."""
    return (row if isinstance(row, Fault) else numbered(_renamed(row, columns), place)), place


def _refuse_faults(read: list[Read], kind: str) -> None:
    """What cannot be read and what is wrong with the rest, all at once, in the order of the file."""
    faults = [row for row, _ in read if isinstance(row, Fault)]
    good = [(row, place) for row, place in read if not isinstance(row, Fault)]
    faults += check_rows([row for row, _ in good], kind, [place for _, place in good])
    if faults:
        order = {place: i for i, (_, place) in enumerate(read)}
        raise DataError(sorted(faults, key=lambda fault: order[fault.where]), len(faults))


def _is_demo(place: str) -> bool:
    from instructkit.data.demo import sets

    return place.rpartition(":")[0] in sets.DEMO_SETS


def _name(part: Any) -> str:
    return part if isinstance(part, str) else part["source"] if isinstance(part, dict) else part.source


def _weight(part: Any) -> float | None:
    return None if isinstance(part, str) else part["weight"] if isinstance(part, dict) else part.weight


def _counts(parts: list[Any], read: list[list[Read]]) -> list[int]:
    """Rows to take of each source: all of them without weights; by weight, the scarcest for its weight whole."""
    if all(_weight(part) is None for part in parts):
        return [len(rows) for rows in read]
    weights = [1.0 if _weight(part) is None else _weight(part) for part in parts]
    unit = min(len(rows) / weight for rows, weight in zip(read, weights, strict=True))
    counts = [round(unit * weight) for weight in weights]
    if 0 in counts:
        raise InputError(
            f"{_name(parts[counts.index(0)])}: its weight leaves none of its rows", hint="raise its weight"
        )
    return counts


def _mixture(read: list[list[Read]], counts: list[int], seed: int) -> list[Read]:
    """So many rows of each source, drawn and shuffled together."""
    rng, mixed = random.Random(seed), []
    for rows, count in zip(read, counts, strict=True):
        mixed += rng.sample(rows, count)
    rng.shuffle(mixed)
    return mixed


def _read(source: str) -> Iterator[Read]:
    if _is_demo(f"{source}:"):
        yield from _read_demo(source)
    elif paths := _paths(source):
        for path in paths:
            yield from read_file(path)
    elif source.startswith("demo/"):
        yield from _read_demo(source)
    elif _HUB_ID.match(source) and not _meant_as_file(source):
        yield from _read_hub(source)
    else:
        raise InputError(f"no data at {source}", hint=_near(source))


def _meant_as_file(source: str) -> bool:
    return (
        Path(source.removesuffix(".gz")).suffix in SUFFIXES
        or _is_folder(Path(source).parent)
        and "/" in source
    )


def _paths(source: str) -> list[Path]:
    try:
        return _found(Path(source)) if source.strip() else []
    except (OSError, ValueError):  # no pattern, and no name that a file can have
        return []


def _found(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(
            item for item in path.iterdir() if Path(item.name.removesuffix(".gz")).suffix in SUFFIXES
        )
    folder, pattern = Path(path.anchor), str(path.relative_to(path.anchor))
    return sorted(item for item in folder.glob(pattern) if item.is_file())


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _near(source: str) -> str:
    folder = Path(source).parent
    if source.strip() and _is_folder(Path(source)):
        return f"the folder holds no {', '.join(SUFFIXES)} file"
    names = [str(item) for item in folder.iterdir()] if _is_folder(folder) else []
    near = difflib.get_close_matches(source, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    return "give a .jsonl, .json, .csv or .parquet file, a glob, a folder, demo/NAME or a hub id"


def _read_demo(name: str) -> Iterator[Read]:
    from instructkit.data.demo import sets

    if name not in sets.DEMO_SETS:
        raise InputError(f"no demo set {name}", hint=f"there are {', '.join(sets.DEMO_SETS)}")
    for i, row in enumerate(sets.load(name), start=1):
        yield row, f"{name}:{i}"


def _read_hub(name: str) -> Iterator[Read]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train")
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"{name} cannot be loaded from the hub: {first}",
            hint="check the id; offline, fill the cache first or give a local file",
        ) from error
    for i, row in enumerate(rows, start=1):
        yield row, f"{name} row {i}"


def _renamed(row: Row, columns: dict[str, str]) -> Row:
    kept = {key: value for key, value in row.items() if key not in columns}
    return kept | {columns[key]: value for key, value in row.items() if key in columns}
