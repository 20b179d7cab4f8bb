"""The command line: instant help, one clear error, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from instructkit.cli.main import main
from instructkit.errors import InputError, RunStopped

HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "pandas")
ROOT = Path(__file__).parents[2]


def run(*words: str, capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    captured = capsys.readouterr()
    told = captured.err.removeprefix(f"instructkit {words[0]}: reading {words[1] if words[1:] else ''}\n")
    return int(stopped.value.code or 0), captured.out, told


def imported_after(*words: str) -> set[str]:
    """Heavy modules that a fresh interpreter has loaded when a command has ended."""
    code = (
        "import sys\nfrom instructkit.cli.main import main\n"
        f"try:\n    main({list(words)!r})\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


@pytest.mark.parametrize(
    "words", [["--help"], ["sft", "--help"], ["ppo", "--help"], ["runs", "--help"], ["chat", "--help"]]
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    assert imported_after(*words) == set()


def test_a_recipe_fault_loads_no_torch() -> None:
    assert imported_after("sft", "recipes/ppo.yaml") == set()


@pytest.mark.parametrize(
    ("words", "code", "error", "hint"),
    [
        (
            ["sft", "recipes/nowhere.yaml"],
            2,
            "error: no recipe at recipes/nowhere.yaml",
            "hint: its folder holds ",
        ),
        (
            ["sft", "recipes/ppo.yaml"],
            2,
            "error: recipes/ppo.yaml:3: this recipe is for `instructkit ppo`",
            "",
        ),
        (["sft"], 2, "error: Missing argument", "hint: `instructkit --help`"),
        (["stf"], 2, "error: No such command 'stf'", "hint: "),
        (["runs", "show", "nothing"], 2, "error: ", "hint: "),
        (["chat", "runs/nothing"], 2, "error: no model at runs/nothing", "hint: model.name is"),
        (
            ["sft", "recipes/sft.yaml", "data.train=nothing.jsonl"],
            2,
            "error: no data at nothing.jsonl",
            "hint: ",
        ),
        (
            ["reward", "recipes/reward.yaml", "model.name=runs/nothing"],
            2,
            "error: no model at runs/nothing",
            "hint: ",
        ),
    ],
)
def test_wrong_input_gets_one_error_and_a_hint(words, code, error, hint, capsys, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    found, _, told = run(*words, capsys=capsys)
    assert found == code
    assert told.startswith(error), told
    assert hint in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train"], "the training commands are sft, reward, ppo, lora-update"),
        (["train", "recipes/ppo.yaml"], "run `instructkit ppo recipes/ppo.yaml`"),
        (["finetune"], "did you mean `instructkit sft`?"),
        (["sft", "recipes"], "give a recipe: recipes/lora-update"),
        (["sft", "recipes/sft.yaml", "--lr", "1e-4"], "trainer.learning_rate=1e-4"),
        (["sft", "recipes/sft.yaml", "--learning-rate=1e-4"], "trainer.learning_rate=1e-4"),
        (["sft", "recipes/sft.yaml", "--trainer.max_steps=3"], "without dashes: trainer.max_steps=3"),
        (["sft", "recipes/sft.yaml", "--output_dir", "x"], "without dashes: run.output=x"),
        (["ppo", "recipes/ppo.yaml", "--model", "tiny"], "without dashes: model.name=tiny"),
        (["sft", "recipes/sft.yaml", "--lora-rank"], "without dashes: lora.r=VALUE"),
        (["sft", "recipes/sft.yaml", "-r16"], "without dashes: lora.r=16"),
        (["sft", "recipes/sft.yaml", "-r=16"], "without dashes: lora.r=16"),
        (["sft", "recipes/sft.yaml", "-r", "16"], "without dashes: lora.r=16"),
        (["sft", "recipes/sft.yaml", "-vr16"], "`instructkit --help` lists the commands"),
        (["sft", "recipes/sft.yaml", "-q"], "`instructkit --help` lists the commands"),
        (["ppo", "recipes/ppo.yaml", "--anyway"], "`instructkit --help` lists the commands"),
        (["sft", "recipes/sft.yaml", "--nonsense"], "`instructkit --help` lists the commands"),
        (["sft", "recipes/sft.yaml", "trainer.max_steps", "=", "3"], "write `trainer.max_steps=3`"),
        (["sft", "recipes/sft.yaml", "run.seed=", "3"], "write `run.seed=3`"),
        (["sft", "recipes/sft.yaml", "run.seed", "=3", "lora.r=4"], "write `run.seed=3`"),
    ],
)
def test_what_was_meant_is_in_the_hint(words, hint, capsys, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    code, _, told = run(*words, capsys=capsys)
    assert code == 2 and hint in told, told
    assert told.count("error:") == 1


@pytest.mark.parametrize(
    ("words", "announced"),
    [
        (["sft", "--lr", "1e-4", "r.yaml"], "r.yaml"),
        (["sft", "--lr=1e-4", "r.yaml"], "r.yaml"),
        (["sft", "--if-changed", "r.yaml", "run.seed=7"], "r.yaml"),
        (["chat", "--max-new-tokens", "0", "runs/x"], "runs/x"),
        (["chat", "--temperature", "-1"], None),
    ],
)
def test_the_recipe_is_announced_and_no_value_of_an_option(words, announced, capsys, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        main(words)
    first = capsys.readouterr().err.splitlines()[0]
    assert (first == f"instructkit {words[0]}: reading {announced}") == bool(announced)
    assert ("reading" in first) == bool(announced)


def test_only_an_update_can_be_trained_although_its_gates_cannot_be_decided(capsys) -> None:
    assert "--anyway" in run("lora-update", "--help", capsys=capsys)[1]
    for stage in ("sft", "reward", "ppo"):
        assert "--anyway" not in run(stage, "--help", capsys=capsys)[1]


def test_the_version_is_told(capsys) -> None:
    code, out, _ = run("--version", capsys=capsys)
    assert code == 0 and out.startswith("instructkit ") and out.split()[1][0].isdecimal()


def test_several_faults_are_counted_and_listed(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("stage: sft\nmodel: {nam: x}\n", encoding="utf-8")
    code, _, told = run("sft", "r.yaml", capsys=capsys)
    assert code == 2
    assert told.splitlines() == [
        "error: 4 faults",
        "  r.yaml:1: `data` is missing (write `data: {train: my.jsonl}`)",
        "  r.yaml:1: `run` is missing (write `run: {output: runs/mine}`)",
        "  r.yaml:2: `model.name` is missing (write `name: runs/sft`)",
        "  r.yaml:2: unknown key `nam` in `model` (did you mean `name`?)",
        "hint: Fix these errors and run again. Nothing was started.",
    ]


def test_an_interrupt_exits_with_130(capsys, monkeypatch) -> None:
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("instructkit.stages.run_stage", stop)
    code, _, told = run("sft", "recipes/sft.yaml", capsys=capsys)
    assert (code, told.strip()) == (130, "error: interrupted\nhint: give the command again")

    def stopped(*_, **__):
        raise RunStopped("terminated (SIGTERM)", hint="give the same command with --resume", exit_code=143)

    monkeypatch.setattr("instructkit.stages.run_stage", stopped)
    code, _, told = run("sft", "recipes/sft.yaml", "--debug", capsys=capsys)
    assert (code, told.strip()) == (
        143,
        "error: terminated (SIGTERM)\nhint: give the same command with --resume",
    )
    monkeypatch.setattr("instructkit.models.source.locate", stop)
    code, _, told = run("chat", "tiny", capsys=capsys)
    assert (code, told.strip()) == (130, "error: interrupted\nhint: give the command again")


def test_a_file_is_no_model(capsys) -> None:
    code, _, told = run("chat", str(ROOT / "README.md"), capsys=capsys)
    assert code == 2 and "README.md is a file, not a model" in told


@pytest.mark.parametrize("words", [["feedback", "check", "--debug"], ["--debug", "feedback", "check"]])
def test_every_command_knows_debug(words: list[str], capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no feedback store"):
        main(words)
    with pytest.raises(SystemExit) as ended:
        main(["feedback", "chekc", "--debug"])
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_the_unforeseen_is_one_line_unless_debugging(capsys, monkeypatch) -> None:
    def fail(*_, **__):
        raise RuntimeError("out of luck")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("instructkit.stages.run_stage", fail)
    code, _, told = run("sft", "recipes/sft.yaml", capsys=capsys)
    assert code == 1
    assert told.splitlines()[0] == "error: RuntimeError: out of luck"
    with pytest.raises(RuntimeError):
        main(["sft", "recipes/sft.yaml", "--debug"])


def test_a_plan_is_on_stdout_or_the_resolved_recipe_is_and_nothing_is_written(
    capsys, tmp_path, monkeypatch, tiny_folder
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, told = run("sft", str(ROOT / "recipes/sft.yaml"), "--plan", capsys=capsys)
    assert code == 0
    assert "parameters: 1,058,432" in out and "nothing was trained" in out
    assert "loading torch, transformers and trl" in told.splitlines() and "trained" not in told
    code, out, told = run("sft", str(ROOT / "recipes/sft.yaml"), "--plan", "--resolved", capsys=capsys)
    assert code == 0
    assert yaml.safe_load(out)["data"]["train"] == "demo/conversations"
    assert "nothing was trained" in told
    assert not Path("runs").exists()
    code, _, told = run("sft", str(ROOT / "recipes/sft.yaml"), "--resolved", capsys=capsys)
    assert (code, told.splitlines()[0]) == (2, "error: --resolved goes with --plan")
