"""No silence: what is done while no step is taken has a line, in plain logs not too often, on a terminal with its count."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from instructkit.cli import console as consoles
from instructkit.cli.console import Console
from instructkit.progress import counted, each, listening


def test_the_outermost_loop_is_counted_and_loops_inside_it_are_not() -> None:
    heard = []
    with listening(lambda done, total: heard.append((done, total))):
        for part in counted([[1, 2], [3]], 3):
            for _ in each(part):
                pass
        list(each("ab"))
    list(each("ab"))  # nobody listens any more
    assert heard == [(2, 3), (3, 3), (1, 2), (2, 2)]


def test_a_loop_that_fails_leaves_the_listener_to_the_next_one() -> None:
    heard = []
    with listening(lambda *found: heard.append(found)):
        with pytest.raises(ZeroDivisionError):
            for _ in each("ab"):
                _ = 1 / 0
        list(each("a"))
    assert heard == [(1, 1)]


def test_long_work_is_reported_again_and_short_work_is_not(capsys, monkeypatch) -> None:
    monkeypatch.setattr(consoles, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(consoles, "WATCH_SECONDS", 0.05)
    with Console() as console:
        for name in "abc":
            with console.phase(f"short {name}"):
                pass
        with console.phase("measuring the parent: general prompts"):
            for _ in each(range(2)):
                time.sleep(0.5)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "measuring the parent: general prompts"
    assert "measuring the parent: general prompts 1/2" in [line.partition("  ")[0] for line in told]
    assert len(told) <= 4


def test_training_steps_that_take_long_are_reported_too(capsys, monkeypatch) -> None:
    monkeypatch.setattr(consoles, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(consoles, "WATCH_SECONDS", 0.05)
    with Console() as console:
        console.stage_started("ppo", None)
        console.step(3, 20, {})
        time.sleep(0.5)
        console.finished()
        time.sleep(0.5)  # nothing is being done, so there is nothing to report
    told = capsys.readouterr().err.splitlines()
    assert told and all(line.startswith("ppo 3/20") for line in told) and len(told) <= 3


def test_quiet_prints_nothing(capsys) -> None:
    with Console(quiet=True) as console, console.phase("loading", announced=True):
        console.note("a note")
    assert capsys.readouterr().err == ""


def test_the_first_sign_of_life_comes_before_the_first_slow_import(tmp_path) -> None:
    """What is printed first is printed before pydantic, yaml and rich are loaded, which alone take longer than may pass."""
    (tmp_path / "r.yaml").write_text("stage: sft\n", encoding="utf-8")
    code = (
        "import sys\nfrom instructkit.cli import main\n"
        "class Heard:\n"
        "    def write(self, text):\n"
        "        print(text, {'pydantic', 'yaml', 'rich', 'torch'} & set(sys.modules)); sys.exit()\n"
        "    def flush(self): ...\n"
        "sys.stderr = Heard()\nmain.main(['sft', 'r.yaml'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "instructkit sft: reading r.yaml set()\n", done.stderr
