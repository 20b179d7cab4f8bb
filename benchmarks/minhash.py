"""
Which library makes the MinHash signatures of prompts: how fast, how large, and how near to the exact Jaccard similarity.

    python benchmarks/minhash.py               a minute on two cores; needs rensa and datasketch

Pairs of random texts, the second made of the first by changing words; 5-word shingles as in `feedback.sketches`. Each
library runs in a process of its own. The last columns are what the bands of the index find of pairs as alike as that.
Writes benchmarks/results/minhash.md.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np

from instructkit.data.near_duplicates import BANDS, rows_of, shingles

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "results" / "minhash.md"
PAIRS = 5000
ROWS = rows_of(0.8)
PERMUTATIONS = BANDS * ROWS
Signed = Callable[[list[list[str]]], np.ndarray]


def pairs() -> list[tuple[list[str], list[str]]]:
    """Shingles of texts of 20 to 120 words, of which up to 12 are changed."""
    draw = random.Random(0)
    words = [f"w{i}" for i in range(5000)]
    found = []
    for _ in range(PAIRS):
        text = draw.choices(words, k=draw.randint(20, 120))
        other = list(text)
        for _ in range(draw.randint(0, 12)):
            other[draw.randrange(len(other))] = draw.choice(words)
        found.append((shingles(text), shingles(other)))
    return found


def rensa(name: str) -> Signed:
    """The signatures of one of its two algorithms."""
    import rensa as library

    kind = getattr(library, name)
    return lambda texts: np.array(
        [m.digest() for m in kind.from_token_sets(texts, num_perm=PERMUTATIONS, seed=1)]
    )


def datasketch() -> Signed:
    """The signatures of its MinHash."""
    from datasketch import MinHash

    def signed(texts: list[list[str]]) -> np.ndarray:
        sets = ([token.encode() for token in text] for text in texts)
        return np.array([made.hashvalues for made in MinHash.generator(sets, num_perm=PERMUTATIONS, seed=1)])

    return signed


LIBRARIES: dict[str, Callable[[], Signed]] = {
    "rensa RMinHash": lambda: rensa("RMinHash"),
    "rensa CMinHash": lambda: rensa("CMinHash"),
    "datasketch MinHash": datasketch,
}


def measure(name: str) -> dict[str, float]:
    """Figures of one library, in this process."""
    made = pairs()
    exact = np.array([len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in made])
    signed = LIBRARIES[name]()
    signed([made[0][0]])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    first, second = signed([a for a, _ in made]), signed([b for _, b in made])
    took = time.perf_counter() - started
    error = (first == second).mean(axis=1) - exact
    banded = (first == second).reshape(PAIRS, BANDS, ROWS).all(axis=2).any(axis=1)
    return {
        "microseconds": took / (2 * PAIRS) * 1e6,
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "bias": float(error.mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "expected_rmse": float(np.sqrt((exact * (1 - exact) / PERMUTATIONS).mean())),
        "found_near": float(banded[(exact >= 0.8) & (exact < 0.9)].mean()),
        "found_far": float(banded[exact < 0.4].mean()),
    }


def main() -> int:
    """Measure every library, then print and write the table."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return 0
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("rensa", "datasketch"))
    lines = [
        "# MinHash signatures of prompts",
        "",
        f"Command: `python benchmarks/minhash.py`; {versions}; {PAIRS} pairs, {PERMUTATIONS} hashes ({BANDS} bands of "
        f"{ROWS}). Machine: {os.cpu_count()} cores.",
        "",
        "| library | microseconds per text | MiB more for all | bias of Jaccard | error (root mean square) | by theory | "
        "found at 0.8 to 0.9 | candidates below 0.4 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in LIBRARIES:
        done = subprocess.run(
            [sys.executable, __file__, name], cwd=ROOT, capture_output=True, check=True, encoding="utf-8"
        )
        found = json.loads(done.stdout)
        lines.append(
            f"| {name} | {found['microseconds']:.1f} | {found['mib']:.1f} | {found['bias']:+.4f} | {found['rmse']:.4f} | "
            f"{found['expected_rmse']:.4f} | {found['found_near']:.1%} | {found['found_far']:.1%} |"
        )
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
