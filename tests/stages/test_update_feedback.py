"""Which earlier events are replayed: so many, from all of them alike."""

from __future__ import annotations

from instructkit.stages.lora_update.feedback import pool

IDS = [f"E{i:04}" for i in range(1000)]


def test_few_are_all_there_oldest_first() -> None:
    assert pool(reversed(IDS[:50]), "1 2", 64) == IDS[:50]
    assert pool([*IDS[:5], *IDS[:5]], "1 2", 64) == IDS[:5]
    assert pool([], "1 2") == []


def test_of_many_some_of_every_part_whatever_their_order() -> None:
    found = pool(iter(IDS), "1 2", 200)
    assert len(found) == 200 and found == sorted(found) == pool(reversed(IDS), "1 2", 200)
    # Of each quarter 50 are expected; 25 and 75 are four standard deviations away.
    assert all(25 < sum(id_ in found for id_ in IDS[i : i + 250]) < 75 for i in range(0, 1000, 250))
    assert pool(iter(IDS), "1 3", 200) != found
