"""What shapes a run besides its recipe, rows and parent runs is part of what it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from instructkit.models.source import Source
from instructkit.stages.identity import fingerprints_of_sources


def recipe(function: str = "own.py:score", **trainer: str) -> SimpleNamespace:
    return SimpleNamespace(
        stage="ppo",
        reward=[SimpleNamespace(function=function)],
        gates=SimpleNamespace(judge="demo/judge"),
        feedback=SimpleNamespace(filter="own.py:keep"),
        trainer=trainer,
    )


@pytest.fixture()
def place(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pack", raising=False)  # of the test before
    for name, text in {
        "own.py": "import json\nfrom some_helper_of_mine import f\n",
        "some_helper_of_mine.py": "def f(): return 1\n",
        "pack/__init__.py": "",
        "pack/score.py": "from .level import x\nfrom . import sibling\n",
        "pack/level.py": "x = 1\n",
        "pack/sibling.py": "from ..pack.deep import *\n",
        "pack/deep/__init__.py": "",
        "template.jinja": "{{ x }}",
        "base/config.json": "{}",
        "base/model.safetensors": "w",
        "base/tokenizer_config.json": json.dumps({"chat_template": "t"}),
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    return tmp_path


def changed_by(
    path: str, text: str, *, function: str = "own.py:score", template: str = "template.jinja"
) -> list[str]:
    asked = recipe(function, chat_template_path=template), {"model": Source("base", "base")}
    before = fingerprints_of_sources(*asked)
    Path(path).write_text(text, encoding="utf-8")
    after = fingerprints_of_sources(*asked)
    assert before.keys() == after.keys()
    return sorted(name for name in before if before[name] != after[name])


def test_every_source_is_told_by_what_it_is(place: Path) -> None:
    functions = ["feedback.filter (own.py:keep)", "reward[0].function (own.py:score)"]
    assert changed_by("own.py", "import json\nfrom some_helper_of_mine import f\nx = 1\n") == functions
    assert changed_by("some_helper_of_mine.py", "def f(): return 2\n") == functions
    assert changed_by("template.jinja", "{{ y }}") == ["trainer.chat_template_path (template.jinja)"]
    assert changed_by("base/model.safetensors", "v") == ["model: base model files"]
    both = ["model: base model files", "model: chat template"]
    assert changed_by("base/tokenizer_config.json", json.dumps({"chat_template": "u"})) == both


@pytest.mark.parametrize("place_of", ["pack.score:score", "pack/score.py:score"])
@pytest.mark.parametrize("file", ["score", "level", "sibling", "deep/__init__", "__init__"])
def test_what_a_function_imports_from_its_own_package_counts(place: Path, place_of: str, file: str) -> None:
    assert changed_by(f"pack/{file}.py", "y = 2\n", function=place_of) == [f"reward[0].function ({place_of})"]


def test_the_sets_that_an_update_is_measured_on_count_where_their_gates_are_on(place: Path) -> None:
    texts = {
        "pairs.jsonl": {"stereotype": "She cooks.", "anti": "He cooks."},
        "four.jsonl": {"prompts": [["Ann?", "Eva?"], ["Bob?", "Tom?"]]},
        "task.jsonl": {"question": "1+1?", "choices": ["2", "3"], "answer": 0},
    }

    def fingerprints(added: str = "") -> dict[str, str]:
        for name, row in texts.items():
            Path(name).write_text(json.dumps(row).replace("?", added + "?"), encoding="utf-8")
        return fingerprints_of_sources(update, {})

    update = recipe()
    update.stage, update.reward = "lora-update", []
    update.feedback = SimpleNamespace(
        filter=None, bias_pairs="pairs.jsonl", counterfactuals="four.jsonl", tasks=["task.jsonl"]
    )
    update.gates = SimpleNamespace(judge=None, bias_growth_max=0.1, contrast_growth_max=0.5)
    texts["pairs.jsonl"]["anti"] += "?"
    names = [
        *("feedback.bias_pairs (pairs.jsonl)", "feedback.counterfactuals (four.jsonl)"),
        "feedback.tasks[0] (task.jsonl)",
    ]
    before, after = fingerprints(), fingerprints(" really")
    assert sorted(before) == names and before == fingerprints()
    assert all(before[name] != after[name] for name in names)
    update.gates.bias_growth_max = update.gates.contrast_growth_max = None
    assert sorted(fingerprints()) == names[-1:]


def test_a_folder_as_chat_template_counts_without_its_weights(place: Path) -> None:
    named = {"template": "base", "function": "own.py:score"}
    key = "trainer.chat_template_path (base)"
    changed = changed_by("base/tokenizer_config.json", json.dumps({"chat_template": "u"}), **named)
    assert key in changed
    assert key not in changed_by("base/model.safetensors", "v", **named)


def test_a_base_below_an_adapter_counts_and_a_full_run_is_known_by_its_hash(place: Path) -> None:
    Path("run").mkdir()
    adapter = Source("run", "base", adapter=Path("run"), run=Path("run"))
    assert "model: base model files" in fingerprints_of_sources(recipe(), {"model": adapter})
    full = Source("base", "base", run=Path("base"))
    assert "model: base model files" not in fingerprints_of_sources(recipe(), {"model": full})
