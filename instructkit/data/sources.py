"""Where rows come from: demo sets, files, globs, hub ids, and mixtures of them."""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructkit.data.records import Row, check_rows
from instructkit.errors import DataError, Fault, InputError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_HUB_ID = re.compile(r"^[\w][\w.-]*/[\w][\w.-]*$")


@dataclass(frozen=True)
class Rows:
    """Checked rows, where each stands (`file:line`), and what identifies them: a hash of the rows in their order."""

    rows: list[Row]
    places: list[str]
    source: str
    fingerprint: str
    synthetic: bool = False

    def summary(self) -> dict[str, Any]:
        """What the run record keeps."""
        kept = {"source": self.source, "fingerprint": self.fingerprint, "rows": len(self.rows)}
        return {**kept, "synthetic": self.synthetic}

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
) -> Rows:
    """
    Read and check rows.

    Args:
        source: `demo/NAME`, a file or glob, a hub id, or a list of these, each with a weight where it is a mapping.
        kind: what the rows are for: `sft`, `preference`, `prompt` or `feedback`.
        columns: other names of fields, as `{found: wanted}`.
        limit: keep the first so many rows.
        seed: of the choice of rows in a weighted mixture.

    Raises:
        InputError: when there is no such source, or it is empty.
        DataError: when rows are at fault; all of them are checked.
    """
    read = _mixture(source, seed) if isinstance(source, list) else list(_read(source))
    read = read[:limit]
    told = source if isinstance(source, str) else " + ".join(_name(part) for part in source)
    if not read:
        raise InputError(f"{told} holds no rows", hint="check the file; each line of a .jsonl is one row")
    rows = [_renamed(row, columns or {}) for row, _ in read]
    places = [place for _, place in read]
    faults = check_rows(rows, kind, places)
    if faults:
        raise DataError(faults, len(faults))
    synthetic = any(place.startswith("demo/") for place in places)
    return Rows(rows, places, told, fingerprint(rows), synthetic)


def fingerprint(rows: list[Row]) -> str:
    """SHA-256 of the rows in canonical JSON, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(
            json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8") + b"\n"
        )
    return digest.hexdigest()


def _name(part: Any) -> str:
    return part if isinstance(part, str) else part["source"] if isinstance(part, dict) else part.source


def _weight(part: Any) -> float:
    return 1.0 if isinstance(part, str) else part["weight"] if isinstance(part, dict) else part.weight


def _mixture(parts: list[Any], seed: int) -> list[tuple[Row, str]]:
    """Each source in proportion to its weight, the largest of them whole; then shuffled together."""
    read = [(list(_read(_name(part))), _weight(part)) for part in parts]
    unit = min(len(rows) / weight for rows, weight in read)
    rng = random.Random(seed)
    mixed = [row for rows, weight in read for row in rng.sample(rows, round(unit * weight))]
    rng.shuffle(mixed)
    return mixed


def _read(source: str) -> Iterator[tuple[Row, str]]:
    if source.startswith("demo/"):
        yield from _read_demo(source)
    elif paths := _paths(source):
        for path in paths:
            yield from _read_file(path)
    elif _HUB_ID.match(source) and not _meant_as_file(source):
        yield from _read_hub(source)
    else:
        raise InputError(f"no data at {source}", hint=_near(source))


def _meant_as_file(source: str) -> bool:
    return (
        Path(source.removesuffix(".gz")).suffix in SUFFIXES or Path(source).parent.is_dir() and "/" in source
    )


def _paths(source: str) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(
            item for item in path.iterdir() if Path(item.name.removesuffix(".gz")).suffix in SUFFIXES
        )
    folder, pattern = (
        (Path(path.anchor), str(path.relative_to(path.anchor))) if path.is_absolute() else (Path(), source)
    )
    return sorted(item for item in folder.glob(pattern) if item.is_file()) if source.strip("./") else []


def _near(source: str) -> str:
    folder = Path(source).parent
    names = [str(item) for item in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(source, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    return "give a .jsonl, .json, .csv or .parquet file, a glob, a folder, demo/NAME or a hub id"


def _read_demo(name: str) -> Iterator[tuple[Row, str]]:
    from instructkit.data.demo import sets

    if name not in sets.DEMO_SETS:
        raise InputError(f"no demo set {name}", hint=f"there are {', '.join(sets.DEMO_SETS)}")
    for i, row in enumerate(sets.load(name), start=1):
        yield row, f"{name}:{i}"


def _read_file(path: Path) -> Iterator[tuple[Row, str]]:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    if suffix not in readers:
        raise InputError(f"{path} is of an unknown kind", hint=f"give one of {', '.join(SUFFIXES)}")
    yield from readers[suffix](path)


def _text_of(path: Path) -> str:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            content = stream.read()
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError([Fault(f"{path}:{line}", "not UTF-8", "save the file as UTF-8")], 1) from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error}", hint="check the file and its permissions"
        ) from error


def _read_jsonl(path: Path) -> Iterator[tuple[Row, str]]:
    faults = []
    for i, line in enumerate(_text_of(path).splitlines(), start=1):
        if not line.strip():
            continue
        row, fault = _parsed(line, f"{path}:{i}")
        if fault:
            faults.append(fault)
        else:
            yield row, f"{path}:{i}"
    if faults:
        raise DataError(faults, len(faults))


def _parsed(line: str, place: str) -> tuple[Row, Fault | None]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return {}, Fault(place, f"not JSON: {error.msg} at column {error.colno}", "one JSON object a line")
    if not isinstance(row, dict):
        return {}, Fault(place, f"found {type(row).__name__}; wanted a JSON object", "one JSON object a line")
    return row, None


def _read_json(path: Path) -> Iterator[tuple[Row, str]]:
    try:
        rows = json.loads(_text_of(path))
    except json.JSONDecodeError as error:
        raise DataError([Fault(f"{path}:{error.lineno}", f"not JSON: {error.msg}")], 1) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} holds no list of objects", hint="a .json file is one list of rows")
    for i, row in enumerate(rows, start=1):
        yield row, f"{path} row {i}"


def _read_csv(path: Path) -> Iterator[tuple[Row, str]]:
    reader = csv.DictReader(_text_of(path).splitlines(keepends=True))
    for row in reader:
        yield {key: _cell(value) for key, value in row.items() if key}, f"{path}:{reader.line_num}"


def _cell(value: Any) -> Any:
    """A cell of a table: nothing when it is empty, a number where a rating or margin may stand, else text."""
    if value in ("", None):
        return None
    try:
        return float(value) if re.fullmatch(r"[-+]?\d*\.?\d+", value) else value
    except ValueError:
        return value


def _read_parquet(path: Path) -> Iterator[tuple[Row, str]]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except Exception as error:
        raise InputError(f"{path} is no Parquet file: {error}", hint="write it again") from error
    for i, row in enumerate(rows, start=1):
        yield row, f"{path} row {i}"


def _read_hub(name: str) -> Iterator[tuple[Row, str]]:
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
    return {columns.get(key, key): value for key, value in row.items()}
