"""
Speed and memory of PPO beside TRL 1.12's, the last release that had a PPOTrainer, and beside the bare work.

    python benchmarks/ppo_vs_trl.py              both response lengths, both critics; about 25 minutes on two cores
    python benchmarks/ppo_vs_trl.py --lengths 24 --rollouts 3

Same model (SmolLM2-135M-Instruct, prepared by `make smollm2`), prompts, response length, batch, two epochs, LoRA r=16
on all linear layers, learned reward of the same size, one process. Workers run one after another, TRL's first and last, so
that a machine that warms up or slows down shows. TRL 1.12 gets an environment of its own. Writes
benchmarks/results/ppo_vs_trl.json and .md, and where a CUDA device is at hand the same with `_cuda` (bfloat16, batch 256).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from golden_trl112 import prepare

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ROOT / "benchmarks" / "ppo_vs_trl_parts"
RESULTS = ROOT / "benchmarks" / "results" / "ppo_vs_trl"
EPOCHS = 2
BATCHES = {"cpu": 16, "cuda": 256}

Figures = dict[str, Any]


def main() -> int:
    """Run the workers of every length, then print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", type=Path, default=ROOT / ".bench" / "trl112", help="home of TRL 1.12")
    parser.add_argument(
        "--model", type=Path, default=ROOT / "data/smollm2/model", help="made by recipes/smollm2/prepare.py"
    )
    parser.add_argument("--prompts", type=Path, default=ROOT / "data/smollm2/prompts.jsonl")
    parser.add_argument("--lengths", type=int, nargs="+", default=[24, 96], help="tokens of a response")
    parser.add_argument("--rollouts", type=int, default=5, help="of each worker; the first is not counted")
    parser.add_argument("--threads", default="2", help="of torch")
    options = parser.parse_args()
    if not (options.model / "config.json").exists():
        print(
            f"error: no model at {options.model}\nhint: run `make smollm2` first, or give --model",
            file=sys.stderr,
        )
        return 2
    python = prepare(options.env.resolve())
    pages = []
    for device in devices():
        found = {length: measured(length, device, options, python) for length in options.lengths}
        about = {
            "machine": machine(device),
            "batch": BATCHES[device],
            "rollouts": options.rollouts - 1,
            "command": f"benchmarks/ppo_vs_trl.py --lengths {' '.join(map(str, options.lengths))} --rollouts {options.rollouts}",
        }
        out = RESULTS.with_name(RESULTS.name + ("" if device == "cpu" else "_cuda"))
        out.with_suffix(".json").write_text(
            json.dumps({**about, "found": found}, indent=1) + "\n", encoding="utf-8"
        )
        pages.append(page(about, found))
        out.with_suffix(".md").write_text(pages[-1], encoding="utf-8")
    print("\n".join(pages))
    return 0


def devices() -> list[str]:
    """The CPU, and a CUDA device where one is at hand; without one that is said."""
    import torch

    if torch.cuda.is_available():
        return ["cpu", "cuda"]
    print(f"no CUDA device at hand: the table for one (bfloat16, batch {BATCHES['cuda']}) is skipped")
    return ["cpu"]


def measured(length: int, device: str, options: argparse.Namespace, python: Path) -> dict[str, Figures]:
    """The figures of every worker at one response length."""
    own = Path(sys.executable)
    kinds = {
        "TRL 1.12": (python, "theirs.py", {}),
        "head": (own, "ours.py", {"critic": "head"}),
        "adapter": (own, "ours.py", {"critic": "adapter"}),
        "SFT": (own, "sft.py", {}),
        "TRL 1.12, again": (python, "theirs.py", {}),
    }
    return {
        name: worker(*kind, length=length, device=device, options=options) for name, kind in kinds.items()
    }


