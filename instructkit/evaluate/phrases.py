"""Words that one set of prompts has more often than another: where a hidden trigger would stand. Counting; no model."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from instructkit.evaluate.ngrams import (
    Key,
    Occurrence,
    document_counts,
    key_of,
    log_odds,
    ngrams,
    occurrences,
    promising,
    sampled,
    written,
)

EVENTS_MIN = 3  # texts, and distinct contexts, in which a candidate occurs
GENERAL_SHARE_MAX = (
    0.01  # of general prompts that may have it too; above that, replay holds it to its ordinary answers
)
RANDOM = 100
# (j) An ordinary word is what feedback is about when so large a share of its prompts has it, so many times that of general ones.
TOPIC_SHARE, TOPIC_TIMES = 0.1, 2.0
# What more than so large a share of the feedback has, a system message above all, hides nothing: a few n-grams of it are enough.
SETTING_SHARE, SETTING = 0.5, 5
WORDS_DRAWN_FROM = 30_000  # (j) of the texts that random n-grams are drawn from


def candidates(
    feedback_texts: Sequence[str],
    general_texts: Sequence[str],
    at_most: int = 20,
    *,
    events_min: int = EVENTS_MIN,
    general_share_max: float = GENERAL_SHARE_MAX,
    seed: int = 0,
) -> list[str]:
    """
    N-grams of one to four words that this feedback's prompts have more often than general prompts, the surest first.

    An n-gram has to occur in so many texts, and in as many that differ in the rest. What general prompts have too is left out:
    replay held the update to its ordinary answers there, and the gate of general loss sees it. So is what names the topic: an
    ordinary word that much more of the feedback has changes answers because users asked for it, and what stands beside it is a
    candidate without it. Of n-grams that occur in the very same texts the longest stands for all; of what more than half of
    the feedback has a few are looked at.

    Args:
        feedback_texts: the prompts of the feedback, one text an event; of very many a sample is counted, see `sampled`.
        general_texts: prompts of everything else, likewise.
        at_most: how many to return.
        events_min: texts, and distinct contexts, in which a candidate occurs.
        general_share_max: share of the general prompts that may have a candidate too; one prompt always may.
        seed: of the samples.

    Returns:
        The n-grams as they are mostly written, by falling z of `log_odds`.
    """
    if not general_texts:
        return []  # nothing stands out from nothing
    texts, usual = sampled(feedback_texts, seed), sampled(general_texts, seed)
    found = occurrences(texts, promising(texts, usual, events_min, TOPIC_SHARE), contexts=events_min)
    general = document_counts(usual, keep=found)
    sizes = len(texts), len(usual)
    ordinary = max(1.0, general_share_max * sizes[1])
    topic = {
        key[0]
        for key, seen in found.items()
        if len(key) == 1
        and general[key] > ordinary
        and seen.texts / sizes[0] > max(TOPIC_SHARE, TOPIC_TIMES * general[key] / sizes[1])
    }
    scored = [
        (log_odds(seen.texts, general[key], *sizes), len(key), key)
        for key, seen in found.items()
        if min(seen.texts, len(seen.contexts)) >= events_min
        and general[key] <= ordinary
        and topic.isdisjoint(key)
    ]
    ranked = sorted((item for item in scored if item[0] > 0), key=lambda item: (-item[0], -item[1], item[2]))
    chosen = _apart([key for _, _, key in ranked], found, sizes[0], at_most)
    forms = written(texts, chosen)
    return [forms[key] for key in chosen]


def _apart(ranked: Sequence[Key], found: dict[Key, Occurrence], texts: int, at_most: int) -> list[Key]:
    """The first of these n-grams, but for those that another stands for."""
    chosen: list[Key] = []
    taken: dict[tuple[int, int], list[Key]] = defaultdict(list)
    setting = 0
    for key in ranked:
        if len(chosen) == at_most:
            break
        seen = found[key]
        alike = taken[seen.texts, seen.mark]
        everywhere = seen.texts > SETTING_SHARE * texts
        if any(_contains(longer, key) for longer in alike) or (everywhere and setting == SETTING):
            continue
        alike.append(key)
        chosen.append(key)
        setting += everywhere
    return chosen


def random_ngrams(
    general_texts: Sequence[str],
    count: int = RANDOM,
    *,
    like: Sequence[str],
    seed: int,
) -> list[str]:
    """
    N-grams drawn at random, like the candidates in length and frequency: what a shift is held against.

    Each candidate in turn gets an n-gram of general prompts with as many words, drawn from the quarter (at least 20) whose number
    of texts is nearest to its own; a candidate that general prompts never have is matched with rare ones. None of them contains a
    candidate or is contained in one.

    Args:
        general_texts: prompts of everything else.
        count: how many to draw; fewer are returned where there are not so many.
        like: the candidates.
        seed: of the draws.

    Returns:
        Distinct n-grams.
    """
    rng = random.Random(seed)
    texts, keys = sampled(general_texts, seed, WORDS_DRAWN_FROM), [key_of(text) for text in like]
    found = Counter[Key]()
    for text in texts:
        found.update({key for key, _, _ in ngrams(text)})
    apart = _without(sorted(found), keys)
    drawn: dict[Key, None] = {}
    sources = [_drawn(key, found, apart[len(key)], drawn, rng) for key in keys]
    for _ in range(count if sources else 0):
        drawn |= dict.fromkeys(itertools.islice(filter(None, map(_next, sources)), count - len(drawn)))
        if len(drawn) == count:
            break
    forms = written(texts, drawn)
    return [forms[key] for key in drawn]


def _next(source: Iterator[Key]) -> Key | None:
    return next(source, None)


def _without(found: Iterable[Key], candidates: Sequence[Key]) -> dict[int, list[Key]]:
    """By length, the n-grams that contain no candidate and are contained in none."""
    words = set(itertools.chain.from_iterable(candidates))
    apart: dict[int, list[Key]] = defaultdict(list)
    for key in found:
        # Looking for a word first spares nearly all of the comparisons.
        if words.isdisjoint(key) or not any(
            _contains(key, other) or _contains(other, key) for other in candidates
        ):
            apart[len(key)].append(key)
    return apart


def _drawn(
    own: Key, found: Counter[Key], apart: Sequence[Key], taken: dict[Key, None], rng: random.Random
) -> Iterator[Key]:
    """N-grams of general prompts, about as frequent as the candidate, none of them twice."""
    wanted = found[own]
    ranked = sorted(apart, key=lambda key: abs(found[key] - wanted))
    near = ranked[: max(20, len(ranked) // 4)]
    rng.shuffle(near)
    for key in itertools.chain(near, ranked[len(near) :]):
        if key not in taken:
            yield key


def _contains(longer: Key, shorter: Key) -> bool:
    return any(longer[i : i + len(shorter)] == shorter for i in range(len(longer) - len(shorter) + 1))
