"""
One long PPO run on human-rated text: reward, independent judge, KL and length on held-out prompts as training goes on.

    make smollm2 && python benchmarks/smollm2_long.py        three times the recipe's episodes; about 40 minutes on two cores

Takes up the SFT policy and the reward model of `make smollm2` and trains by recipes/smollm2/ppo.yaml with more steps. Every
24 steps the 150 held-out prompts are answered, with randomness of their own; neither the reward model nor PPO sees the judge.
Writes benchmarks/results/smollm2_long.{json,md,svg}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "smollm2_long"
STEPS, EVERY, PER_ROLLOUT, ROWS = 312, 24, 4, 32
CURVES = {
    "eval_objective/scores_raw": "reward model's score",
    "eval_judge": "judge's score (-1 to 1)",
    "eval_objective/kl": "KL to the SFT policy (nats an answer)",
    "eval_completions/mean_length": "length (tokens)",
}
WIDTH, HEIGHT, MARGIN = 340, 190, 46


def main() -> int:
    """Train unless the run is there, then draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/smollm2/ppo-long"))
    options = parser.parse_args()
    if not (options.run / "metrics.jsonl").exists():
        train(options.run)
    found = curves(options.run / "metrics.jsonl")
    RESULTS.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".svg").write_text(drawn(found), encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(page(found), encoding="utf-8")
    print(page(found))
    return 0


def train(run: Path) -> None:
    """The recipe with more steps and held-out measurements; a gate that says no (exit code 3) is a result too."""
    told = [f"trainer.max_steps={STEPS}", "trainer.eval_on_start=true", "trainer.eval_strategy=steps"]
    told.append(f"trainer.eval_steps={EVERY}")
    recipe = str(ROOT / "recipes" / "smollm2" / "ppo.yaml")
    command = [sys.executable, "-m", "instructkit", "ppo", recipe, *told, f"run.output={run}"]
    if subprocess.run(command).returncode not in (0, 3):
        raise SystemExit("the training failed")


def curves(metrics: Path) -> dict[str, list[tuple[int, float]]]:
    """Each figure as `(episodes, value)`, in the order of training."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return {
        name: [(row["step"] // PER_ROLLOUT * ROWS, row[name]) for row in rows if name in row]
        for name in CURVES
    }


def page(found: dict[str, list[tuple[int, float]]]) -> str:
    """The figures as a table."""
    lines = [
        "# One long run on human-rated text",
        "",
        "Command: `python benchmarks/smollm2_long.py`; 150 held-out prompts.",
        "",
    ]
    lines += ["| episodes | " + " | ".join(CURVES.values()) + " |", "|---|" + "---|" * len(CURVES)]
    for points in zip(*found.values(), strict=True):
        lines.append(f"| {points[0][0]} | " + " | ".join(f"{value:.3f}" for _, value in points) + " |")
    return "\n".join(lines) + "\n"


def drawn(found: dict[str, list[tuple[int, float]]]) -> str:
    """Four small plots side by side, two and two."""
    panels = [
        panel(CURVES[name], points, (i % 2) * WIDTH, (i // 2) * HEIGHT)
        for i, (name, points) in enumerate(found.items())
    ]
    size = f'viewBox="0 0 {2 * WIDTH} {2 * HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *panels, "</svg>"]) + "\n"


def panel(title: str, points: list[tuple[int, float]], left: int, top: int) -> str:
    """One curve over episodes."""
    most, values = max(x for x, _ in points), [y for _, y in points]
    low, high = min(values), max(values)
    gap = 0.08 * ((high - low) or 1.0)
    low, high = low - gap, high + gap

    def place(x: float, y: float) -> str:
        across = left + MARGIN + x / most * (WIDTH - MARGIN - 16)
        return f"{across:.1f},{top + 26 + (high - y) / (high - low) * (HEIGHT - 26 - 30):.1f}"

    bottom = top + HEIGHT - 30
    parts = [f'<text x="{left + MARGIN}" y="{top + 16}" font-weight="bold">{title}</text>']
    parts.append(
        f'<path d="M{left + MARGIN} {top + 26}V{bottom}H{left + WIDTH - 16}" fill="none" stroke="#333"/>'
    )
    for value, y in ((high, top + 32), (low, bottom)):
        parts.append(f'<text x="{left + MARGIN - 5}" y="{y}" text-anchor="end">{value:.2f}</text>')
    parts.append(f'<text x="{left + WIDTH - 16}" y="{bottom + 14}" text-anchor="end">{most} episodes</text>')
    line = " ".join(place(x, y) for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#0b6e4f" stroke-width="1.5"/>')
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
