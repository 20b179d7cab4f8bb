"""What `check` prints: several recipes apart, control characters as escapes, names that no file can have as one fault."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from instructkit.cli.main import main

SOUND = "stage: sft\nmodel: {name: tiny}\ndata: {train: demo/conversations}\nrun: {output: out}\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ok.yaml").write_text(SOUND, encoding="utf-8")


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return ended.value.code


def test_resolved_recipes_are_documents_with_their_names(capsys) -> None:
    Path("two.yaml").write_text(SOUND.replace("output: out", "output: two"), encoding="utf-8")
    assert run("check", "--resolved", "ok.yaml", "two.yaml") == 0
    told = capsys.readouterr().out
    first, second = yaml.safe_load_all(told)
    assert (first["run"]["output"], second["run"]["output"]) == ("out", "two")
    assert told.startswith("---\n# ok.yaml\n") and "\n---\n# two.yaml\n" in told
    assert run("check", "--resolved", "ok.yaml") == 0
    assert capsys.readouterr().out.startswith("stage: sft")


def test_control_characters_of_a_recipe_reach_no_terminal(capsys) -> None:
    Path("esc.yaml").write_text(SOUND + '"na\\x1b[31mme": 3\n', encoding="utf-8")
    assert run("check", "esc.yaml") == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told and "unknown key `na\\x1b[31mme`" in told
    assert run("check", "--json", "esc.yaml") == 2
    assert "\x1b" not in "".join(capsys.readouterr())
    odd = os.fsdecode(b"\x1b[31mx\xff.yaml")
    Path(odd).write_text(SOUND, encoding="utf-8")
    assert run("check", odd) == 0
    assert capsys.readouterr().out.startswith("\\x1b[31mx\\udcff.yaml: a sound recipe")


def test_a_note_of_a_run_moves_no_cursor(capsys) -> None:
    from instructkit.cli.console import Console

    Console().note("data \x1b[2Jx")
    assert capsys.readouterr().err == "data \\x1b[2Jx\n"


def test_faults_are_counted_that_are_not_told(capsys) -> None:
    Path("many.yaml").write_text(SOUND + "".join(f"x{i}: 1\n" for i in range(15_003)), encoding="utf-8")
    assert run("check", "many.yaml", "none.yaml") == 2
    assert capsys.readouterr().err.startswith("error: 15004 faults\n")


@pytest.mark.parametrize("name", ["9" * 5000, f"run.seed={'9' * 5000}", f"{'9' * 5000}*", "x=\0"])
def test_a_name_that_no_file_can_have_is_one_fault(capsys, name: str) -> None:
    assert run("check", "ok.yaml", name) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and len(told) < 500
    assert "report it" not in told and "Errno" not in told


def test_the_tree_of_a_stage_shows_what_a_mixture_holds(capsys) -> None:
    assert run("explain", "sft") == 0
    told = capsys.readouterr().out
    assert "      weight (float, above 0; 1.0) share of the mixture" in told
