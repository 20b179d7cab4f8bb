"""The Makefile's own promises, with a stand-in for the installed command: order, no second install, exit status."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$1" in
  "$FAILING") exit "$STATUS" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture()
def venv(tmp_path: Path) -> Path:
    """A folder that looks installed, with stand-ins for python and instructkit."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    for name in ("instructkit", "python"):
        (folder / "bin" / name).write_text(STAND_IN, encoding="utf-8")
        (folder / "bin" / name).chmod(0o755)
    for stamp in (".installed", ".installed-docs", ".installed-smollm2"):
        (folder / stamp).touch()
    return folder


def make(venv: Path, *arguments: str, failing: str = "nothing", status: int = 0) -> tuple[int, list[str]]:
    """Run make; return its exit status and the calls of the stand-ins in order."""
    calls = venv.parent / "calls"
    calls.write_text("", encoding="utf-8")
    environment = {
        **os.environ,
        "CALLS": str(calls),
        "FAILING": failing,
        "STATUS": str(status),
        "MAKEFLAGS": "",
    }
    command = ["make", "--no-print-directory", f"VENV={venv}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    return done.returncode, calls.read_text(encoding="utf-8").splitlines()


STAGES = [
    "sft recipes/sft.yaml --if-changed",
    "reward recipes/reward.yaml --if-changed",
    "ppo recipes/ppo.yaml --if-changed",
    "lora-update recipes/lora-update.yaml --if-changed",
]
SUMMARY = "runs summary runs/lora-update"


@pytest.mark.parametrize("jobs", ["-j1", "-j4"])
def test_train_all_runs_the_stages_in_order_and_installs_nothing(venv: Path, jobs: str) -> None:
    assert make(venv, "train-all", jobs) == (0, [*STAGES, SUMMARY])


def test_a_stage_that_fails_ends_the_line(venv: Path) -> None:
    status, calls = make(venv, "train-all", failing="reward", status=1)
    assert (status, calls) == (2, STAGES[:2])


def test_a_refused_update_still_shows_the_table_and_fails(venv: Path) -> None:
    assert make(venv, "train-all", failing="lora-update", status=3) == (2, [*STAGES, SUMMARY])
    assert make(venv, "train-all", failing="lora-update", status=1) == (2, STAGES)


def test_a_gate_on_the_way_still_shows_the_table_and_fails(venv: Path) -> None:
    assert make(venv, "train-all", failing="reward", status=3) == (2, [*STAGES, SUMMARY])


def test_a_gate_in_the_summary_fails_the_line(venv: Path) -> None:
    assert make(venv, "train-all", failing="runs", status=3) == (2, [*STAGES, SUMMARY])


def test_smollm2_prepares_and_runs_the_line(venv: Path) -> None:
    status, calls = make(venv, "smollm2")
    assert status == 0
    assert calls[0].startswith("recipes/smollm2/prepare.py")
    assert [call.split()[0] for call in calls[1:]] == ["sft", "reward", "ppo", "lora-update", "runs"]
    assert calls[-1] == "runs summary runs/smollm2/lora-update"


def test_newer_pins_install_again_and_old_ones_do_not(venv: Path) -> None:
    assert make(venv, "setup") == (0, [])
    os.utime(venv / ".installed", (0, 0))
    status, calls = make(venv, "setup")
    assert status == 0
    assert ["torch==2.13.0" in call for call in calls] == [True, False]
    assert all("-c constraints.txt" in call for call in calls)
    assert make(venv, "setup") == (0, [])


def test_a_failed_install_is_tried_again(venv: Path) -> None:
    os.utime(venv / ".installed", (0, 0))
    assert make(venv, "setup", failing="-m", status=1)[0] == 2
    assert make(venv, "setup")[1] != []
