"""
What each way of learning from a reward model makes of the same number of episodes: the judge's score against the KL it cost.

    python benchmarks/ppo_quality.py                       five seeds, three coefficients; about an hour on two cores
    python benchmarks/ppo_quality.py --seeds 1 --betas 0.05 --methods "TRL RLOO" --rates 1e-4 2e-4 4e-4

On the embedded default: for each seed the first two stages are trained as `make train-all` trains them; then our PPO, TRL 1.12's
PPO (in an environment of its own), TRL's RLOO and GRPO, and best-of-n start from the same policy and reward model. Held-out
prompts are answered by one function for all, and judged by the world's programmatic judge, which none of them sees.
Ours takes the learning rate of recipes/ppo.yaml; the others' was chosen from `--rates` on development seeds (below
100), whose answers are those to training prompts: held-out prompts are answered for the seeds that are reported alone.
Delete the folder of `--work` after a change to the code; policies that are there are measured and not trained again.

Writes benchmarks/results/ppo_quality.{json,md,svg}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from golden_trl112 import prepare
from ppo_quality_parts import frontier

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ROOT / "benchmarks" / "ppo_quality_parts"
RESULTS = ROOT / "benchmarks" / "results" / "ppo_quality"
METHODS = ("instructkit PPO", "TRL 1.12 PPO", "TRL RLOO", "TRL GRPO", "best of n")
RATES = {"instructkit PPO": 2e-4, "TRL 1.12 PPO": 2e-4, "TRL RLOO": 2e-4, "TRL GRPO": 2e-4}
BEST_OF = (2, 4, 16)
FIRST_REPORTED_SEED = 100  # those below are for development and answer training prompts

Point = dict[str, Any]


def main() -> int:
    """Train what is not there yet, measure everything, write the table and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104, 105])
    parser.add_argument("--betas", type=float, nargs="+", default=[0.02, 0.05, 0.2])
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates to try on development seeds")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--env", type=Path, default=ROOT / ".bench" / "trl112", help="home of TRL 1.12")
    parser.add_argument("--lanes", type=int, default=2, help="trainings at once, one thread each")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "quality")
    options = parser.parse_args()
    python = prepare(options.env.resolve())
    with ThreadPoolExecutor(options.lanes) as lanes:
        list(lanes.map(lambda seed: line(seed, options.work), options.seeds))
        jobs = [
            (seed, method, beta, rate)
            for seed in options.seeds
            for method in options.methods
            for beta in options.betas
            for rate in options.rates or [RATES.get(method)]
        ]
        points = list(lanes.map(lambda job: point(*job, options=options, python=python), jobs))
    if options.rates or min(options.seeds) < FIRST_REPORTED_SEED or options.methods != list(METHODS):
        return 0  # development: nothing is kept but the lines above
    RESULTS.with_suffix(".json").write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    text = page(points, options)
    RESULTS.with_suffix(".md").write_text(text, encoding="utf-8")
    RESULTS.with_suffix(".svg").write_text(plot(points, options), encoding="utf-8")
    print(text)
    return 0


def line(seed: int, work: Path) -> None:
    """Stages one and two of the embedded default with this seed."""
    place = (work / str(seed)).resolve()
    place.mkdir(parents=True, exist_ok=True)
    for stage in ("sft", "reward"):
        recipe = ROOT / "recipes" / f"{stage}.yaml"
        run(
            [sys.executable, "-m", "instructkit", stage, str(recipe), f"run.seed={seed}", "--if-changed"],
            place,
        )
    run([sys.executable, str(WORKERS / "ours.py"), json.dumps({"method": "prompts", "seed": seed})], place)


def point(
    seed: int, method: str, beta: float, rate: float | None, *, options: argparse.Namespace, python: Path
) -> Point:
    """One method with one coefficient: the judge's score, the KL and the length of its answers."""
    place = (options.work / str(seed)).resolve()
    name = f"{method.replace(' ', '-').lower()}-{beta}-{rate}"
    out = place / f"{name}.json"
    if not out.exists():
        n = BEST_OF[options.betas.index(beta) % len(BEST_OF)]
        wanted = {
            "method": method,
            "seed": seed,
            "beta": beta,
            "rate": rate,
            "n": n,
            "name": name,
            "prompts": "demo/prompts-held-out" if seed >= FIRST_REPORTED_SEED else "demo/prompts",
        }
        if method == "TRL 1.12 PPO" and not (place / "runs" / name / "model.safetensors").exists():
            run([str(python), str(WORKERS / "trl112.py"), json.dumps(wanted)], place)
        run([sys.executable, str(WORKERS / "ours.py"), json.dumps(wanted)], place)
    found = json.loads(out.read_text(encoding="utf-8"))
    told = f"{seed} {method:16} beta {beta:<5} rate {rate}"
    print(f"{told} judge {found['judge']:.3f} KL {found['kl']:.2f}", flush=True)
    return {"seed": seed, "method": method, "beta": beta, **found}


