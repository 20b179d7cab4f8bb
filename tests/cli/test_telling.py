"""What the command line tells: several recipes apart, every fault counted, no control characters, data, offers to the shell."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import yaml

from instructkit.cli import completion
from instructkit.cli.main import main
from instructkit.cli.telling import visible

ROOT = Path(__file__).parents[2]
SOUND = "stage: sft\nmodel: {name: tiny}\ndata: {train: demo/conversations}\nrun: {output: out}\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ok.yaml").write_text(SOUND, encoding="utf-8")


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return ended.value.code


def test_a_pattern_of_no_file_does_not_hide_the_files_that_are_there(capsys) -> None:
    Path("bare").mkdir()
    assert run("check", "ok.yaml", "nothing*.yaml", "bare", "") == 2
    told = capsys.readouterr()
    assert told.out == "ok.yaml: a sound recipe for `instructkit sft`\n"
    assert told.err.startswith("error: 3 faults")
    assert run("check", "--json", "ok.yaml", "nothing*.yaml") == 2
    good, missing = json.loads(capsys.readouterr().out)
    assert (good["file"], good["faults"]) == ("ok.yaml", [])
    assert (missing["file"], missing["faults"][0]["message"]) == (
        "nothing*.yaml",
        "no file is like nothing*.yaml",
    )


def test_control_characters_are_shown_and_not_sent() -> None:
    assert visible("a\x1b[31mb\x07\u202ec\n\td") == "a\\x1b[31mb\\x07\\u202ec\\n\\td"
    assert visible("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"
    assert visible("naïve 日本 👩\u200d👩") == "naïve 日本 👩\u200d👩"


def test_rows_that_are_looked_at_move_no_cursor(capsys, tiny_folder) -> None:
    rows = [{"prompt": f"p{i}", "completion": "a\u009bb"} for i in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run("data", "look", "ok.yaml", "data.train=rows.jsonl", "data.eval=null") == 0
    told = capsys.readouterr().out
    assert "\\x9b" in told and "\u009b" not in told


def test_the_shell_is_offered_values_topics_stages_and_runs() -> None:
    assert completion.stages("r") == ["reward"]
    assert completion.topics("sft.trainer.packing_") == ["sft.trainer.packing_strategy"]
    assert completion._values("sft", "model.dtype")[:2] == ["model.dtype=auto", "model.dtype=float32"]
    assert completion._values("sft", "trainer.packing") == ["trainer.packing=true", "trainer.packing=false"]
    assert "trainer.optim=sgd" in completion._values("sft", "trainer.optim")
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/run.json").write_text("{}", encoding="utf-8")
    Path("runs/two").mkdir()
    assert completion.runs("") == ["one"] and completion.runs("runs/o") == ["runs/one"]


def test_rows_left_out_stand_in_the_closing_table_and_in_the_chain() -> None:
    from rich.console import Console

    from instructkit.report.tables import chain_table, run_table

    record = {
        "name": "sft",
        "stage": "sft",
        "status": "done",
        "data": {"train": {"source": "x.jsonl", "rows": 7, "skipped": 3}, "eval": {"rows": 2}},
        "dropped": {"train: longer than max_length": 2, "eval: longer than max_length": 0},
    }
    for table in (run_table(record), chain_table([record])):
        console = Console(file=io.StringIO(), width=200)
        console.print(table)
        told = console.file.getvalue()
        assert "data train: 3 rows left out; skipped.jsonl has each with its reason" in told
        assert "rows left out, train: longer than max_length: 2" in told
        assert "data eval" not in told and told.count("rows left out") == 2


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
    assert "      weight (float (above 0) | null; null) share of the mixture" in told
