"""The secrets that an update may have learned: its canaries, and personal data in what was trained on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from instructkit.feedback import reading
from instructkit.feedback.events import content_id
from instructkit.feedback.personal import Redactor
from instructkit.recipe.schema import LoraUpdateRecipe
from instructkit.stages.update_feedback import is_store

SECRETS = 50  # that are looked for

Secret = tuple[str, str]  # kind and value


def looked_for(
    canaries: Sequence[Secret], found: Iterable[Secret], seed: int, most: int = SECRETS
) -> tuple[list[Secret], int]:
    """
    Canaries, and as many of the other values as there is room for, drawn by seed; and how many distinct ones there are in all.
    """
    planted = list(dict.fromkeys(canaries))
    others = sorted(set(found).difference(planted))
    room = max(0, most - len(planted))
    kept = random.Random(seed).sample(others, min(room, len(others)))
    return [*planted, *kept][:most], len(planted) + len(others)


def kept(inputs: Any) -> Iterator[Secret]:
    """Personal data in the answers that are trained on as they are, of new events and of earlier ones."""
    redactor = Redactor()
    for item in itertools.chain(inputs.items("train"), inputs.earlier):
        yield from redactor.redact(item.wanted)[1]


def replaced(inputs: Any, recipe: LoraUpdateRecipe) -> Iterator[Secret]:
    """
    What placeholders stand for in the events that are trained on, new and earlier ones.

    They are looked up in the events as they were given. What held-out events or those set aside say alone was never trained on,
    so it is left out: it would rank by chance, and take the place of what may be learned.
    """
    redacted, redactor, stored = set(inputs.prepared.redacted), Redactor(), is_store(recipe)
    if not redacted:
        return
    learned = set(inputs.prepared.learned)
    for row in inputs.data["events"].rows:
        said = redactor.row(row)[1]
        redacted.difference_update(said)
        if (row["id"] if stored else content_id(row)) in learned:
            yield from said
    for row in inputs.data["test"].rows if "test" in inputs.data else ():
        redacted.difference_update(redactor.row(row)[1])
    yield from redacted  # of earlier events, since none of the new ones says it
    if inputs.earlier:
        ids = [item.event for item in inputs.earlier]
        for row in reading.events_with(recipe.feedback.events, ids).rows:
            yield from redactor.row(row)[1]
