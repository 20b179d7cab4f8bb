"""Synthetic judgements by 1000 raters, some repeated, some near others, some with personal data; always the same ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

RATERS, REMEMBERED = 1000, 5000
LOUDEST = "rater 0"  # about 3 in 100 events
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
