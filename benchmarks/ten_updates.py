"""
Ten updates in a row, each from new feedback above the one before: what is left of everything else.

    python benchmarks/ten_updates.py            about 6 minutes on two cores, after `python benchmarks/harms.py` made the parent
    python benchmarks/ten_updates.py --seed 0   development: prints, and keeps no table

Every round brings five weeks of the demo users' feedback of another seed, imported into one store; the update goes on from the
adapter in force and is measured on that round's held-out events. Travellers grow tired of a wish: each time they want another
one in the place of the last, so there is something to learn every time. General loss is held against the first parent.
Writes benchmarks/results/ten_updates.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from harms_parts.one import PARENT, load, quietly, write_rows

from instructkit.data.demo import users, world
from instructkit.data.sources import load_rows
from instructkit.models.generate import row_likelihoods
from instructkit.runs.read import read_record
from instructkit.stages.lora_update.train import encoded_demonstrations

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "ten_updates.md"
RECIPE = ROOT / "recipes" / "lora-update.yaml"
FIRST_REPORTED_SEED, DRIFT_MAX = 100, 0.01
WISHES = (  # of five to eight tokens, since one that has to be spelt would make answers longer
    world.WISH,
    "Tell me about it!",
    "It is a good city!",
    "Take me there, please!",
    "Ask people about it!",
    "Have a happy trip!",
    "There is much to see!",
    "Write to me, please!",
    "Go far, see much!",
    "I need a trip!",
)
UPDATES = len(WISHES)
ANSWERS = ("response", "better", "other")


def main() -> int:
    """Make the updates, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=200, help="of the first round")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "harms", help="where runs/ppo lies")
    options = parser.parse_args()
    os.chdir(options.work)
    place = Path("ten") / str(options.seed)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    parent = general_loss(PARENT)
    rounds = [one_round(place, options.seed + i, i + 1, parent) for i in range(UPDATES)]
    text = page(rounds, options.seed)
    print(text)
    if options.seed >= FIRST_REPORTED_SEED:
        RESULTS.write_text(text, encoding="utf-8")
    return 0


def one_round(place: Path, seed: int, number: int, parent: float) -> dict[str, Any]:
    """Import a round's feedback, update, and read the general loss of what is in force then."""
    events, held_out, store = (
        place / f"{number}.jsonl",
        place / f"{number}-held-out.jsonl",
        place / "feedback.db",
    )
    write_rows(events, wanting(number, users.feedback(seed, held_out=False)))
    write_rows(held_out, wanting(number, users.feedback(seed, held_out=True)))
    quietly(["feedback", "import", str(events), "--store", str(store), "--consent"])
    run = place / "runs" / f"{number:02d}"
    told = [
        f"feedback.events={store}",
        f"feedback.eval={held_out}",
        "feedback.mode=auto",
        f"run.seed={seed}",
        f"run.output={run}",
    ]
    quietly(["lora-update", str(RECIPE), *told, "--quiet"])
    record = read_record(run)
    current = place / "runs" / "chains" / "default" / "current"
    found = {
        "number": number,
        "mode": record["mode"][0],
        "verdict": record["verdict"],
        "scale": record["scale"],
        "loss": general_loss(str(current) if current.exists() else PARENT),
        "parent": parent,
        "failed": [gate["name"] for gate in record["gates"] if gate["verdict"] in ("failed", "undecided")],
    }
    print(found, flush=True)
    return found


def wanting(number: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as of a turn: later, with its wish where one is, and with the one before in answers to travellers without any."""
    before, now = (f" {WISHES[number - 2]}" if number > 1 else "", f" {WISHES[number - 1]}")
    later = (number - 1) * timedelta(weeks=users.WEEKS + 1)  # the last one is held out

    def text(answer: str, journey: bool) -> str:
        bare = answer.removesuffix(f" {world.WISH}")
        return bare + (now if bare != answer else before if journey else "")

    def turned(row: dict[str, Any]) -> dict[str, Any]:
        journey = users.JOURNEYS in row["tags"]
        texts = {name: text(row[name], journey) for name in ANSWERS if name in row}
        return row | texts | {"time": (datetime.fromisoformat(row["time"]) + later).isoformat()}

    return [turned(row) for row in rows]


def general_loss(folder: str) -> float:
    """Nats a token of the demo's held-out rows of everything."""
    model, tokenizer = load(folder)
    rows = encoded_demonstrations(tokenizer, load_rows("demo/general-held-out", kind="sft", seed=0).rows)
    found = row_likelihoods(model, rows, pad_id=tokenizer.pad_token_id)
    return sum(row.nll for row in found) / sum(row.tokens for row in found)


def page(rounds: list[dict[str, Any]], seed: int) -> str:
    """One row an update."""
    drift = rounds[-1]["loss"] / rounds[-1]["parent"] - 1
    lines = [
        "# Ten updates in a row",
        "",
        f"Command: `python benchmarks/ten_updates.py`; rounds of the seeds {seed} to {seed + UPDATES - 1}, each with a wish of "
        f"its own. To reach: after ten updates the general held-out loss is at most {DRIFT_MAX:.0%} above the first parent's. "
        f"Reached: {drift:+.1%}.",
        "",
        "| update | mode | verdict | scale | general loss in force (nats/token) | above the first parent | gates that refused |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in rounds:
        lines.append(
            f"| {each['number']} | {each['mode']} | {each['verdict']} | {each['scale']:g} | {each['loss']:.4f} | "
            f"{each['loss'] / each['parent'] - 1:+.1%} | {'; '.join(each['failed']) or '-'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
