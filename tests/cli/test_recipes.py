"""`check`, `explain`, `schema`: what they print, their exit codes, and that nothing heavy is loaded for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "pandas")


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "instructkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


def test_every_shipped_recipe_is_sound() -> None:
    done = run("check", "recipes", "--recipe-only")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 13
    assert "recipes/sft.yaml: a sound recipe for `instructkit sft`" in done.stdout
    assert run("check", "recipes/**/*.yaml", "--recipe-only").stdout == done.stdout


def test_faults_of_several_recipes_come_together() -> None:
    folder = Path("tests/faults/recipes")
    done = run("check", f"{folder}/rank-of-zero.yaml", "recipes/sft.yaml", f"{folder}/empty.yaml")
    assert done.returncode == 2
    assert "recipes/sft.yaml: a sound recipe" in done.stdout
    assert done.stderr.startswith("error: 2 faults\n")
    assert "rank-of-zero.yaml:5: `lora.r` is 0" in done.stderr
    assert "empty.yaml:1: a recipe is a mapping" in done.stderr


def test_faults_as_data() -> None:
    done = run("check", "--json", "recipes/sft.yaml", "trainer.max_steps=many")
    assert done.returncode == 2
    (found,) = json.loads(done.stdout)
    assert found["file"] == "recipes/sft.yaml"
    assert found["faults"] == [
        {
            "where": "command line: trainer.max_steps=many",
            "message": "`trainer.max_steps` is 'many'; wanted a whole number",
            "hint": None,
        }
    ]
    (found,) = json.loads(run("check", "--json", "recipes/sft.yaml", "run.seed=7").stdout)
    assert (found["resolved"]["run"]["seed"], found["origins"]["run.seed"]) == (7, "command line: run.seed=7")
    assert found["origins"]["lora"] == "default"


def test_the_resolved_recipe_tells_origins() -> None:
    lines = run("check", "--resolved", "recipes/sft.yaml", "run.seed=7").stdout.splitlines()
    assert any(line.split() == ["seed:", "7", "#", "command", "line"] for line in lines)
    assert any(
        line.split()[:2] == ["name:", "tiny"] and line.endswith("# recipes/sft.yaml:5") for line in lines
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check"], "Missing argument"),
        (["check", "no-such.yaml"], "no-such.yaml: no recipe"),
        (["check", "nothing/*.yaml"], "no file is like nothing/*.yaml"),
        (["check", "instructkit/chat"], "holds no .yaml file"),
        (["check", "a=b"], "there is no recipe to check"),
        (["explain", "sft.modle"], "did you mean model?"),
        (["schema", "stf"], "no stage is called 'stf'"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_field_is_explained() -> None:
    done = run("explain", "sft.trainer.packing")
    assert done.returncode == 0
    assert done.stdout.startswith("sft.trainer.packing  (bool; default false)\n")
    assert "[SFTConfig]" in done.stdout
    tree = run("explain", "ppo").stdout
    assert "critic" in tree and "`instructkit explain ppo.trainer`" in tree


def test_the_schema_is_printed() -> None:
    assert json.loads(run("schema", "ppo").stdout)["title"] == "instructkit ppo recipe"


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "recipes/sft.yaml"],
        ["check", "tests/faults/recipes/nine-faults.yaml"],
        ["explain", "ppo"],
        ["schema", "sft"],
    ],
)
def test_nothing_heavy_is_loaded(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom instructkit.cli.main import main\n"
        f"try:\n main({arguments!r})\nexcept SystemExit: pass\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "offered", "not_offered"),
    [
        (
            "instructkit sft recipes/s",
            ["recipes/sft.yaml", "recipes/smollm2/", "recipes/schemas/"],
            ["recipes/ppo.yaml"],
        ),
        (
            "instructkit ppo recipes/ppo.yaml trainer.lam",
            ["trainer.lam=", "trainer.lam_value="],
            ["trainer.beta="],
        ),
        ("instructkit sft recipes/sft.yaml lora.", ["lora.r=", "lora.alpha="], ["trainer.lam="]),
        (
            "instructkit lora-update recipes/lora-update.yaml feedback.ev",
            ["feedback.events=", "feedback.eval="],
            [],
        ),
    ],
)
def test_the_shell_is_offered_recipes_and_keys(
    words: str, offered: list[str], not_offered: list[str]
) -> None:
    import os

    asked = {
        "_INSTRUCTKIT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    command = [sys.executable, "-c", "from instructkit.cli.main import main; main()"]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, cwd=ROOT)
    found = done.stdout.split()
    assert set(offered) <= set(found), done.stderr
    assert not set(not_offered) & set(found)
