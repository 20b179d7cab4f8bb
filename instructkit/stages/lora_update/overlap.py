"""The sides of the split that an update is measured on: a bounded number of items and rows, none that the feedback trains on."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructkit.data.near_duplicates import prompt_text, shingles, words_of
from instructkit.data.split import key_of, prompt_key
from instructkit.data.table import pick
from instructkit.evaluate.statistics import level_of_look
from instructkit.feedback.preprocess.items import Item
from instructkit.feedback.promotion import preflight
from instructkit.feedback.promotion.preflight import Shortage
from instructkit.recipe.schema import LoraUpdateRecipe
from instructkit.stages.base import Frame, Listener, prompt_of

# Answered for conduct and the judge: enough to separate a loss of 0.1 spreads of a judge's scores from one of 0.25.
GENERAL_PROMPTS = 320
MOST = 2000  # items of a side, and general rows, that are measured: both are read before and after
BIAS_TUNE = 5  # every fifth minimal pair is for a rescue to look at, and decides nothing


@dataclass(frozen=True)
class Side:
    """What one side of the split is measured on; the test side alone decides."""

    items: list[Item]
    general: list[dict[str, Any]]
    pairs: list[Any]
    prompts: list[Any]


def side_of(frame: Frame, side: str) -> Side:
    """
    What `tune` or `test` is measured on; what is left out is told.

    Of very many items those of whole clusters are drawn by the run's seed, and general rows by prompt likewise. All items of
    the side count as looked at, since which are measured is known to nobody before. General rows that ask what this update
    trains on, or nearly so, are no part of everything else: feedback is there to change what it speaks of. Of what earlier
    updates trained on a sample is known, `UpdateInputs.earlier`.
    """
    inputs, prompts = frame.inputs, {}
    items = inputs.items(side)
    kept = drawn([item.cluster for item in items], frame.seed)
    if len(kept) < len(items):
        frame.reporter.note(
            f"{side} side: {len(kept)} of {len(items)} events are measured, drawn by prompts; all of them count as looked at"
        )
    general = _general(frame, side)
    for row in general:
        if "text" not in row:
            prompts.setdefault(prompt_key(row), prompt_of(row))
    return Side(list(pick(items, kept)), general, _pairs(frame, side), list(prompts.values()))


def groups_of(item: Item) -> tuple[str, ...]:
    """Return the groups and tags of an item."""
    return (*([f"group:{item.group}"] if item.group else []), *(f"tag:{tag}" for tag in item.tags))


def read_sets(recipe: LoraUpdateRecipe) -> dict[str, list[Any]]:
    """
    Read the files that an update is measured on besides its rows; leave out those of gates that are off.

    Returns:
        Tasks, minimal pairs and counterfactuals, by the key of the recipe and the name of the file.

    Raises:
        InputError: when a file is missing, or rows of it have errors.
    """
    from instructkit.evaluate import sets

    feedback, limits = recipe.feedback, recipe.gates
    wanted = [(f"feedback.tasks[{i}]", path, sets.task) for i, path in enumerate(feedback.tasks)]
    if limits.bias_growth_max is not None:
        wanted.append(("feedback.bias_pairs", feedback.bias_pairs, sets.minimal_pairs))
    if limits.contrast_growth_max is not None:
        wanted.append(("feedback.counterfactuals", feedback.counterfactuals, sets.counterfactuals))
    return {f"{key} ({source})": read(source) for key, source, read in wanted if source is not None}


def shortages(recipe: LoraUpdateRecipe, inputs: Any) -> list[Shortage]:
    """
    Return the gates that cannot be decided on the test split, before anything is trained.

    Args:
        inputs: the `UpdateInputs`.
    """
    from instructkit.evaluate import sets

    about = side_of(Frame(recipe, inputs, None, Path(), Listener(), False), "test")
    tasks = {path: len(sets.task(path)) for path in recipe.feedback.tasks}
    sizes = preflight.Sizes(
        about.items,
        [groups_of(item) for item in about.items],
        len({prompt_key(row) for row in about.general}),
        min(len(about.prompts), GENERAL_PROMPTS),
        len(about.pairs),
        tasks,
        _names_of_contrasts(recipe),
    )
    return preflight.shortages(sizes, recipe.gates, level=level_of_look(inputs.power()["look"]))


def _names_of_contrasts(recipe: LoraUpdateRecipe) -> list[int]:
    """Return the number of the names in each question about groups; none where the gate is off."""
    from instructkit.evaluate import sets

    if recipe.gates.contrast_growth_max is None:
        return []
    return [unit.names for unit in sets.counterfactuals(recipe.feedback.counterfactuals)]


def drawn(groups: Sequence[Hashable], seed: int, most: int = MOST) -> Sequence[int]:
    """
    The places of things of whole groups, no more than so many; all of them where there are no more.

    Groups follow in the order of their hashes with the seed; one that is larger than what is left is passed over. Where each
    is larger than all that may be kept, the first so many things are.
    """
    if len(groups) <= most:
        return range(len(groups))

    def place(group: Hashable) -> bytes:
        return hashlib.blake2b(f"{seed} {group}".encode(), digest_size=8).digest()

    chosen, left = set(), most
    sizes = Counter(groups)
    for group in sorted(sizes, key=place):
        if sizes[group] <= left:
            chosen.add(group)
            left -= sizes[group]
    return [i for i, group in enumerate(groups) if group in chosen] or range(most)


def trained_again(rows: Sequence[dict[str, Any]], prompts: Iterable[Any], near: float) -> set[int]:
    """
    The places of the rows that ask what one of the prompts asks, word by word or nearly so.

    Near are prompts whose 5-word shingles have so large a Jaccard similarity, as clusters of events are made; here it is exact.
    A plain text asks nothing.

    Args:
        rows: demonstrations.
        prompts: texts or messages.
        near: the similarity, from 0 to 1.
    """
    by_key, having, sets = defaultdict(list), defaultdict(list), {}
    for i, row in enumerate(rows):
        if "text" not in row:
            by_key[prompt_key(row)].append(i)
            sets[i] = _shingles(prompt_of(row))
            for shingle in sets[i]:
                having[shingle].append(i)
    found: set[int] = set()
    looked_at: set[int] = set()  # by hash: there may be a million prompts, and many of them the same
    for prompt in prompts:
        key = key_of(prompt)
        if hash(key) in looked_at:
            continue
        looked_at.add(hash(key))
        found.update(by_key.get(key, ()))
        own = _shingles(prompt)
        for i in _candidates(own, having, near) - found:
            shared = len(own & sets[i])
            if shared >= near * (len(own) + len(sets[i]) - shared):
                found.add(i)
    return found


def _candidates(own: set[str], having: dict[str, list[int]], near: float) -> set[int]:
    """
    Rows that may be near: they share one at least of the rarest shingles.

    A set near `own` has at least `near * len(own)` of its shingles, so of any that leave fewer out it has one. What all prompts
    have in common, a template, is never looked up.
    """
    rarest = sorted(own, key=lambda shingle: (len(having.get(shingle, ())), shingle))
    enough = len(own) - math.ceil(near * len(own) - 1e-9) + 1
    return set(itertools.chain.from_iterable(having.get(shingle, ()) for shingle in rarest[:enough]))


def _shingles(prompt: Any) -> set[str]:
    return set(shingles(words_of(prompt_text(prompt))))


def _general(frame: Frame, side: str) -> list[dict[str, Any]]:
    inputs = frame.inputs
    found = inputs.data.get("general" if side == "test" else "tune")
    rows = found.rows if found else []
    kept = drawn([prompt_key(row) for row in rows], frame.seed)
    if len(kept) < len(rows):
        frame.reporter.note(
            f"{side} side: {len(kept)} of {len(rows)} general rows are measured, drawn by prompts"
        )
    some = list(pick(rows, kept))
    trained = (item.prompt for item in itertools.chain(inputs.items("train"), inputs.earlier))
    again = trained_again(some, trained, frame.recipe.feedback.near_duplicates) if some else set()
    if again:
        frame.reporter.note(
            f"{side} side: {len(again)} of {len(some)} general rows ask what this feedback trains on, and are left out"
        )
    left = [row for i, row in enumerate(some) if i not in again]
    return left if len(left) > 1 else []  # of a single figure there is no interval


def _pairs(frame: Frame, side: str) -> list[Any]:
    from instructkit.evaluate import sets

    limits = frame.recipe.gates
    if limits.bias_growth_max is None:
        return []
    pairs = sets.minimal_pairs(frame.recipe.feedback.bias_pairs)
    apart = [limits.rescue and i % BIAS_TUNE == 0 for i in range(len(pairs))]
    return [pair for pair, tune in zip(pairs, apart, strict=True) if tune == (side == "tune")]
