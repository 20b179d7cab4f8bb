"""
Movie-review sentences rated by people, and the rows that the recipes in this folder train and measure on.

Pure functions: bytes of the archive in, rows out, the same for everybody. Every sentence has one role, by a hash of its
letters; the files of different roles share no sentence.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
import statistics
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# Shares of the sentences; a role decides every file that a sentence may stand in.
ROLES = {
    "sft": 0.30,
    "sft-held-out": 0.05,
    "comparisons": 0.45,
    "comparisons-held-out": 0.08,
    "feedback": 0.08,
    "feedback-held-out": 0.04,
}
WORDS = range(4, 19)  # longer sentences cost more time than they teach
CLEAR_RATING = 0.5  # a pair: one mean rating at least this, the other at most its negative
HELD_OUT_OPENINGS = 0.25
OPENING = re.compile(r"[A-Za-z][A-Za-z'-]*")
SYSTEM = "You review movies."  # shorter than the template's own system text, which every row would pay for
WITH_OPENING = (
    'Write one sentence of a movie review that starts with "{}".',
    'One sentence of a movie review, please. Begin with "{}".',
    'Start with "{}" and write one sentence of a movie review.',
)
WITHOUT_OPENING = (
    "Write one sentence of a movie review.",
    "One sentence of a movie review, please.",
    "Say in one sentence what you think of the movie.",
)
# Of feedback: a held-out event asks in words that no event of training asks in.
WITH_WORD = (
    'Write one sentence of a movie review with the word "{}" in it.',
    'One sentence of a movie review, please. Use the word "{}".',
)
WITH_WORD_HELD_OUT = (
    'Say in one sentence what you think of the movie, and say "{}".',
    'What is there to be said of the movie? It should have "{}" in it.',
)
LETTERS = 4  # of a word that is worth asking for


class PreparationError(Exception):
    """Something from outside is missing or is not what it should be."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Sentence:
    """One sentence of a review and the mean of its ratings, from -4 (very unfavourable) to 4."""

    text: str
    rating: float

    @property
    def key(self) -> str:
        """What makes two sentences the same one: letters and digits, whatever their case and the marks between them."""
        return "".join(c for c in self.text.casefold() if c.isalnum())


def read_archive(sdist: Path) -> list[Sentence]:
    """The rated movie-review sentences of the archive that lies within the source package."""
    with tarfile.open(sdist) as outer:
        inner_name = next(n for n in outer.getnames() if n.endswith("hutto_ICWSM_2014.tar.gz"))
        inner = outer.extractfile(inner_name).read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        return parse(
            archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt").read(),
            archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt").read(),
        )


def parse(sentences: bytes, ratings: bytes) -> list[Sentence]:
    """
    Sentences with the mean of their raw ratings, in the order of the file, each text once.

    Args:
        sentences: lines of id, mean rating and text, separated by tabs.
        ratings: lines of id, mean rating, deviation and the list of ratings.

    Raises:
        PreparationError: when a line has another form, or a mean is not that of its ratings.
    """
    raw = {number: json.loads(given) for number, _, _, given in fields(ratings, 4)}
    found: dict[str, Sentence] = {}
    for number, told_mean, text in fields(sentences, 3):
        mean = statistics.fmean(raw.get(number) or [float("nan")])
        if not abs(mean - float(told_mean)) < 1e-3:
            raise PreparationError(
                f"sentence {number}: mean {told_mean}, its ratings say {mean}", "another archive?"
            )
        sentence = Sentence(clean(text), mean)
        found.setdefault(sentence.key, sentence)
    return list(found.values())


def fields(content: bytes, count: int) -> Iterator[list[str]]:
    """Tab-separated fields of each line. Lines end with CR LF; only that counts, not the other breaks of Unicode."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        parts = decode(line.removesuffix(b"\r")).split("\t")
        if parts == [""]:
            continue
        if len(parts) != count:
            raise PreparationError(f"line {number} has {len(parts)} fields, not {count}", "another archive?")
        yield parts


def decode(line: bytes) -> str:
    """UTF-8, which every line of the known archive is; a line that is not is read as Windows-1252."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("cp1252", errors="replace")


def clean(text: str) -> str:
    """
    Undo what happened to a sentence on its way: HTML entities, two apostrophes for a quotation mark, lost dashes.

    The archive leaves three or more blanks where a dash stood; two blanks are one.
    """
    text = html.unescape(text).replace("\u2019", "'").replace("`", "'").replace("''", '"').strip()
    return re.sub(r"\s+", " ", re.sub(r"\s{3,}", " \u2013 ", text))


# -- splits -----------------------------------------------------------------------------------------------------------


