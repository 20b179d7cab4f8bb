"""
What one million judgements cost: import into a store, preprocessing, and the next update's, each in a process of its own.

    python benchmarks/feedback_scale.py                        10,000, 100,000 and 1,000,000 events: about 15 minutes on two cores
    python benchmarks/feedback_scale.py 10000 100000           these sizes only
    python benchmarks/feedback_scale.py --import-only 10000    without preprocessing

Synthetic events by 1000 raters: 5 % repeat an earlier row's prompt and answer, 10 % ask nearly what an earlier one asked, 2 %
hold personal data. The next update has 1,000 new events beside all that the store holds. Writes
benchmarks/results/feedback_scale.json and .md.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SIZES = (10_000, 100_000, 1_000_000)
RATERS, REMEMBERED, NEW = 1000, 5000, 1000
GOAL = "10 minutes and 1 GiB for 1,000,000 events on 2 cores"
PERSONAL = (
    "write to {0}.{1}@example.org",
    "call me on +49 30 {2:06d}",
    "my card is 4111 1111 1111 1111",
    "it is at 203.0.113.{3}",
    "the key is sk-Ab3dEf{2:06d}GhIjKlMnOpQr",
)


def events(count: int) -> Iterator[dict[str, Any]]:
    """The rows, always the same ones."""
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioulnrstkm", k=draw.randint(2, 9))) for _ in range(20_000)]
    met: list[dict[str, Any]] = []
    for i in range(count):
        kind = draw.random()
        if met and kind < 0.05:
            row = dict(draw.choice(met))
        else:
            row = fresh(draw, words, i) if not met or kind > 0.15 else near(draw, words, draw.choice(met))
            row |= judgement(draw, words)
            met.append(row) if len(met) < REMEMBERED else met.__setitem__(draw.randrange(REMEMBERED), row)
        yield {**row, "rater": f"rater {int(RATERS * draw.random() ** 2)}"}


def fresh(draw: random.Random, words: list[str], i: int) -> dict[str, Any]:
    """A prompt that was never asked, and an answer."""
    asked = draw.choices(words, k=draw.randint(8, 60))
    if draw.random() < 0.02:
        told = draw.choice(PERSONAL).format(*asked[:2], i % 1_000_000, i % 256)
        asked.insert(draw.randrange(len(asked)), told)
    return {"prompt": " ".join(asked), "response": " ".join(draw.choices(words, k=draw.randint(10, 80)))}


def near(draw: random.Random, words: list[str], row: dict[str, Any]) -> dict[str, Any]:
    """An earlier prompt with another word at its end, and another answer."""
    asked = row["prompt"].split()
    asked[-1] = draw.choice(words)
    return {"prompt": " ".join(asked), "response": " ".join(draw.choices(words, k=draw.randint(10, 80)))}


def judgement(draw: random.Random, words: list[str]) -> dict[str, Any]:
    """Ratings mostly, then choices, then edits."""
    kind, other = draw.random(), " ".join(draw.choices(words, k=30))
    tags = {"tags": [draw.choice(("code", "letters", "travel"))], "group": draw.choice(("", "a", "b"))}
    if kind < 0.6:
        return {**tags, "rating": draw.choice((-1, 1, 1))}
    if kind < 0.85:
        chosen = draw.choice(("response", "other"))
        return {
            **tags,
            "other": other,
            "preferred": chosen,
            "shown_first": draw.choice(("response", "other")),
        }
    return {**tags, "better": other}


def import_(source: Path, store: Path) -> dict[str, Any]:
    """The command that people give."""
    from instructkit.cli.main import main

    try:
        main(["feedback", "import", str(source), "--store", str(store), "--json"])
    except SystemExit as ended:
        if ended.code:
            raise
    return {}


def prepare(source: Path, store: Path) -> dict[str, Any]:
    """Every step of preprocessing, as lora-update takes it, personal data and clusters of prompts included."""
    from instructkit.data.table import Table, View
    from instructkit.feedback import prepare as preprocessing
    from instructkit.feedback.personal import Redactor
    from instructkit.feedback.settings import Settings
    from instructkit.feedback.store import Filter, Store

    with Store.open(store) as opened:
        table = Table()
        for event in opened.events(Filter(consent=True)):
            table.append(event.as_row())
        rows = View(table, range(len(table)), lambda row: row)
        index = opened.clusters(0.8)
        done = preprocessing.prepare(rows, Settings(), seed=0, index=index, redact=Redactor().row)
    return {"outcomes": done.outcomes}


def next_update(source: Path, store: Path) -> dict[str, Any]:
    """What the update after one on all of these reads and prepares: the new events alone; adding them is not counted."""
    from instructkit.feedback import prepare as preprocessing
    from instructkit.feedback import reading
    from instructkit.feedback.personal import Redactor
    from instructkit.feedback.settings import Settings
    from instructkit.feedback.store import Store

    with contextlib.closing(sqlite3.connect(store)) as opened:
        asked = f"SELECT id FROM event ORDER BY seq DESC LIMIT 1 OFFSET {NEW}"
        (last,) = opened.execute(asked).fetchone()
    started = time.perf_counter()
    rows = reading.events_after(str(store), last).rows
    with Store.open(store) as opened:
        options = {"index": opened.clusters(0.8), "left_out": opened.left_out(last), "redact": Redactor().row}
        done = preprocessing.prepare(rows, Settings(), seed=0, **options)
    return {"seconds": time.perf_counter() - started, "outcomes": done.outcomes}


PARTS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "import": import_,
    "prepare": prepare,
    "next update": next_update,
}


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
    told |= {"processor_seconds": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}
    print("\n" + json.dumps(told))


def main(arguments: list[str]) -> int:
    """Measure all sizes, then print and write the table."""
    if arguments[:1] == ["--part"]:
        run_part(*arguments[1:])
        return 0
    sizes = [int(told) for told in arguments if told.isdigit()] or list(SIZES)
    parts = ["import"] if "--import-only" in arguments else list(PARTS)
    found: list[dict[str, Any]] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            source, store = Path(folder) / "events.jsonl", Path(folder) / "feedback.db"
            rows = events(size + NEW)
            written(source, itertools.islice(rows, size))
            for part in parts:
                if part == "next update":
                    written(source, rows)
                    measure("import", source, store)
                found.append({"events": size, "part": part, **measure(part, source, store)})
                print(found[-1], file=sys.stderr)
    write(found)
    return 0


def written(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """The rows as JSONL."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def write(found: list[dict[str, Any]]) -> None:
    """The figures as data and as a table."""
    lines = [
        "# The cost of feedback, by the number of events",
        "",
        f"Command: `python benchmarks/feedback_scale.py`; goal: {GOAL}. Machine: {os.cpu_count()} cores.",
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
    lines += [
        "",
        f"The next update reads and prepares {NEW:,} new events beside those that are in the store.",
    ]
    (RESULTS / "feedback_scale.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    told = json.dumps(found, indent=1) + "\n"
    (RESULTS / "feedback_scale.json").write_text(told, encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
