"""
Whether the demo ends well on any machine: whole lines, sft to lora-update, over seeds, instruction sets and thread counts.

    python benchmarks/demo_line.py                                      24 lines: about two hours on two cores
    python benchmarks/demo_line.py --seeds 7 --isa avx2 --threads 1     single lines
    python benchmarks/demo_line.py --table                              no run: the table of the lines that are there

Each line is the four commands of `make train-all` in a folder of its own, so every stage stands on its own parents. A line is
added to a file when it ends; a benchmark that was interrupted continues with the lines that this code has not run yet. Two lines
of one thread run at once.

Reported are exit codes, and of each gate how far its value lies inside the limit, in half widths of its interval. Goals:
exit code 0 in every line, and at least one half width inside for every gate.

Writes benchmarks/results/demo_line.{jsonl,md}.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "demo_line"
STAGES = ("sft", "reward", "ppo", "lora-update")
SEEDS = (42, 7, 1, 2, 3)
SHAPES_CODE = ("instructkit", "recipes")  # what a line depends on
# One instruction set for PyTorch, oneDNN and MKL; `native` leaves the choice to them.
ISA = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}


@dataclass(frozen=True)
class Line:
    """One whole line: its seed, instruction set and number of threads."""

    seed: int
    isa: str
    threads: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.seed}-{self.isa}-{self.threads}"


def main(arguments: list[str] | None = None) -> int:
    """Run the lines that are missing, then write the table."""
    options = _options(arguments)
    wanted = [Line(*each) for each in _wanted(options)]
    code = newest_code() if options.table else code_hash()
    if not options.table:
        missing = [line for line in wanted if asdict(line) not in [row["line"] for row in done(code)]]
        for threads in sorted({line.threads for line in missing}, reverse=True):
            lanes = 2 if threads == 1 else 1
            with ThreadPoolExecutor(lanes) as pool:
                same = [line for line in missing if line.threads == threads]
                list(pool.map(lambda line: run(line, options.work, code), same))
    rows = [row for row in done(code) if Line(**row["line"]) in wanted]
    if not rows:
        raise SystemExit("no line of this code is there")
    RESULTS.with_suffix(".md").write_text(page(rows, len(wanted)), encoding="utf-8")
    print(page(rows, len(wanted)))
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--isa", nargs="+", choices=list(ISA))
    parser.add_argument("--threads", type=int, nargs="+")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "demo_line")
    parser.add_argument("--table", action="store_true", help="run nothing")
    return parser.parse_args(arguments)


def _wanted(options: argparse.Namespace) -> list[tuple[int, str, int]]:
    """Five seeds on two instruction sets with two thread counts, and four lines with the oldest instruction set."""
    if options.seeds or options.isa or options.threads:
        chosen = options.seeds or SEEDS[:1], options.isa or ["native"], options.threads or [2]
        return [(seed, isa, threads) for seed in chosen[0] for isa in chosen[1] for threads in chosen[2]]
    lines = [(seed, isa, threads) for threads in (2, 1) for isa in ("native", "avx2") for seed in SEEDS]
    return lines + [(seed, "default", threads) for threads in (2, 1) for seed in SEEDS[:2]]


def code_hash() -> str:
    """SHA-256 over the files that a line depends on, so that lines of other code are not counted."""
    digest = hashlib.sha256()
    for folder in SHAPES_CODE:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def done(code: str) -> list[dict[str, Any]]:
    """The lines that this code has run."""
    return [row for row in kept_rows() if row["code"] == code]


def newest_code() -> str:
    """The code of the line that was kept last; a table can be printed when the code has moved on."""
    return ([""] + [row["code"] for row in kept_rows()])[-1]


def kept_rows() -> list[dict[str, Any]]:
    """All lines of the file, oldest first."""
    kept = RESULTS.with_suffix(".jsonl")
    return (
        [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
    )


def run(line: Line, work: Path, code: str) -> None:
    """Run one line to its end and add it to the file."""
    folder = work / f"{line.name}-{code}"
    folder.mkdir(parents=True, exist_ok=True)
    surroundings = {key: value for key, value in os.environ.items() if key not in ISA["avx2"]}
    surroundings |= {**ISA[line.isa], "OMP_NUM_THREADS": str(line.threads), "PYTHONPATH": str(ROOT)}
    exits, seconds = {}, {}
    for stage in STAGES:
        started = time.perf_counter()
        command = [sys.executable, "-m", "instructkit", stage, str(ROOT / "recipes" / f"{stage}.yaml")]
        command += [f"run.seed={line.seed}", "--if-changed"]
        with (folder / f"{stage}.log").open("w") as log:
            exits[stage] = subprocess.run(
                command, cwd=folder, env=surroundings, stdout=log, stderr=subprocess.STDOUT, check=False
            ).returncode
        seconds[stage] = round(time.perf_counter() - started, 1)
        if exits[stage] not in (0, 3):
            raise SystemExit(f"{line.name}: {stage} ended with {exits[stage]}; see {folder / f'{stage}.log'}")
    records = [json.loads((folder / "runs" / s / "run.json").read_text(encoding="utf-8")) for s in STAGES]
    row = {
        "line": asdict(line),
        "code": code,
        "commit": records[-1]["commit"],
        "exits": exits,
        "seconds": seconds,
        "hardware": records[-1]["hardware"],
        "gates": [
            {"stage": s, **gate}
            for s, record in zip(STAGES, records, strict=True)
            for gate in record["gates"]
        ],
    }
    with RESULTS.with_suffix(".jsonl").open("a", encoding="utf-8") as kept:
        kept.write(json.dumps(row) + "\n")
    print(f"{line.name}: exit {exits}, {sum(seconds.values()):.0f} s", flush=True)


def inside(gate: dict[str, Any]) -> float | None:
    """How far a gate's value lies inside its limit, in half widths of its interval; None without an interval."""
    if gate["measured"] is None or not gate["interval"]:
        return None
    low, high = gate["interval"]
    distance = abs(gate["limit"] - gate["measured"]) * (1 if gate["passed"] else -1)
    return distance / max((high - low) / 2, 1e-12)


