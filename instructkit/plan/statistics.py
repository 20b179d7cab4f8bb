"""What the rows of a run are like: lengths, what is learned of them, doubles, writing systems."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from instructkit.data.sources import Rows
from instructkit.encode import IGNORED
from instructkit.plan import duplicates
from instructkit.plan.encoded import parts_of_rows

MOST_COMPARED = 20_000  # rows that are compared for doubles; what is left out is said
BINS = 12
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Statistics:
    """
    Of the training rows, in tokens as the trainer reads them; of a comparison both answers.

    Attributes:
        at_limit: rows that reach `max_length`, where what is behind it is cut off.
        learned: share of tokens that the loss looks at; None where it looks at scores.
        exact, near: rows with such a double before them, among `compared` rows.
        held_out_near: held-out rows with a near double among the training rows.
        histogram: rows by length, in bins of equal width from the shortest to the longest.
        scripts: share of letters by writing system.
    """

    rows: int
    tokens: int
    shortest: int
    p50: int
    p95: int
    longest: int
    at_limit: int
    learned: float | None
    exact: int
    near: int
    compared: int
    held_out_near: int | None
    histogram: list[int]
    scripts: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def bars(self) -> str:
        """The histogram as one line of bars; a bin that is not empty shows."""
        most = max(self.histogram)
        return "".join(" " if not n else _BARS[min(7, (8 * n - 1) // most)] for n in self.histogram)


def of_rows(stage: str, trainer: Any, tokenizer: Any, data: dict[str, Rows]) -> Statistics:
    """The statistics of a run's training rows, and how near the held-out rows are to them."""
    parts = [part for row in parts_of_rows(stage, trainer, tokenizer) for part in row]
    lengths = sorted(len(ids) for _, ids, _ in parts)
    limit = getattr(trainer.args, "max_length", None)
    learned = sum(label != IGNORED for _, _, labels in parts for label in labels)
    trained = data.get("train", data.get("events"))
    held_out = data.get("eval", data.get("test"))
    texts = [duplicates.text_of(row) for row in trained.rows[:MOST_COMPARED]]
    exact, near = duplicates.doubles(texts)
    return Statistics(
        rows=len(trainer.train_dataset),
        tokens=sum(lengths),
        shortest=lengths[0],
        p50=lengths[len(lengths) // 2],
        p95=lengths[int(0.95 * (len(lengths) - 1))],
        longest=lengths[-1],
        at_limit=sum(limit is not None and length >= limit for length in lengths),
        learned=learned / sum(lengths) if stage in ("sft", "lora-update") else None,
        exact=exact,
        near=near,
        compared=len(texts),
        held_out_near=_near_held_out(held_out, texts),
        histogram=histogram(lengths),
        scripts=scripts(texts[:1000]),
    )


def _near_held_out(held_out: Rows | None, texts: list[str]) -> int | None:
    if held_out is None:
        return None
    return sum(duplicates.doubles([duplicates.text_of(row) for row in held_out.rows[:MOST_COMPARED]], texts))


def histogram(lengths: Sequence[int]) -> list[int]:
    """How many lengths lie in each of the bins from the shortest to the longest."""
    low, width = min(lengths), max(1, max(lengths) - min(lengths) + 1)
    counts = Counter((length - low) * BINS // width for length in lengths)
    return [counts[i] for i in range(BINS)]


def scripts(texts: Sequence[str]) -> dict[str, float]:
    """Shares of writing systems among letters, the most frequent first: the first word of each letter's Unicode name."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(_script(letter) for letter in text if letter.isalpha())
    whole = sum(found.values())
    return {name: round(count / whole, 4) for name, count in found.most_common(4)} if whole else {}


def _script(letter: str) -> str:
    if letter.isascii():
        return "Latin"
    return unicodedata.name(letter, "other").split()[0].capitalize()
