"""Which of the events that earlier updates learned from are replayed: a bounded number of them, drawn by their ids."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable

POOL = 1024  # so that the cost does not grow with all that was ever said


def pool(ids: Iterable[str], seed: str, most: int = POOL) -> list[str]:
    """
    So many of the ids, each being as likely as any other, oldest first.

    They are those whose hashes with the seed are the smallest, so that neither their order nor how they are spread over
    updates matters; one in memory at a time but for those that are kept.
    """

    def place(id_: str) -> bytes:
        return hashlib.blake2b(f"{seed} {id_}".encode(), digest_size=8).digest()

    return sorted(set(heapq.nsmallest(most, ids, key=place)))
