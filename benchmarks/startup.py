"""
How long a person waits for help, and for all faults of all shipped recipes, beside `trl sft --help`.

    python benchmarks/startup.py               about three minutes on two cores

Each command is a process of its own, and the commands take turns, so that a machine that slows down slows all of them. Medians;
the first round is not counted. Writes benchmarks/results/startup.md.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "results" / "startup.md"
BIN = Path(sys.executable).parent
ROUNDS = 8
COMMANDS = {
    "trl sft --help": [str(BIN / "trl"), "sft", "--help"],
    "instructkit --help": ["--help"],
    "instructkit sft --help": ["sft", "--help"],
    "instructkit check recipes --recipe-only (12 recipes)": ["check", "recipes", "--recipe-only"],
    "instructkit check of 9 faults": ["check", "tests/faults/recipes/nine-faults.yaml"],
    "instructkit explain sft.trainer.packing": ["explain", "sft.trainer.packing"],
}


def main() -> int:
    """Time all commands, then print and write the table."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS + 1):
        for name, command in COMMANDS.items():
            found[name].append(seconds(name, command))
    medians = {name: statistics.median(times[1:]) for name, times in found.items()}
    theirs = medians["trl sft --help"]
    lines = [
        "# Seconds until the command line answers",
        "",
        f"Command: `python benchmarks/startup.py`; medians of {ROUNDS}. Machine: {os.cpu_count()} cores.",
        "",
        "| command | seconds (lowest to highest) | times faster than `trl sft --help` |",
        "|---|---|---|",
    ]
    for name, median in medians.items():
        times = found[name][1:]
        lines.append(
            f"| `{name}` | {median:.3f} ({min(times):.3f} to {max(times):.3f}) | {theirs / median:.1f} |"
        )
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


def seconds(name: str, command: list[str]) -> float:
    """How long one process takes to answer."""
    if not name.startswith("trl"):
        command = [str(BIN / "instructkit") if (BIN / "instructkit").exists() else sys.executable, *command]
        if command[0] == sys.executable:
            command[1:1] = ["-m", "instructkit"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    took = time.perf_counter() - started
    if done.returncode not in (0, 2):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    return took


if __name__ == "__main__":
    sys.exit(main())
