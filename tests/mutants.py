"""
Break the implementation on purpose, one way at a time, and see a test go red for each: `make mutants`.

A test that cannot fail proves nothing. Each mutant is one change to one file, made in a copy of the project; the tests that
should notice run first, then all tests of PPO. A mutant that no test notices is a survivor, and the script exits 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "results" / "mutants.md"


class Mutant(NamedTuple):
    """What is broken, where, how, and which tests should notice (pytest's arguments)."""

    breaks: str
    file: str
    old: str
    new: str
    tests: str


LANES = os.cpu_count() or 1  # mutants at once, one thread each
LIST = Path(__file__).with_name("mutants.yaml")


def main() -> int:
    """Run every mutant whose name holds the first argument (all without one), and write the table when all were run."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    listed = [Mutant(**found) for found in yaml.safe_load(LIST.read_text(encoding="utf-8"))]
    chosen = [mutant for mutant in listed if wanted in mutant.breaks]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(LANES) as lanes:
        copies: SimpleQueue[Path] = SimpleQueue()
        for lane in range(LANES):
            copy = Path(folder) / str(lane)
            shutil.copytree(ROOT, copy, ignore=left_behind)
            copies.put(copy)
        rows = list(lanes.map(lambda mutant: in_turn(mutant, copies), chosen))
    if not wanted:
        TABLE.write_text(table(rows), encoding="utf-8")
    survivors = [row for row in rows if row[1] == "SURVIVED"]
    print(f"{len(rows)} mutants, {len(survivors)} survivors")
    return 1 if survivors else 0


def left_behind(folder: str, names: list[str]) -> list[str]:
    """What a copy of the project does without: history, environments, and what was trained or fetched."""
    top = {".git", ".venv", ".bench", "runs", "data"} if Path(folder) == ROOT else set()
    return [name for name in names if name in top | {"__pycache__"} or name.endswith(".egg-info")]


def in_turn(mutant: Mutant, copies: SimpleQueue[Path]) -> tuple[str, str, str]:
    """A mutant tried in the copy that is free next."""
    copy = copies.get()
    try:
        return tried(mutant, copy)
    finally:
        copies.put(copy)


def tried(mutant: Mutant, copy: Path) -> tuple[str, str, str]:
    """What is broken, `red` or `SURVIVED`, and the first test that noticed."""
    path = copy / mutant.file
    whole = path.read_text(encoding="utf-8")
    if whole.count(mutant.old) < 1:
        raise SystemExit(f"{mutant.breaks}: {mutant.file} has no such line any more; mend the mutant")
    path.write_text(whole.replace(mutant.old, mutant.new, 1), encoding="utf-8")
    try:
        noticed = first_red(mutant.tests, copy) or first_red("tests/ppo", copy)
    finally:
        path.write_text(whole, encoding="utf-8")
    row = (mutant.breaks, "red" if noticed else "SURVIVED", noticed or "")
    print(f"{row[1]:8}  {row[0]}  {row[2]}", flush=True)
    return row


def first_red(tests: str, copy: Path) -> str | None:
    """The first test that fails, or None when all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    if done.returncode != 1:
        raise SystemExit(
            f"{tests}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-500:]}"
        )
    return next(line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR")))


def table(rows: list[tuple[str, str, str]]) -> str:
    """The kept table."""
    head = "# Mutants: each way of breaking the implementation, and the first test that went red\n\nCommand: `make mutants`.\n\n"
    lines = ["| broken | outcome | noticed by |", "|---|---|---|"] + [
        f"| {a} | {b} | `{c}` |" for a, b, c in rows
    ]
    red = sum(row[1] == "red" for row in rows)
    return head + "\n".join(lines) + f"\n\n{red} of {len(rows)} mutants were noticed.\n"


if __name__ == "__main__":
    sys.exit(main())