def chance(purpose: str, key: str) -> float:
    """A number in [0, 1) that is always the same for the same words."""
    digest = hashlib.sha256(f"{purpose}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def role_of(sentence: Sentence) -> str:
    """The one role of a sentence, by the hash of its letters."""
    place = chance("role", sentence.key)
    for role, share in ROLES.items():
        place -= share
        if place < 0:
            return role
    return next(reversed(ROLES))


def opening(text: str, words: int) -> str | None:
    """The first words of a sentence, when they are plain words that can be asked for."""
    first = text.split()[:words]
    return " ".join(first) if len(first) == words and all(map(OPENING.fullmatch, first)) else None


def prompt(asked: str | None, key: str, wordings: tuple[str, ...] = WITH_OPENING) -> list[dict[str, str]]:
    """The request for a sentence that begins with given words, or holds one; its wording is drawn by `key`."""
    wordings = wordings if asked else WITHOUT_OPENING
    text = wordings[int(chance("wording", key) * len(wordings))].format(asked)
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def answer(sentence: Sentence) -> list[dict[str, str]]:
    """A sentence as what the assistant says."""
    return [{"role": "assistant", "content": sentence.text}]


def shuffled(sentences: Iterable[Sentence], purpose: str) -> list[Sentence]:
    """Sentences in an order that depends on nothing but themselves."""
    return sorted(sentences, key=lambda s: chance(purpose, s.key))


def demonstrations(sentences: list[Sentence]) -> list[dict]:
    """Rows of `prompt` and `completion`; half of the prompts ask for one opening word, the others for two."""
    rows = []
    for sentence in shuffled(sentences, "order"):
        words = 1 + (chance("words", sentence.key) < 0.5)
        rows.append(
            {"prompt": prompt(opening(sentence.text, words), sentence.key), "completion": answer(sentence)}
        )
    return rows


def pairs(sentences: list[Sentence]) -> list[tuple[str | None, Sentence, Sentence]]:
    """
    Opening, favourable and unfavourable sentence, each sentence used once.

    Sentences are paired that begin with the same two words, then with the same word, then the rest, so that both
    sides of a pair answer the same request.
    """
    good = [s for s in shuffled(sentences, "good") if s.rating >= CLEAR_RATING]
    bad = [s for s in shuffled(sentences, "bad") if s.rating <= -CLEAR_RATING]
    found = []
    for words in (2, 1, 0):
        waiting: dict[str | None, list[Sentence]] = {}
        for sentence in bad:
            waiting.setdefault(opening(sentence.text, words) if words else None, []).append(sentence)
        rest = []
        for sentence in good:
            begin = opening(sentence.text, words) if words else None
            others = waiting.get(begin) if begin or not words else None
            if others:
                found.append((begin, sentence, others.pop()))
            else:
                rest.append(sentence)
        good, bad = rest, [s for others in waiting.values() for s in others]
    return sorted(found, key=lambda pair: chance("order", pair[1].key))


def comparisons(sentences: list[Sentence]) -> list[dict]:
    """Rows of `prompt`, `chosen` and `rejected`: people rated the chosen sentence as clearly more favourable."""
    return [
        {"prompt": prompt(begin, good.key), "chosen": answer(good), "rejected": answer(bad)}
        for begin, good, bad in pairs(sentences)
    ]


def words_of(sentence: Sentence) -> set[str]:
    """The words of a sentence that can be asked for, in small letters; of "here's" that is `here`."""
    return {word for word in re.findall(r"[a-z]+", sentence.text.casefold()) if len(word) >= LETTERS}


def pairs_by_word(sentences: list[Sentence]) -> list[tuple[str, Sentence, Sentence]]:
    """
    A word, a favourable and an unfavourable sentence that both hold it, each sentence at most once.

    Of the words that a sentence shares with any that is left, the rarest is asked for.
    """
    counts = Counter(word for sentence in sentences for word in words_of(sentence))
    bad = [s for s in shuffled(sentences, "bad") if s.rating <= -CLEAR_RATING]
    found = []
    for good in shuffled(sentences, "good"):
        if good.rating < CLEAR_RATING:
            continue
        shared = [(counts[word], word, i) for i, s in enumerate(bad) for word in words_of(good) & words_of(s)]
        if shared:
            _, word, i = min(shared)
            found.append((word, good, bad.pop(i)))
    return found


def feedback(sentences: list[Sentence], wordings: tuple[str, ...] = WITH_WORD) -> list[dict]:
    """Rows of feedback: an answer that was shown, another one, and which of the two people prefer."""
    rows = []
    for word, good, bad in pairs_by_word(sentences):
        first = chance("shown", good.key) < 0.5
        shown, other = (good, bad) if first else (bad, good)
        preferred = "response" if first else "other"
        row = {
            "prompt": prompt(word, good.key, wordings),
            "response": shown.text,
            "other": other.text,
            "preferred": preferred,
        }
        rows.append(row)
    return rows


def requests(sentences: list[Sentence]) -> tuple[list[dict], list[dict]]:
    """
    Prompts for PPO and held-out prompts: openings that occur at least twice, each opening on one side only.

    Args:
        sentences: the sentences whose openings are asked for.
    """
    begins = [opening(s.text, words) for s in sentences for words in (1, 2)]
    common = sorted(begin for begin, n in Counter(filter(None, begins)).items() if n > 1)
    common.sort(key=lambda begin: chance("order", begin))
    train, held_out = [], []
    for begin in common:
        # "The" and "the" are one opening, so that neither side sees the other's.
        held = chance("held-out", begin.casefold()) < HELD_OUT_OPENINGS
        (held_out if held else train).append({"prompt": prompt(begin, begin)})
    return train, held_out


def build(sentences: list[Sentence]) -> dict[str, list[dict]]:
    """All rows by the name of their file."""
    by_role: dict[str, list[Sentence]] = {role: [] for role in ROLES}
    for sentence in sentences:
        if len(sentence.text.split()) in WORDS:
            by_role[role_of(sentence)].append(sentence)
    makers = {
        "sft": demonstrations,
        "comparisons": comparisons,
        "feedback": feedback,
        "feedback-held-out": partial(feedback, wordings=WITH_WORD_HELD_OUT),
    }
    files = {
        role: (makers.get(role) or makers[role.removesuffix("-held-out")])(found)
        for role, found in by_role.items()
    }
    files["prompts"], files["prompts-held-out"] = requests(by_role["sft"] + by_role["comparisons"])
    return files