def page(rows: list[dict[str, Any]], wanted: int) -> str:
    """The table of lines, and that of gates."""
    good = sum(not any(row["exits"].values()) for row in rows)
    lines = [
        "# The demo's whole line on several machines",
        "",
        f"Command: `python benchmarks/demo_line.py`, last at commit {rows[-1]['commit'][:9]}. "
        f"{len(rows)} of {wanted} lines have run; {good} ended with exit code 0.",
        "`inside` is the smallest distance of a gate's value from its limit, in half widths of its interval; the goal is 1.",
        "",
        "| seed | instruction set | threads | processor | exit code | seconds | inside | of the gate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        line, nearest = row["line"], _nearest(row)
        hardware = row["hardware"]
        lines.append(
            f"| {line['seed']} | {line['isa']} ({hardware['instruction_set']}) | {line['threads']} | {hardware['processor']} | "
            f"{max(row['exits'].values())} | {sum(row['seconds'].values()):.0f} | {nearest[0]:.2f} | {nearest[1]} |"
        )
    lines += ["", "| gate | smallest inside | values |", "|---|---|---|"]
    names = list(dict.fromkeys((gate["stage"], gate["name"]) for row in rows for gate in row["gates"]))
    for stage, name in names:
        mine = [
            gate for row in rows for gate in row["gates"] if (gate["stage"], gate["name"]) == (stage, name)
        ]
        far = [each for each in map(inside, mine) if each is not None]
        values = [gate["measured"] for gate in mine if gate["measured"] is not None]
        shown = (
            f"{min(values):.4g} to {max(values):.4g}; limit {mine[0]['limit']:g}"
            if values
            else "not applicable"
        )
        lines.append(f"| {stage}: {name} | {f'{min(far):.2f}' if far else '-'} | {shown} |")
    return "\n".join(lines) + "\n"


def _nearest(row: dict[str, Any]) -> tuple[float, str]:
    known = [(far, gate["name"]) for gate in row["gates"] if (far := inside(gate)) is not None]
    return min(known)


if __name__ == "__main__":
    sys.exit(main())
