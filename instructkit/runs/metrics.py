"""`metrics.jsonl`, one line for each logged step, and `samples.jsonl`, answers before and after."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from instructkit.errors import InputError
from instructkit.runs.files import plain, write_text_atomic


class MetricsWriter:
    """Appends one JSON object a line, flushed, so a crash loses no logged step. NaN is written as null."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _drop_torn_line(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        self._file.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def cut_after(self, row: dict[str, Any]) -> None:
        """Take out what was written after a row, its last occurrence; nothing where it is not there."""
        rows, wanted = read_metrics(self.path), plain(row)
        end = max((i for i, each in enumerate(rows, start=1) if each == wanted), default=len(rows))
        if end < len(rows):
            self._file.close()
            write_rows(self.path, rows[:end])
            self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _drop_torn_line(path: Path) -> None:
    """Cut what a process that was killed while writing left after the last line end."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """
    All whole rows of a metrics or samples file, in order; an unfinished last line is left out.

    Raises:
        InputError: when the file is missing, or a finished line is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file", hint="a run writes it while it trains")
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [_row(path, number, line) for number, line in enumerate(lines, start=1)]


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{number}: not JSON ({error.msg})") from error
    if not isinstance(row, dict):
        raise InputError(f"{path}:{number}: a row must be a JSON object, found {type(row).__name__}")
    return row


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines, all or nothing; what JSON has no form for is written as its text."""
    write_text_atomic(path, "".join(_line(plain(row)) + "\n" for row in rows))


def _line(row: dict[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a character, which only an escape can hold
        return json.dumps(row, allow_nan=False, default=str)
    return text
