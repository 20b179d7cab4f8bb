"""Rows from one file: JSONL, JSON, CSV, Parquet or lines of text, plain or gzipped, each with its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from instructkit.data.csv_files import read_csv
from instructkit.data.json_files import read_json, read_jsonl
from instructkit.data.lines import NOT_UTF_8, Read, Unread, is_broken, text_lines, writable
from instructkit.data.parquet_files import read_parquet
from instructkit.errors import InputError


def read_prompts(path: Path) -> Iterator[Read]:
    """Read a text file, of which every line that is not blank is a prompt."""
    for i, line in enumerate(text_lines(path), start=1):
        place = f"{path}:{i}"
        if is_broken(line):
            yield Unread(place, *NOT_UTF_8, writable(line)), place
        elif line.strip():
            yield {"prompt": line.strip()}, place


_READERS = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_prompts,
}
SUFFIXES = tuple(_READERS)
OF_FOLDERS = tuple(
    suffix for suffix in SUFFIXES if suffix != ".txt"
)  # text files in a folder may hold anything
_OTHER_NAMES = {
    ".ndjson": "one object a line is JSONL; rename the file to .jsonl",
    ".jl": "one object a line is JSONL; rename the file to .jsonl",
    ".tsv": "save it with commas between its columns, as .csv",
    ".tab": "save it with commas between its columns, as .csv",
    ".xlsx": "save the sheet as .csv",
    ".xls": "save the sheet as .csv",
    ".bz2": "unpack it, or pack it with gzip as .gz",
    ".xz": "unpack it, or pack it with gzip as .gz",
    ".zst": "unpack it, or pack it with gzip as .gz",
    ".zip": "unpack it, or pack it with gzip as .gz",
}


def read_file(path: Path) -> Iterator[Read]:
    """
    Read one file; a row that cannot be read stands as the fault that says why.

    Raises:
        InputError: when the file is of no known kind, or cannot be read at all.
        DataError: when it is not JSON as a whole, or has no header that could be read.
    """
    suffix = suffix_of(path)
    if suffix not in _READERS:
        way = _OTHER_NAMES.get(suffix, f"give one of {', '.join(SUFFIXES)}")
        raise InputError(f"{path} is of an unknown kind", hint=way)
    yield from _READERS[suffix](path)


def suffix_of(path: Path) -> str:
    """The kind that a name ends in, in small letters and without `.gz`."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix
