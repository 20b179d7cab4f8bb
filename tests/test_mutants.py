"""The list of mutants keeps up with the code: each still changes the line that it was written for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = yaml.safe_load((ROOT / "tests" / "mutants.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant["breaks"] for mutant in MUTANTS])
def test_the_line_is_there_and_is_changed(mutant: dict[str, str]) -> None:
    text = (ROOT / mutant["file"]).read_text(encoding="utf-8")
    assert mutant["old"] in text
    assert mutant["old"] != mutant["new"]
    compile(text.replace(mutant["old"], mutant["new"], 1), mutant["file"], "exec")


def test_there_is_one_for_every_statement_that_can_be_broken() -> None:
    """O-14 and O-25 to O-28 are experiments; every other numbered statement of the specification has a mutant."""
    named = {mutant["breaks"].split()[0] for mutant in MUTANTS}
    assert {
        f"O-{i}" for i in (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20, 21, 22, 23)
    } <= named