def run(command: list[str], place: Path) -> None:
    """One process with one thread, in the folder of its seed; its output is shown when it fails."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    environment["PYTHONPATH"] = str(ROOT) if command[0] == sys.executable else ""
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def plot(points: list[Point], options: argparse.Namespace) -> str:
    """The judge's score against the KL, as a picture."""
    series = {}
    for method in METHODS:
        settings = [
            [p for p in points if (p["method"], p["beta"]) == (method, beta)] for beta in options.betas
        ]
        series[method] = [
            frontier.Dot(
                *(statistics.fmean(p[name] for p in mine) for name in ("kl", "judge")),
                *(half_width([p[name] for p in mine]) for name in ("kl", "judge")),
            )
            for mine in settings
        ]
    return frontier.drawn(series, x_label="KL to the SFT policy, nats an answer", y_label="judge's score")


def page(points: list[Point], options: argparse.Namespace) -> str:
    """Means over seeds with their 95 % intervals (Student's t), method by method."""
    lines = [
        "# What PPO makes of the same episodes",
        "",
        f"Command: `python benchmarks/ppo_quality.py --betas {' '.join(map(str, options.betas))}`; seeds {options.seeds}.",
        "",
        "Every held-out prompt is answered eight times: with one answer each, a score "
        "moves by 0.14 for that alone (60 policies, standard deviation).",
        "",
    ]
    lines += [
        "| method | beta (n) | judge's score | KL (nats/answer) | length (tokens) |",
        "|---|---|---|---|---|",
    ]
    for method in METHODS:
        for i, beta in enumerate(options.betas):
            mine = [p for p in points if (p["method"], p["beta"]) == (method, beta)]
            setting = BEST_OF[i % len(BEST_OF)] if method == "best of n" else beta
            told = " | ".join(spread([p[name] for p in mine]) for name in ("judge", "kl", "length"))
            lines.append(f"| {method} | {setting} | {told} |")
    return "\n".join([*lines, *compared(points, options)]) + "\n"


def compared(points: list[Point], options: argparse.Namespace) -> list[str]:
    """Our judge's score less each other trainer's at the KL of ours: both settings of theirs beside it, joined by a line."""
    lines = [
        "",
        "| against | settings of ours within their range of KL | ours less theirs at equal KL |",
        "|---|---|---|",
    ]
    for method in METHODS[1:]:
        by_seed: dict[int, list[float]] = {}
        for seed in options.seeds:
            theirs = sorted(
                (p["kl"], p["judge"]) for p in points if (p["seed"], p["method"]) == (seed, method)
            )
            for mine in points:
                if (mine["seed"], mine["method"]) != (seed, METHODS[0]):
                    continue
                level = on_line(theirs, mine["kl"])
                if level is not None:
                    by_seed.setdefault(seed, []).append(mine["judge"] - level)
        count = sum(map(len, by_seed.values()))
        means = [statistics.fmean(found) for found in by_seed.values()]
        told = spread(means) if means else "no common range"
        lines.append(f"| {method} | {count} of {len(options.seeds) * len(options.betas)} | {told} |")
    return [
        *lines,
        "",
        "Seeds are the units: the mean of a seed's settings, then mean and 95 % interval over seeds (Student's t).",
    ]


def on_line(points: list[tuple[float, float]], x: float) -> float | None:
    """The height at x of the line through points sorted by x; None outside their range."""
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else (y0 + y1) / 2
    return None


def spread(values: list[float]) -> str:
    """Mean and half the width of its 95 % interval."""
    return f"{statistics.fmean(values):.3f} ± {half_width(values):.3f}"


def half_width(values: list[float]) -> float:
    """Half the width of the 95 % interval of a mean (Student's t); 0 for a single seed, which has none."""
    if len(values) < 2:
        return 0.0
    students_t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
    return students_t.get(len(values), 1.96) * statistics.stdev(values) / len(values) ** 0.5


if __name__ == "__main__":
    sys.exit(main())
