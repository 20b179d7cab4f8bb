"""
N-grams of texts: where they occur and how often, in bounded memory. Counting; no model.

However many texts there are, those with a million words are counted, drawn by seed; and where n-grams are held only when they
may stand out, a first pass has found that out in a table of counts by hash.
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

LONGEST = 4  # words of an n-gram
# (j) Words of the texts that are counted; n-grams that are held; counts by hash.
WORDS_COUNTED, HELD, BUCKETS = 1_000_000, 50_000, 2**22
LONG_WORD = 16  # characters that count as a word, where one is longer than any

BETWEEN = "\0"  # stands between the messages of a prompt: no n-gram reaches across it
_TOKEN = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]+")
_MARKS = frozenset(".,;:?!\"'()") | {"...", "…", "-", "–", "“", "”", "’"}

Key = tuple[str, ...]


class Occurrence:
    """
    Where an n-gram occurs.

    Attributes:
        texts: how many have it.
        mark: the same for n-grams that occur in the very same texts.
        contexts: hashes of what stands around it, a few.
    """

    __slots__ = ("_last", "contexts", "mark", "texts")

    def __init__(self) -> None:
        self.texts, self.mark, self._last = 0, 0, -1
        self.contexts: set[int] = set()

    def is_new(self, place: int) -> bool:
        """Whether it was not met in the text at this place yet, which it is from now on."""
        new, self._last = place != self._last, place
        return new


def sampled(texts: Sequence[str], seed: int, words: int = WORDS_COUNTED) -> list[str]:
    """Texts drawn by seed until they have so many words, in their own order; all of them where they have no more."""
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    kept: dict[int, str] = {}
    for place in order:
        if words <= 0:
            break
        kept[place] = texts[place]
        words -= _words(kept[place])
    return [kept[place] for place in sorted(kept)]


def log_odds(first: Any, second: Any, first_texts: int, second_texts: int, prior: float | None = None) -> Any:
    """
    `z = d / sqrt(1 / (y1 + a) + 1 / (y2 + a))`, `d` the difference of `log((y + a) / (n + a0 - y - a))`.

    Counted in texts, not in words, so that a text that says a word ten times votes once. The prior's mean, `a / a0`, is the
    share in both sets together, `(y1 + y2 + 1/2) / (n1 + n2 + 1)`: a rare word must occur often to stand out.

    The prior weighs as much as the smaller set. Under a light one the variance of a word that one set never has is that of the
    prior, and 15 of 500 texts against none of 4,000 would be 1.2 standard errors; a hidden trigger is just such a word.

    Args:
        first, second: how many texts of each set have the n-gram, or arrays of such counts.
        first_texts, second_texts: how many texts there are.
        prior: `a0`, the weight of the prior in texts; None: as many as the smaller set has.

    Returns:
        How surely the first set has it more often, in standard errors.

    Source: Monroe, Colaresi and Quinn 2008, "Fightin' Words", equations 16 and 22.
    """
    prior = min(first_texts, second_texts) if prior is None else prior
    a = prior * (first + second + 0.5) / (first_texts + second_texts + 1)
    odds = [np.log((y + a) / (n + prior - y - a)) for y, n in ((first, first_texts), (second, second_texts))]
    return (odds[0] - odds[1]) / np.sqrt(1 / (first + a) + 1 / (second + a))


def occurrences(
    texts: Sequence[str], held: bytes | None = None, *, contexts: int = 3
) -> dict[Key, Occurrence]:
    """
    Where each n-gram of one to four words occurs; upper and lower case are one.

    Args:
        texts: the texts.
        held: by bucket whether n-grams in it are looked at, see `promising`; None: all are.
        contexts: how many distinct ones are enough to know.
    """
    found: dict[Key, Occurrence] = {}
    rng = random.Random(0)
    for place, text in enumerate(texts):
        mark = rng.getrandbits(64)
        for key, start, end in ngrams(text):
            if held is not None and not held[_bucket(key, len(held))]:
                continue
            seen = found.get(key)
            if seen is None:
                seen = found[key] = Occurrence()
            if seen.is_new(place):
                seen.texts += 1
                seen.mark ^= mark
                if len(seen.contexts) < contexts:
                    seen.contexts.add(hash(" ".join(f"{text[:start]} {text[end:]}".casefold().split())))
    return found


def promising(texts: Sequence[str], usual: Sequence[str], events_min: int, share: float) -> bytes | None:
    """
    By bucket of hashes, whether n-grams in it may be candidates; None where there are few enough to hold all.

    A bucket counts at least as many texts as any of its n-grams is in, so none that occurs often enough is lost before more
    than `HELD` buckets are left. Then the surest by `log_odds` stay.

    Args:
        texts: of the set whose n-grams may stand out.
        usual: of the other.
        events_min: texts in which a candidate occurs.
        share: buckets that more of the texts have stay in any case.
    """
    words = sum(map(_words, texts))
    if words * LONGEST <= HELD:
        return None
    buckets = min(BUCKETS, 1 << (2 * LONGEST * words).bit_length())
    counts = [np.frombuffer(_counted(side, buckets), dtype=np.uint32) for side in (texts, usual)]
    kept = counts[0] >= events_min
    if int(kept.sum()) > HELD:
        places = np.flatnonzero(kept)
        z = log_odds(counts[0][places], counts[1][places], len(texts), len(usual))
        kept = counts[0] > share * len(texts)
        kept[places[np.argsort(-z, kind="stable")[:HELD]]] = True
    return kept.tobytes()


def _counted(texts: Iterable[str], buckets: int) -> array[int]:
    """In how many texts an n-gram of each bucket occurs, a text once a bucket."""
    counts = array("I", bytes(4 * buckets))
    for text in texts:
        for bucket in {_bucket(key, buckets) for key, _, _ in ngrams(text)}:
            counts[bucket] += 1
    return counts


def _bucket(key: Key, buckets: int) -> int:
    return zlib.crc32(" ".join(key).encode("utf-8", "surrogatepass")) & (buckets - 1)


def document_counts(texts: Iterable[str], keep: Collection[Key]) -> Counter[Key]:
    """In how many texts each of these n-grams occurs."""
    counts: Counter[Key] = Counter()
    for text in texts:
        counts.update({key for key, _, _ in ngrams(text) if key in keep})
    return counts


def written(texts: Iterable[str], keys: Iterable[Key]) -> dict[Key, str]:
    """How each of these n-grams is mostly written."""
    forms: dict[Key, Counter[str]] = {key: Counter() for key in keys}
    for text in texts if forms else ():
        for key, start, end in ngrams(text):
            if key in forms:
                forms[key][text[start:end]] += 1
    return {key: counted.most_common(1)[0][0] for key, counted in forms.items()}


def ngrams(text: str) -> Iterator[tuple[Key, int, int]]:
    """Every n-gram of one message that no ordinary mark begins or ends, its first character and the one behind its last."""
    spans = [(match.group().casefold(), match.start(), match.end()) for match in _TOKEN.finditer(text)]
    for i, (first, start, _) in enumerate(spans):
        if first in _MARKS:
            continue
        for j in range(i, min(i + LONGEST, len(spans))):
            if spans[j][0] == BETWEEN:
                break
            if spans[j][0] not in _MARKS:
                yield tuple(word for word, _, _ in spans[i : j + 1]), start, spans[j][2]


def key_of(text: str) -> Key:
    """The n-gram that a whole text is."""
    return tuple(match.group().casefold() for match in _TOKEN.finditer(text))


def _words(text: str) -> int:
    return max(1, len(_TOKEN.findall(text)), len(text) // LONG_WORD)


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
