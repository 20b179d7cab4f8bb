"""`check` looks at what a recipe points to: data, columns, parents, trackers; without torch, and not with --recipe-only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from instructkit.cli.main import main

SFT = "stage: sft\nmodel: {name: tiny}\ndata: {train: chat.jsonl, eval: 0.3}\nrun: {output: runs/sft}\n"
REWARD = "stage: reward\nmodel: {name: runs/sft}\ndata: {train: pairs.jsonl, eval: 0.3}\nrun: {output: runs/reward}\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTRUCTKIT_CACHE", str(tmp_path / "cache"))
    Path("sft.yaml").write_text(SFT, encoding="utf-8")
    Path("reward.yaml").write_text(REWARD, encoding="utf-8")
    rows = [{"prompt": f"p{i}", "completion": "c"} for i in range(60)]
    Path("chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(60)]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


def check(capsys, *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["check", *words])
    told = capsys.readouterr()
    return ended.value.code, told.out + told.err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.train=nothing.jsonl", "sft.yaml: no data at nothing.jsonl"),
        ("data.columns={question: prompt}", "question"),
        ("model.name=runs/nothing", "command line: model.name=runs/nothing: no model at runs/nothing"),
        (
            "trainer.report_to=[none, swanlab]",
            "`trainer.report_to` is swanlab, and the package swanlab is not installed (run `pip install swanlab`",
        ),
    ],
)
def test_what_is_not_there_is_a_fault(override: str, says: str, capsys) -> None:
    code, told = check(capsys, "sft.yaml", override)
    assert code == 2 and says in told and "add --recipe-only" in told
    assert check(capsys, "sft.yaml", override, "--recipe-only")[0] == 0
    assert "--recipe-only" not in check(capsys, "sft.yaml", "data.nonsense=1")[1]


def test_rows_with_faults_are_told_with_their_lines(capsys) -> None:
    Path("chat.jsonl").write_text('{"prompt": 7, "completion": "c"}\n{"prompt": "p"}\n', encoding="utf-8")
    code, told = check(capsys, "sft.yaml", "model.name=runs/nothing")
    assert code == 2 and told.startswith("error: 3 faults")
    assert "chat.jsonl:1: " in told and "chat.jsonl:2: " in told and "no model at runs/nothing" in told


def test_a_parent_that_another_recipe_writes_need_not_be_there_yet(capsys) -> None:
    assert check(capsys, "sft.yaml", "reward.yaml")[0] == 0
    code, told = check(capsys, "reward.yaml")
    assert code == 2 and "reward.yaml:2: no model at runs/sft" in told


def test_data_on_a_hub_are_not_fetched(capsys) -> None:
    assert check(capsys, "sft.yaml", "data.train=some/where", "model.name=org/model")[0] == 0


@pytest.mark.parametrize(
    ("key", "row", "says"),
    [
        ("counterfactuals", {"prompts": ["a", "b"]}, "two lists of two prompts"),
        ("bias_pairs", {"stereotype": "a"}, "`anti` is missing"),
        ("tasks", {"question": "a", "choices": ["b"]}, "`choices` is"),
    ],
)
def test_sets_that_an_update_is_measured_on_are_read(capsys, key: str, row: dict, says: str) -> None:
    events = [{"prompt": f"question {i} on {i * i}?", "response": "c", "rating": 1} for i in range(60)]
    Path("events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    Path("set.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    Path("update.yaml").write_text(
        "stage: lora-update\nmodel: {name: tiny}\nfeedback: {events: events.jsonl}\nrun: {output: runs/update}\n",
        encoding="utf-8",
    )
    assert check(capsys, "update.yaml")[0] == 0
    code, printed = check(
        capsys, "update.yaml", f"feedback.{key}={'[set.jsonl]' if key == 'tasks' else 'set.jsonl'}"
    )
    assert code == 2 and "set.jsonl:1: " in printed and says in printed


def test_nothing_is_built_or_loaded(tmp_path) -> None:
    code = (
        "import sys\nfrom instructkit.cli.main import main\n"
        "try:\n    main(['check', 'sft.yaml', 'reward.yaml'])\nexcept SystemExit as ended:\n"
        "    print(ended.code, {'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 set()"
    assert not (tmp_path / "cache").exists() and not (tmp_path / "runs").exists()
