"""What the name of a source stands for, and its rows: demo sets, files, globs, folders, saved datasets, hub ids."""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from instructkit.data.files import OF_FOLDERS, SUFFIXES, read_file, suffix_of
from instructkit.data.lines import Read
from instructkit.errors import InputError
from instructkit.recipe.paths import oddity, shown

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
    from instructkit.feedback.store import Filter, Store

    with Store.open(path) as store:
        for event in store.events(Filter(consent=True)):
            yield event.as_row(), f"{path} event {event.id}"
