"""Broken recipes under tests/faults/recipes, each with the exact words that a user is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructkit.recipe.load import check_recipe

FOLDER = Path(__file__).parents[1] / "faults" / "recipes"
BROKEN = sorted(path for path in FOLDER.iterdir() if path.is_file() and path.suffix != ".expected")


def told(path: Path) -> str:
    """Every fault of a file, a line each, with paths as seen from its folder."""
    faults = check_recipe(str(path)).faults
    return "".join(f"{fault}\n" for fault in faults).replace(f"{FOLDER}/", "")


def test_there_are_many() -> None:
    assert len(BROKEN) == 134


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_recipe_is_told_in_these_words(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    expected = path.with_name(f"{path.name}.expected").read_text(encoding="utf-8")
    assert told(path) == expected
    assert expected.strip()
