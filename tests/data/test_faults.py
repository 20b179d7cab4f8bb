"""Broken data files under tests/faults/data, each with the exact words that a user is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructkit.data.sources import load_rows
from instructkit.errors import InstructKitError

FOLDER = Path(__file__).parents[1] / "faults" / "data"
BROKEN = sorted(path for path in FOLDER.iterdir() if path.suffix != ".expected")


def told(path: Path) -> str:
    """What a user is told of a file, with paths as seen from its folder; its name begins with the kind of rows."""
    with pytest.raises(InstructKitError) as caught:
        load_rows(str(path), kind=path.name.partition("-")[0])
    assert caught.value.exit_code == 2
    return f"{caught.value}\nhint: {caught.value.hint}\n".replace(f"{FOLDER}/", "")


def test_there_are_many() -> None:
    assert len(BROKEN) == 103


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.name)
def test_a_broken_file_is_told_in_these_words(path: Path) -> None:
    assert told(path) == path.with_name(f"{path.name}.expected").read_text(encoding="utf-8")
