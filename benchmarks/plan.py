"""
Predicted memory beside measured memory, and how long a plan takes.

    python benchmarks/plan.py                      after `make smollm2`; about 25 minutes on two cores
    python benchmarks/plan.py --stages sft --kinds lora

For sft, reward and ppo, with all weights, LoRA and a 4-bit base, at two batch shapes with SmolLM2-135M: `--plan --json`
predicts, then the run's own trainer takes four steps on its longest rows in a process of its own. Measured is the peak of
resident memory above the interpreter's own after all imports; on a GPU, what torch had allocated.
Writes benchmarks/results/plan.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MEASURE = ROOT / "benchmarks" / "plan_parts" / "measure.py"
RESULTS = ROOT / "benchmarks" / "results" / "plan"
KINDS = {
    "full": ["lora=null"],
    "lora": ["lora={}"],
    "4bit": ["lora={}", "model.quantization=4bit"],
}
STAGES = {
    "sft": ["data.train=data/smollm2/sft.jsonl", "trainer.assistant_only_loss=false"],
    "reward": ["data.train=data/smollm2/comparisons.jsonl"],
    "ppo": [
        "reward=[{model: runs/smollm2/reward}]",
        "data.train=data/smollm2/prompts.jsonl",
        "trainer.steps_per_generation=1",
        "trainer.num_iterations=2",
    ],
}
SHAPES = {
    "sft": {
        "small": ["trainer.per_device_train_batch_size=8"],
        "large": ["trainer.per_device_train_batch_size=24"],
    },
    "reward": {
        "small": ["trainer.per_device_train_batch_size=4"],
        "large": ["trainer.per_device_train_batch_size=12"],
    },
    "ppo": {
        "small": ["trainer.per_device_train_batch_size=8", "trainer.max_completion_length=24"],
        "large": ["trainer.per_device_train_batch_size=16", "trainer.max_completion_length=64"],
    },
}
# What a run of each stage loads before its first line of ours; a plan builds the same trainer, on paper.
TRAINERS = {
    "sft": "from trl import SFTTrainer",
    "reward": "from trl import RewardTrainer",
    "ppo": "from trl import RLOOTrainer",
}
LOADING = (
    "import json, bitsandbytes, peft; from transformers import LlamaForCausalLM; {}; print(json.dumps({{}}))"
)
COMMON = ["data.eval=null", "gates={}", "run.output=runs/no-such-plan"]


def main() -> int:
    """Predict and measure every cell, then print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--place", type=Path, default=ROOT, help="folder with data/smollm2 and runs/smollm2")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument(
        "--predict",
        action="store_true",
        help="predict anew beside what was measured before and is in the results",
    )
    options = parser.parse_args()
    kept = RESULTS.with_suffix(".json")
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    place = options.place.resolve()
    if not (place / "data/smollm2/model/config.json").exists():
        print(
            f"error: no data/smollm2/model in {place}\nhint: run `make smollm2` first, or give --place",
            file=sys.stderr,
        )
        return 2
    for stage in options.stages:
        for kind in options.kinds:
            for shape in SHAPES[stage]:
                found = cell(stage, kind, shape, place, known if options.predict else ())
                known = [each for each in known if not same(each, found)] + [found]
                keep(known)
    print(page(known))
    return 0


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two results are of one cell."""
    return all(one[name] == other[name] for name in ("stage", "kind", "shape"))


def keep(cells: list[dict[str, Any]]) -> None:
    """Write the table, in its order, after every cell: a run that is cut off, or of some stages alone, leaves the others."""
    order = [(stage, kind, shape) for stage in STAGES for kind in KINDS for shape in SHAPES[stage]]
    cells.sort(key=lambda each: order.index((each["stage"], each["kind"], each["shape"])))
    RESULTS.with_suffix(".json").write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(page(cells), encoding="utf-8")


def cell(
    stage: str, kind: str, shape: str, place: Path, known: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """One recipe, predicted and measured; what is known was measured before."""
    names = {"stage": stage, "kind": kind, "shape": shape}
    measured = next((each for each in known if names.items() <= each.items()), None)
    model = f"model.name={place / 'data/smollm2/model'}"
    overrides = [model, *STAGES[stage], *COMMON, *KINDS[kind], *SHAPES[stage][shape]]
    recipe = str(ROOT / "recipes" / f"{stage}.yaml")
    started = time.perf_counter()
    plan = process(["-m", "instructkit", stage, recipe, "--plan", "--json", *overrides], place)
    took = time.perf_counter() - started
    started = time.perf_counter()
    process(["-c", LOADING.format(TRAINERS[stage])], place)
    loading = time.perf_counter() - started
    measured = measured or process([str(MEASURE), stage, *overrides], place)
    found = {
        **names,
        "batch": plan["longest_batch"],
        "predicted": plan["memory"]["predicted"],
        "weights": sum(plan["memory"]["weights"].values()) + plan["memory"]["optimizer"],
        "phase": max(plan["memory"]["phases"].values()),
        "measured": measured["measured"],
        "device": measured["device"],
        "seconds_of_plan": took,
        "seconds_of_loading": loading,
    }
    off = found["predicted"] / found["measured"] - 1
    print(
        f"{stage:7}{kind:5}{shape:6} predicted {found['predicted'] / 2**30:.2f} "
        f"measured {found['measured'] / 2**30:.2f} {off:+.1%}",
        flush=True,
    )
    return found


def process(arguments: list[str], place: Path) -> dict[str, Any]:
    """What a process of its own prints as JSON."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run(
        [sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    told = done.stdout.strip()
    # A plan is the whole of it; a trainer logs before the measured figures, which are the last line.
    return json.loads(told if "\n{" not in told else told.rpartition("\n")[2])


def page(cells: list[dict[str, Any]]) -> str:
    """The table."""
    import torch

    where = (
        torch.cuda.get_device_name(0)
        if torch.cuda.is_available()
        else f"{os.cpu_count()} cores, {platform.libc_ver()[0]}"
    )
    worst = max(abs(c["predicted"] / c["measured"] - 1) for c in cells)
    slowest = max(c["seconds_of_plan"] for c in cells)
    lines = [
        "# Predicted and measured memory",
        "",
        "Command: `python benchmarks/plan.py`, and with `--predict` the plans of a later day beside what was measured then. "
        f"Machine: {where}; torch {torch.__version__}; SmolLM2-135M, float32 on a CPU.",
        "",
        "A CPU allocator's share is fitted to these very cells (`instructkit/plan/memory.py`); tensors are counted.",
        "",
        "| stage | weights | longest batch | predicted (GiB) | measured (GiB) | off by | seconds of plan | of loading |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in cells:
        sizes = [f"{c[name] / 2**30:.2f}" for name in ("predicted", "measured")]
        batch = f"{c['batch']['rows']} x {c['batch']['tokens']}"
        off = f"{c['predicted'] / c['measured'] - 1:+.1%}"
        lines.append(
            f"| {c['stage']} | {c['kind']} | {batch} | {' | '.join(sizes)} | {off} | {c['seconds_of_plan']:.1f} | "
            f"{c['seconds_of_loading']:.1f} |"
        )
    lines += [
        "",
        f"Largest deviation {worst:.1%} (to reach: 15 %); slowest plan {slowest:.1f} s (to reach: 10 s).",
        "",
        "The last column is a process that only imports the stage's trainer, PEFT, bitsandbytes and the model's class: "
        "a plan has to, since it builds on paper what the run will build.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