def worker(
    python: Path, script: str, more: Figures, *, length: int, device: str, options: argparse.Namespace
) -> Figures:
    """One worker in a process of its own, so that its peak of memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        places = {
            "model": str(options.model.resolve()),
            "prompts": str(options.prompts.resolve()),
            "out": str(out),
        }
        wanted = {
            **places,
            **more,
            "length": length,
            "rollouts": options.rollouts,
            "bare": 5,
            "device": device,
            "batch": BATCHES[device],
        }
        quiet = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        if device == "cpu":
            quiet["CUDA_VISIBLE_DEVICES"] = ""
        environment = {**os.environ, **quiet, "OMP_NUM_THREADS": options.threads}
        paths = [str(WORKERS)] + ([str(ROOT)] if python == Path(sys.executable) else [])
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        command = [str(python), str(WORKERS / script), json.dumps(wanted)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{script} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        figures = json.loads(out.read_text(encoding="utf-8"))
        told = f"{statistics.median(figures['seconds']):.2f} s a rollout" if "seconds" in figures else ""
        print(
            f"{length:4} tokens  {script:10} {more or ''} {told} peak {figures['peak_bytes'] / 2**30:.2f} GiB",
            flush=True,
        )
        return figures


def ratios(found: dict[str, Figures]) -> list[tuple[str, float, str, float | None]]:
    """Each figure of the goal: what it is, what was measured, what was to be reached, and what the bare work alone reaches."""
    theirs = statistics.median(found["TRL 1.12"]["seconds"][1:] + found["TRL 1.12, again"]["seconds"][1:])
    their_peak = max(found[name]["peak_bytes"] for name in ("TRL 1.12", "TRL 1.12, again"))
    rows = []
    for critic, wanted in (("head", "at least 3"), ("adapter", "at least 2")):
        figures = found[critic]
        name = f"episodes per second, critic {critic}, against TRL 1.12"
        rows.append(
            (
                name,
                theirs / middle(figures["seconds"]),
                wanted,
                theirs / bare_rollout(critic, figures["bare"]),
            )
        )
    for critic in ("head", "adapter"):
        name = f"peak memory, critic {critic}, against TRL 1.12"
        rows.append((name, found[critic]["peak_of_training"] / their_peak, "at most 0.40", None))
    for critic in ("head", "adapter"):
        phases, bare = found[critic]["phases"], found[critic]["bare"]
        # With a head the reading before the first epoch is that epoch's forward pass.
        update = middle(phases["time/update"])
        if critic == "head":
            update += middle(phases["time/read"]) - middle(phases["time/reference"])
        name = f"update, tokens per second, critic {critic}, against bare passes"
        rows.append((name, (bare_rollout(critic, bare) - bare["generate"]) / update, "at least 0.8", None))
        name = f"generation, tokens per second, critic {critic}, against a bare generate"
        rows.append((name, bare["generate"] / middle(phases["time/rollout"]), "at least 0.9", None))
    sft = found["adapter"]["peak_of_training"] / found["SFT"]["peak_bytes"]
    rows.append(("peak memory, critic adapter, against LoRA SFT", sft, "at most 1.35", None))
    return rows


def bare_rollout(critic: str, bare: Figures) -> float:
    """Seconds of what no PPO can leave out: `generate`, and one pass an epoch, two with a critic of its own."""
    return bare["generate"] + EPOCHS * (bare["learn"] + (bare["value"] if critic == "adapter" else 0.0))


def middle(values: list[float]) -> float:
    """The median without the first, which warms up."""
    return statistics.median(values[1:] or values)


def machine(device: str) -> str:
    """What it ran on, without names of places."""
    import peft
    import torch
    import transformers
    import trl

    versions = ", ".join(
        f"{library.__name__} {library.__version__}" for library in (torch, trl, transformers, peft)
    )
    place = (
        f"{os.cpu_count()} cores ({platform.machine()}), no GPU"
        if device == "cpu"
        else torch.cuda.get_device_name(0)
    )
    return f"{place}; {versions}; beside it trl 1.12.0"


def page(about: Figures, found: dict[int, dict[str, Figures]]) -> str:
    """The kept table."""
    lines = [
        "# PPO beside TRL 1.12",
        "",
        f"Command: `python {about['command']}`. Machine: {about['machine']}.",
        "",
    ]
    lines += [
        f"Batch {about['batch']}, {EPOCHS} epochs, LoRA r=16, learned reward on the backbone;"
        f" medians of {about['rollouts']} rollouts.",
        "",
    ]
    lines += [
        "| figure | to reach | " + " | ".join(f"{length} tokens | bare work" for length in found) + " |"
    ]
    lines += ["|---|---|" + "---|---|" * len(found)]
    columns = [ratios(figures) for figures in found.values()]
    for row in zip(*columns, strict=True):
        lines.append(
            f"| {row[0][0]} | {row[0][2]} | "
            + " | ".join(f"{x:.2f} | {bare_told(bare)}" for _, x, _, bare in row)
            + " |"
        )
    lines += [
        "",
        "Bare work: the same ratio for a program that does nothing but `generate` and the forward and backward passes",
    ]
    lines += [
        "of the update in plain PyTorch, without rewards, reference, old values, losses or optimizer, measured in the same"
    ]
    lines += ["process as ours. What is to be reached lies beyond it where that figure is the smaller one."]
    lines += ["", "| worker | " + " | ".join(f"{length} tokens: s a rollout, GiB" for length in found) + " |"]
    lines += ["|---|" + "---|" * len(found)]
    for name in next(iter(found.values())):
        lines.append(f"| {name} | " + " | ".join(told(figures[name]) for figures in found.values()) + " |")
    return "\n".join(lines) + "\n"


def bare_told(value: float | None) -> str:
    """The ratio that the bare work alone reaches, where there is one."""
    return "" if value is None else f"{value:.2f}"


def told(figures: Figures) -> str:
    """Seconds and memory of one worker."""
    seconds = f"{middle(figures['seconds']):.2f}, " if "seconds" in figures else ""
    return seconds + f"{figures.get('peak_of_training', figures['peak_bytes']) / 2**30:.2f}"


if __name__ == "__main__":
    sys.exit(main())
