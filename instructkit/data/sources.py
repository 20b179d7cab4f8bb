"""From a source, or a mixture of them, to checked rows that know where they stand."""

from __future__ import annotations

import bisect
import contextlib
import difflib
import hashlib
import json
import logging
import random
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from instructkit.data import table
from instructkit.data.files import OF_FOLDERS, SUFFIXES, Read, read_file, suffix_of
from instructkit.data.formats import as_conversation, as_learned, as_messages, fields_beside, ours
from instructkit.data.rows import Checker, Row, Scale, form_told, unread
from instructkit.data.table import Table
from instructkit.data.thumbs import is_ulid
from instructkit.errors import Fault, Faults, InputError
from instructkit.paths import oddity, shown

_LOCAL_ONLY: ContextVar[bool] = ContextVar("local_only", default=False)
_LOG = logging.getLogger(__name__)
STORE_SUFFIX = ".db"
SHOWN_NAMES = 5  # of what a folder holds besides
_ROW_OF_PLACE = re.compile(r"(:| row | event )[^ :]*$")
_HUB_ID = re.compile(r"^[\w][\w.-]*/[\w][\w.-]*$")
_SAVED = ("dataset_info.json", "dataset_dict.json")  # what `save_to_disk` leaves in a folder


def read_source(source: str, *, split: str = "train", config: str | None = None) -> Iterator[Read]:
    """
    The rows of one source, each with its place.

    Args:
        source: `demo/NAME`, a file, a glob, a folder of files, a folder that `save_to_disk` wrote, a hub id, or a feedback
            store (`.db`), of which come the events that may be trained on.
        split, config: of a hub id or a saved dataset.

    Raises:
        InputError: when there is no such source.
        DataError: when a file cannot be read as what it says it is.
    """
    if is_demo(source):
        _refuse_split(source, split, config)
        yield from _read_demo(source)
    elif _is_saved(source):
        yield from _read_saved(source, split, config)
    elif source.endswith(STORE_SUFFIX):
        yield from _read_store(source)
    elif paths := paths_of(source):
        _refuse_split(source, split, config)
        for path in paths:
            yield from read_file(path)
    elif source.startswith("demo/"):
        yield from _read_demo(source)
    elif _HUB_ID.match(source) and not _meant_as_file(source):
        yield from _read_hub(source, split, config)
    else:
        raise InputError(f"no data at {shown(source)}", hint=_near(source))


def file_of(place: str) -> str:
    """Return the file, or another source, of a row's place."""
    return _ROW_OF_PLACE.sub("", place)


def is_demo(source: str) -> bool:
    """Whether a source is one of the sets that the package generates."""
    from instructkit.data.demo import sets

    return source in sets.DEMO_SETS


def _refuse_split(source: str, split: str, config: str | None, way: str | None = None) -> None:
    """Only what the hub or `save_to_disk` keeps has parts of these names; elsewhere they would mean nothing."""
    for what, name in (("split", None if split == "train" else split), ("config", config)):
        if name is not None:
            raise InputError(
                f"{source} has no {what} {name!r}",
                hint=way or f"only a hub id and a saved dataset have one; remove `{what}:`",
            )


def _is_saved(source: str) -> bool:
    return _is_folder(Path(source)) and any((Path(source) / name).is_file() for name in _SAVED)


def _meant_as_file(source: str) -> bool:
    return suffix_of(Path(source)) in SUFFIXES or _is_folder(Path(source).parent) and "/" in source


def paths_of(source: str) -> list[Path]:
    """The files that a name stands for: itself, a folder's, or what a glob finds; none where it stands for something else."""
    try:
        named = source.strip() and not (is_demo(source) or _is_saved(source))
        return _found(Path(source)) if named else []
    except (OSError, ValueError):  # no pattern, and no name that a file can have
        return []


def _found(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = sorted(item for item in path.iterdir() if not item.name.startswith("."))
        found = [item for item in inside if suffix_of(item) in OF_FOLDERS and item.is_file()]
        if found:
            _tell_left_out(path, tuple(item.name for item in inside if item not in found))
        return found
    folder, pattern = Path(path.anchor), str(path.relative_to(path.anchor))
    hidden = path.name.startswith(".")
    return sorted(
        item for item in folder.glob(pattern) if item.is_file() and (hidden or item.name[:1] != ".")
    )


@cache
def _tell_left_out(folder: Path, names: tuple[str, ...]) -> None:
    """Once, for a folder may be read several times."""
    if names:
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        kinds = ", ".join(OF_FOLDERS)
        told = f"{', '.join(names[:SHOWN_NAMES])}{more}"
        _LOG.warning("%s: left out %s; of a folder its own %s files are read", folder, told, kinds)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _near(source: str) -> str:
    if odd := oddity(source):
        return f"it is {odd}; give a file"
    folder = Path(source).parent
    if source.strip() and _is_folder(Path(source)):
        return f"the folder holds no {', '.join(OF_FOLDERS)} file"
    names = [str(item) for item in folder.iterdir() if str(item) != source] if _is_folder(folder) else []
    near = difflib.get_close_matches(source, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    return "give a .jsonl, .json, .csv, .parquet or .txt file, a glob, a folder, demo/NAME or a hub id"


def _read_demo(name: str) -> Iterator[Read]:
    from instructkit.data.demo import sets

    if name not in sets.DEMO_SETS:
        raise InputError(f"no demo set {name}", hint=f"there are {', '.join(sets.DEMO_SETS)}")
    for i, row in enumerate(sets.load(name), start=1):
        yield row, f"{name}:{i}"


class OnTheHub(InputError):
    """Raised for data on a hub while only local data is read."""


@contextlib.contextmanager
def local_only() -> Iterator[None]:
    """Fetch nothing within this context: a source on the hub raises `OnTheHub`."""
    token = _LOCAL_ONLY.set(True)
    try:
        yield
    finally:
        _LOCAL_ONLY.reset(token)


def _read_hub(name: str, split: str, config: str | None) -> Iterator[Read]:
    if _LOCAL_ONLY.get():
        raise OnTheHub(f"{name} is on the hub")

    from datasets import load_dataset

    try:
        rows = load_dataset(name, config, split=split)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{name} cannot be loaded from the hub: {first}",
            hint="check the id; offline, fill the cache first or give a local file",
        ) from error
    for i, row in enumerate(rows, start=1):
        yield row, f"{name} row {i}"


def _read_saved(folder: str, split: str, config: str | None) -> Iterator[Read]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(folder)
    except Exception as error:
        raise InputError(
            f"{folder} is no saved dataset: {error}", hint="write it again with `save_to_disk`"
        ) from error
    if isinstance(found, DatasetDict):
        if split not in found:
            raise InputError(f"{folder} has no split {split!r}", hint=f"it has {', '.join(found)}")
        found = found[split]
        _refuse_split(folder, "train", config, "only a hub id has one; remove `config:`")
    else:
        _refuse_split(folder, split, config, "it was saved without any; remove it")
    for i, row in enumerate(found, start=1):
        yield row, f"{folder} row {i}"


def _read_store(path: str) -> Iterator[Read]:
    from instructkit.feedback.store.store import Filter, Store

    with Store.open(path) as store:
        for event in store.events(Filter(consent=True)):
            yield event.as_row(), f"{path} event {event.id}"


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
