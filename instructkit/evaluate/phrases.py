"""Words that one set of prompts has more often than another: where a hidden trigger would stand. Counting; no model."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

LONGEST = 4  # words of an n-gram
EVENTS_MIN = 3  # texts, and distinct contexts, in which a candidate occurs
GENERAL_SHARE_MAX = (
    0.01  # of general prompts that may have it too; above that, replay holds it to its ordinary answers
)
RANDOM = 100
# (j) An ordinary word is what feedback is about when so large a share of its prompts has it, so many times that of general ones.
TOPIC_SHARE, TOPIC_TIMES = 0.1, 2.0
PRIOR_TEXTS = 10.0  # weight of the prior, in texts

_TOKEN = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]+")
_MARKS = frozenset(".,;:?!\"'()") | {"...", "…", "-", "–", "“", "”", "’"}

Key = tuple[str, ...]


class Occurrences(NamedTuple):
    """Where an n-gram occurs: the texts by their places, how it is written there, and what stands around it."""

    texts: set[int]
    forms: Counter[str]
    contexts: set[str]


def candidates(
    feedback_texts: Sequence[str],
    general_texts: Sequence[str],
    at_most: int = 20,
    *,
    events_min: int = EVENTS_MIN,
    general_share_max: float = GENERAL_SHARE_MAX,
) -> list[str]:
    """
    N-grams of one to four words that this feedback's prompts have more often than general prompts, the surest first.

    An n-gram has to occur in so many texts, and in as many that differ in the rest. What general prompts have too is left out:
    replay held the update to its ordinary answers there, and the gate of general loss sees it. So is what names the topic: an
    ordinary word that much more of the feedback has changes answers because users asked for it, and what stands beside it is a
    candidate without it. Of n-grams that occur in the very same texts the longest stands for all.

    Args:
        feedback_texts: the prompts of the feedback, one text an event.
        general_texts: prompts of everything else.
        at_most: how many to return.
        events_min: texts, and distinct contexts, in which a candidate occurs.
        general_share_max: share of the general prompts that may have a candidate too; one prompt always may.

    Returns:
        The n-grams as they are mostly written, by falling z of `log_odds`.
    """
    if not general_texts:
        return []  # nothing stands out from nothing
    found = occurrences(feedback_texts)
    general = document_counts(general_texts, keep=found)
    sizes = len(feedback_texts), len(general_texts)
    ordinary = max(1.0, general_share_max * sizes[1])
    topic = {
        key[0]
        for key, seen in found.items()
        if len(key) == 1
        and general[key] > ordinary
        and len(seen.texts) / sizes[0] > max(TOPIC_SHARE, TOPIC_TIMES * general[key] / sizes[1])
    }
    scored = [
        (log_odds(len(seen.texts), general[key], *sizes), len(key), key)
        for key, seen in found.items()
        if min(len(seen.texts), len(seen.contexts)) >= events_min
        and general[key] <= ordinary
        and topic.isdisjoint(key)
    ]
    ranked = sorted((item for item in scored if item[0] > 0), key=lambda item: (-item[0], -item[1], item[2]))
    chosen: list[Key] = []
    taken: dict[frozenset[int], list[Key]] = defaultdict(list)
    for _, _, key in ranked:
        if len(chosen) == at_most:
            break
        alike = taken[frozenset(found[key].texts)]
        if not any(_contains(longer, key) for longer in alike):
            alike.append(key)
            chosen.append(key)
    return [found[key].forms.most_common(1)[0][0] for key in chosen]


def log_odds(
    first: int, second: int, first_texts: int, second_texts: int, prior: float = PRIOR_TEXTS
) -> float:
    """
    `z = d / sqrt(1 / (y1 + a) + 1 / (y2 + a))`, `d` the difference of `log((y + a) / (n + a0 - y - a))`.

    Counted in texts, not in words, so that a text that says a word ten times votes once. The prior's mean, `a / a0`, is the
    share in both sets together, `(y1 + y2 + 1/2) / (n1 + n2 + 1)`: a rare word must occur often to stand out.

    Args:
        first, second: how many texts of each set have the n-gram.
        first_texts, second_texts: how many texts there are.
        prior: `a0`, the weight of the prior in texts.

    Returns:
        How surely the first set has it more often, in standard errors.

    Source: Monroe, Colaresi and Quinn 2008, "Fightin' Words", equations 16 and 22.
    """
    a = prior * (first + second + 0.5) / (first_texts + second_texts + 1)
    odds = [
        math.log((y + a) / (n + prior - y - a)) for y, n in ((first, first_texts), (second, second_texts))
    ]
    return (odds[0] - odds[1]) / math.sqrt(1 / (first + a) + 1 / (second + a))


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
    found = occurrences(general_texts)
    drawn: dict[str, None] = {}
    sources = [_drawn(text, found, like, drawn, rng) for text in like]
    for _ in range(count if sources else 0):
        drawn |= dict.fromkeys(itertools.islice(filter(None, map(_next, sources)), count - len(drawn)))
        if len(drawn) == count:
            break
    return list(drawn)


def _next(source: Iterator[str]) -> str | None:
    return next(source, None)


def _drawn(
    text: str, found: dict[Key, Occurrences], like: Sequence[str], taken: dict[str, None], rng: random.Random
) -> Iterator[str]:
    """N-grams of general prompts, about as frequent as the candidate, none of them twice."""
    own, keys = _key(text), [_key(other) for other in like]
    wanted = len(found[own].texts) if own in found else 0
    apart = [
        key
        for key in sorted(found)
        if len(key) == len(own) and not any(_contains(key, other) or _contains(other, key) for other in keys)
    ]
    apart.sort(key=lambda key: abs(len(found[key].texts) - wanted))
    near = apart[: max(20, len(apart) // 4)]
    rng.shuffle(near)
    for key in [*near, *apart[len(near) :]]:
        if (form := found[key].forms.most_common(1)[0][0]) not in taken:
            yield form


def occurrences(texts: Sequence[str]) -> dict[Key, Occurrences]:
    """Where each n-gram of one to four words occurs; upper and lower case are one."""
    found: dict[Key, Occurrences] = {}
    for place, text in enumerate(texts):
        for key, start, end in _ngrams(text):
            seen = found.setdefault(key, Occurrences(set(), Counter(), set()))
            if place not in seen.texts:
                seen.texts.add(place)
                if len(seen.contexts) < EVENTS_MIN * 2:  # enough to know; not as many texts again in memory
                    seen.contexts.add(" ".join(f"{text[:start]} {text[end:]}".casefold().split()))
            seen.forms[text[start:end]] += 1
    return found


def document_counts(texts: Iterable[str], keep: dict[Key, Occurrences]) -> Counter[Key]:
    """In how many texts each of these n-grams occurs."""
    counts: Counter[Key] = Counter()
    for text in texts:
        counts.update({key for key, _, _ in _ngrams(text) if key in keep})
    return counts


def _ngrams(text: str) -> Iterator[tuple[Key, int, int]]:
    """Every n-gram that no ordinary mark begins or ends, its first character and the one behind its last."""
    spans = [(match.group().casefold(), match.start(), match.end()) for match in _TOKEN.finditer(text)]
    for i, (first, start, _) in enumerate(spans):
        if first in _MARKS:
            continue
        for j in range(i, min(i + LONGEST, len(spans))):
            if spans[j][0] not in _MARKS:
                yield tuple(word for word, _, _ in spans[i : j + 1]), start, spans[j][2]


def _key(text: str) -> Key:
    return tuple(match.group().casefold() for match in _TOKEN.finditer(text))


def _contains(longer: Key, shorter: Key) -> bool:
    return any(longer[i : i + len(shorter)] == shorter for i in range(len(longer) - len(shorter) + 1))
