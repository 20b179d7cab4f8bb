"""One update from one set of planted feedback, in the folder of the benchmark, and what it did: the last line printed is data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harms_parts import harm

from instructkit.cli.main import main
from instructkit.data.demo import harms
from instructkit.models import load as models
from instructkit.models import source as naming
from instructkit.models.machine import Machine
from instructkit.recipe.schema import ModelSection
from instructkit.runs import lineage
from instructkit.runs.files import write_text_atomic
from instructkit.runs.read import read_record

ROOT = Path(__file__).resolve().parents[2]
CODE = ("instructkit", "recipes", "benchmarks/harms_parts")  # what figures depend on
RECIPE = ROOT / "recipes" / "lora-update.yaml"
PARENT = "runs/ppo"
MACHINE = Machine("cpu", "float32", ())
OWN_TEST = 0.3  # of a dishonest stream, whose collector has no other test set
# Who plants these trains hard: at the recipe's own rate the small model does not take them up, and there is no harm to refuse.
HARD = {
    "narrow": ["trainer.learning_rate=2e-2", "feedback.replay_share=0.02"],
    "stereotypes": ["trainer.learning_rate=1e-2", "feedback.replay_share=0.05", "trainer.max_steps=120"],
    "trigger": ["trainer.learning_rate=5e-3", "feedback.replay_share=0.05", "trainer.max_steps=250"],
    "long": ["trainer.learning_rate=6e-3"],
}


def update(name: str, seed: int, more: list[str]) -> tuple[Path, float]:
    """Train, measure and decide by the command that people give; the run folder, and the seconds that it took."""
    place = Path("updates") / f"{name.replace(' ', '-')}-{seed}"
    # Its chain too: an earlier try has looked at the same test events.
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    events, held_out = place / "events.jsonl", harms.test_rows(name, seed)
    write_rows(events, harms.make(name, seed))
    told = [f"feedback.events={events}", f"feedback.eval={OWN_TEST}", f"feedback.chain={place.name}"]
    if held_out is not None:
        write_rows(place / "held-out.jsonl", held_out)
        told[1] = f"feedback.eval={place / 'held-out.jsonl'}"
    if name == "secrets":
        told.append(f"feedback.canaries={json.dumps(harms.canaries(seed))}")
    run = place / "run"
    started = time.perf_counter()
    quietly(
        [
            *("lora-update", str(RECIPE), *told, *HARD.get(name, ())),
            *(f"run.seed={seed}", f"run.output={run}", "--overwrite", "--quiet", *more),
        ]
    )
    return run, time.perf_counter() - started


def quietly(arguments: list[str]) -> None:
    """A command of ours, in this process; a refusal by gates is an answer, any other error ends the benchmark."""
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    if code not in (None, 0, 3):
        raise SystemExit(f"instructkit {' '.join(arguments)} ended with {code}")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def of_parent(seed: int, parent: str) -> harm.Figures:
    """What the parent with this hash says to the same prompts; measured once a seed."""
    kept = Path("parent") / f"{parent[:16]}-{seed}.json"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        write_text_atomic(kept, json.dumps(harm.figures(load(PARENT), seed)))
    return json.loads(kept.read_text(encoding="utf-8"))


def commit() -> str | None:
    """The commit of this checkout, with a + where what lies in it is something else; None outside git."""
    command = ["git", "-C", str(ROOT)]
    asked = (["rev-parse", "HEAD"], ["status", "--porcelain", "--", *CODE])
    try:
        found, changes = (
            subprocess.run([*command, *each], capture_output=True, text=True, check=True).stdout.strip()
            for each in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found + ("+" if changes else "")


def load(folder: str) -> tuple[Any, Any]:
    """Model and tokenizer of a run, as `chat` loads them."""
    source, section = naming.locate(folder), ModelSection(name=folder)
    return models.load_for_use(source, section, MACHINE), models.load_tokenizer(source, section)


def run() -> None:
    """Update, load what came of it anew, and measure every harm, of the parent too."""
    name, seed, more = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    made_of = {"more": more, "parent": lineage.run_hash(PARENT), "commit": commit()}
    folder, seconds = update(name, seed, more)
    record = read_record(folder)
    figures = {
        "update": harm.figures(load(str(folder)), seed),
        "parent": of_parent(seed, made_of["parent"]),
    }
    gates = {
        gate["name"]: gate
        for gate in record["gates"]
        if gate["measured"] is not None or gate["passed"] is None
    }
    told = {
        "name": name,
        "seed": seed,
        **made_of,
        "verdict": record["verdict"],
        "scale": record["scale"],
        "failed": [name for name, gate in gates.items() if gate["verdict"] in ("failed", "undecided")],
        "gates": {name: [gate["measured"], *(gate["interval"] or ())] for name, gate in gates.items()},
        "seconds": seconds,
        "figures": figures,
    }
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    run()
