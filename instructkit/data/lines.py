"""The lines of a text file, plain or gzipped, and what stands for a row that cannot be read."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructkit.data.records import Row
from instructkit.errors import DataError, Fault, InputError
from instructkit.recipe.paths import encoding_of

LONGEST_LINE_BYTES = 64 * 2**20
NOT_UTF_8 = ("not UTF-8", "save the file as UTF-8")
_GZIPPED = b"\x1f\x8b"  # with which such a file begins
_NO_CHARACTER = re.compile("[\udc80-\udcff]")  # what a byte that is no UTF-8 is decoded to


@dataclass(frozen=True)
class Unread(Fault):
    """Why a row cannot be read, and what stands in its place."""

    found: str = ""


Read = tuple[Row | Fault, str]  # a row, or why there is none, and its place


def is_packed(path: Path) -> bool:
    """Whether a file is gzipped, by its name."""
    return path.suffix.lower() == ".gz"


def lines(
    path: Path, longest: int = LONGEST_LINE_BYTES, way: str = "end each row with a line feed"
) -> Iterator[bytes]:
    """
    The lines of a file as they stand, without a byte order mark, as many in memory as one.

    Not splitlines(): JSON lets U+2028 and its kind stand in a text, and only a line feed ends a row.

    Args:
        longest: bytes of a line.
        way: how to go on where one is longer.

    Raises:
        InputError: when the file cannot be read.
        DataError: when it is of another encoding by its first bytes, or a line is longer than any row.
    """
    opener = gzip.open if is_packed(path) else open
    try:
        with opener(path, "rb") as stream:
            for i, line in enumerate(iter(lambda: stream.readline(longest + 1), b"")):
                if i == 0 and opener is open and line[:2] == _GZIPPED:
                    way = f"rename the file to {path.name}.gz"
                    raise DataError([Fault(f"{path}:1", "gzipped, which its name does not say", way)], 1)
                if i == 0 and (encoding := encoding_of(line[:4])):
                    raise DataError([Fault(f"{path}:1", encoding, "save the file as UTF-8")], 1)
                if len(line) > longest:
                    told = f"a line of more than {longest // 2**20} MiB, which no row is"
                    raise DataError([Fault(f"{path}:{i + 1}", told, way)], 1)
                yield line if i else line.removeprefix(codecs.BOM_UTF8)
    except (OSError, EOFError, zlib.error) as error:  # the last two: a .gz that was cut off
        raise InputError(
            f"{path} cannot be read: {error}", hint="check the file and its permissions"
        ) from error


def text_lines(path: Path, *options: Any) -> Iterator[str]:
    """The lines as text; a byte that is no UTF-8 becomes a lone surrogate, which `is_broken` finds in its row."""
    return (line.decode("utf-8", "surrogateescape") for line in lines(path, *options))


def is_broken(text: str) -> bool:
    """Whether a text holds what was no UTF-8 in its file."""
    return not text.isascii() and _NO_CHARACTER.search(text) is not None


def writable(text: str) -> str:
    """A text as it can be written again: what was no UTF-8 is a replacement character."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
