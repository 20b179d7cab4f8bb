"""
What one million judgements cost: their import into a store, an update on them, and the next one, each in a process of its own.

    python benchmarks/feedback_scale.py                        10,000, 100,000 and 1,000,000 events
    python benchmarks/feedback_scale.py 10000 100000           these sizes only: prints, and keeps no table
    python benchmarks/feedback_scale.py --import-only 10000    without updates: the same

Synthetic events by 1000 raters: 5 % repeat an earlier row's prompt and answer, 10 % ask nearly what an earlier one asked, 2 %
hold personal data. Of an update everything counts but training and measuring; that looks through its events once more, for what
placeholders stand for and for general rows near what is trained on. The first one is on all events and is promoted; then the
loudest rater withdraws, and the next one has 1,000 new events beside all that is stored.
Writes benchmarks/results/feedback_scale.json and .md when all sizes and parts were run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from feedback_scale_parts.made import events
from feedback_scale_parts.parts import PARTS, take_back

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SIZES = (10_000, 100_000, 1_000_000)
NEW = 1000
GOAL = "10 minutes and 1 GiB for 1,000,000 events on 2 cores"


def measure(part: str, source: Path, store: Path) -> dict[str, Any]:
    """Seconds, processor seconds and peak memory of one part, in a new process."""
    command = [sys.executable, __file__, "--part", part, str(source), str(store)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{part} ended with {done.returncode}: {done.stderr[-800:]}")
    return {"seconds": time.perf_counter() - started, **json.loads(done.stdout.splitlines()[-1])}


def run_part(part: str, source: str, store: str) -> None:
    """What the new process does; its last line is what it measured."""
    told = PARTS[part](Path(source), Path(store))
    used = resource.getrusage(resource.RUSAGE_SELF)
    cost = {"processor_seconds": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}
    print("\n" + json.dumps(cost | told))


def main(arguments: list[str]) -> int:
    """Measure, and print the table; that of all sizes and parts is kept."""
    if arguments[:1] == ["--part"]:
        run_part(*arguments[1:])
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", type=int, nargs="*", help="numbers of events")
    parser.add_argument("--import-only", action="store_true", help="no updates")
    options = parser.parse_args(arguments)
    sizes, parts = options.sizes or list(SIZES), ["import"] if options.import_only else list(PARTS)
    found = [each for size in sizes for each in measured(size, parts)]
    text = page(found, arguments)
    print(text)
    if {*SIZES} <= {*sizes} and parts == list(PARTS):
        (RESULTS / "feedback_scale.md").write_text(text, encoding="utf-8")
        told = json.dumps(found, indent=1) + "\n"
        (RESULTS / "feedback_scale.json").write_text(told, encoding="utf-8")
    else:
        print(f"{RESULTS / 'feedback_scale.md'} stays as it is: it is of all sizes and parts")
    return 0


def measured(size: int, parts: list[str]) -> list[dict[str, Any]]:
    """The parts, one after the other, on a store of so many events."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        source, store = Path(folder) / "events.jsonl", Path(folder) / "feedback.db"
        rows = events(size + NEW)
        written(source, itertools.islice(rows, size))
        for part in parts:
            if part == "next update":
                take_back(store)
                written(source, rows)
                measure("import", source, store)
            found.append({"events": size, "part": part, **measure(part, source, store)})
            print(found[-1], file=sys.stderr)
    return found


def written(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """The rows as JSONL."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def page(found: list[dict[str, Any]], arguments: list[str]) -> str:
    """The figures as a table."""
    lines = [
        "# The cost of feedback, by the number of events",
        "",
        f"Command: `{shlex.join(['python', 'benchmarks/feedback_scale.py', *arguments])}`; goal: {GOAL}. "
        f"Machine: {os.cpu_count()} cores.",
        "",
        "| events | part | seconds | processor seconds | microseconds per event | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for each in found:
        worked = NEW if each["part"] == "next update" else each["events"]
        lines.append(
            f"| {each['events']:,} | {each['part']} | {each['seconds']:.1f} | {each['processor_seconds']:.1f} | "
            f"{each['seconds'] / worked * 1e6:.0f} | {each['peak_mib']:.0f} |"
        )
    if any(each["part"] == "next update" for each in found):
        lines += [
            "",
            "Of an update everything is counted but loading libraries, training and measuring. The first one is on all events "
            f"and is promoted; the next one reads {NEW:,} new events, after the loudest rater has withdrawn.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
