"""Batches of rows of like length, as many as fit in memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

LAW_BYTES = (
    2**27
)  # of the laws of one batch over the whole vocabulary, in float32; a handful of them stand in memory at once
MOST_ROWS = 64


def law_batches(
    lengths: Sequence[tuple[int, ...]], vocabulary: int, most_rows: int = MOST_ROWS
) -> Iterator[list[int]]:
    """
    The places of all rows, those of like length together: `4 rows (longest + 1) vocabulary` bytes stay below `LAW_BYTES`.

    A row that needs more alone is a batch of its own.

    Args:
        lengths: of each row the number of tokens whose laws are asked for, and what else to sort by.
        vocabulary: words that a law is over.
        most_rows: rows of a batch, at most.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = 0
    while start < len(order):
        rows = order[start : start + most_rows]
        # Lengths rise, so the last row taken is the longest of its batch.
        while len(rows) > 1 and 4 * len(rows) * (lengths[rows[-1]][0] + 1) * vocabulary > LAW_BYTES:
            rows.pop()
        yield rows
        start += len(rows)
