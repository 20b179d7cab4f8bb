"""The first pass of preprocessing: rows stream through, what was judged goes to a table, and what is counted with to arrays."""

from __future__ import annotations

import functools
import sys
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructkit.data.formats import as_conversation
from instructkit.data.near_duplicates import prompt_text
from instructkit.data.rows import Row
from instructkit.data.table import Table
from instructkit.errors import InputError
from instructkit.feedback.preprocess.items import Settings
from instructkit.feedback.preprocess.objectives import kind_of
from instructkit.feedback.store.judgements import (
    Judgement,
    characters,
    judgement_of,
    same_answers,
    texts,
    unreadable,
)

UNREADABLE = "unreadable rater, group, tags, time, consent or position"
TOO_LONG = "longer than max_characters"
SAME = "both answers are the same"
NO_CONSENT = "without consent"
NOTHING = "asks for nothing (a tie, or a rating of 0)"
FILTERED = "left out by the filter"
OTHER_WRITING = "in another writing system"

# Of a text's letters. A judgement: names, code and quotations in another script are no other language.
LETTERS_MIN = 0.5
MOST_REDACTED = 1000  # distinct values that are kept for the memory gate
NOBODY = -1
_TYPES = {
    "sign": "b",
    "first": "b",
    "kind": "b",
    "held": "b",
    "rater": "i",
    "group": "i",
    "slot": "i",
    "item": "Q",
    "answer": "Q",
    "said": "Q",
    "time": "d",
    "size": "d",
}

Redact = Callable[[Row], tuple[Row, list[tuple[str, str]]]]


@dataclass(frozen=True)
class Columns:
    """
    What is counted with, one entry an event in every array but the last two.

    Attributes:
        sign, item, answer, said, first, time: as in `Judgement`.
        size: how strongly it is said: `|rating|`, 1 of a pair.
        kind: the place in `objectives.KINDS` of what is said.
        held: whether it came as a test event of a source of its own.
        rater, group: numbers from 0 in the order of their first events; -1 is nobody.
        slot: its place in the table; -1 where it asks for nothing and only takes back what its rater said before.
        tag_event, tag: pairs of an event and one of its tags, by number.
    """

    sign: np.ndarray
    item: np.ndarray
    answer: np.ndarray
    said: np.ndarray
    first: np.ndarray
    kind: np.ndarray
    time: np.ndarray
    size: np.ndarray
    held: np.ndarray
    rater: np.ndarray
    group: np.ndarray
    slot: np.ndarray
    tag_event: np.ndarray
    tag: np.ndarray


class Intake:
    """
    Reads rows, and remembers what became of those that go no further.

    Attributes:
        table: of each event that says something, its number and what an item is made of.
        outcomes: of events that went no further.
        personal, redacted: personal data by kind, and up to a thousand distinct values.
        raters, groups, tags: their numbers.
    """

    def __init__(self, how: Settings, redact: Redact | None, keep: Callable[[Row], bool] | None) -> None:
        self.table = Table()
        self.outcomes: Counter[str] = Counter()
        self.personal: Counter[str] = Counter()
        self.redacted: dict[tuple[str, str], None] = {}
        self.raters: dict[str, int] = {}
        self.groups: dict[str, int] = {}
        self.tags: dict[str, int] = {}
        self._columns = {name: array(code) for name, code in _TYPES.items()}
        self._tag_event, self._tag = array("i"), array("i")
        self._how, self._redact, self._keep = how, redact, keep
        self._systems = writing_systems(how.languages) if how.languages else ()

    def prompts(self, rows: Iterable[Row], named: Callable[[int], str], *, held: bool) -> Iterator[str]:
        """
        Read rows; the prompts of those that say something, in their order, for the cluster index.

        Args:
            named: the place of a row that has no id.
            held: whether they are test events of a source of their own.
        """
        for i, row in enumerate(rows):
            judged = self._read(row)
            if isinstance(judged, str):
                self.outcomes[judged] += 1
                continue
            self._add(judged, str(row.get("id") or named(i)), held)
            if judged.sign:
                yield prompt_text(judged.prompt)

    def columns(self) -> Columns:
        """The arrays, once all rows were read."""
        found = {
            name: np.frombuffer(column, dtype=column.typecode) if column else np.zeros(0, column.typecode)
            for name, column in (self._columns | {"tag_event": self._tag_event, "tag": self._tag}).items()
        }
        return Columns(**found | {"held": found["held"].astype(bool)})

    def _read(self, row: Row) -> Judgement | str:
        """What a row says, or the outcome of one that goes no further."""
        if unreadable(row):
            return UNREADABLE
        if characters(row) > self._how.max_characters:
            return TOO_LONG
        if same_answers(row):
            return SAME
        if row.get("consent") is False:
            return NO_CONSENT
        return self._cleaned(row)

    def _cleaned(self, row: Row) -> Judgement | str:
        """The judgement without personal data, if the recipe's filters keep it; one that asks for nothing passes them."""
        if self._redact is not None:
            row, found = self._redact(row)
            self._note(found)
            if found and same_answers(row):
                return SAME
        judged = judgement_of(as_conversation(row, "feedback") if self._how.chat else row)
        if not judged.sign:
            return judged
        if self._keep is not None and not self._keep(row):
            return FILTERED
        if self._systems and not written_in(texts(row), self._systems):
            return OTHER_WRITING
        return judged

    def _note(self, found: list[tuple[str, str]]) -> None:
        self.personal.update(kind for kind, _ in found)
        for secret in found:
            if len(self.redacted) < MOST_REDACTED:
                self.redacted.setdefault(secret)

    def _add(self, judged: Judgement, event: str, held: bool) -> None:
        columns, number = self._columns, len(self._columns["sign"])
        for name in ("sign", "first", "item", "answer", "said", "time"):
            columns[name].append(getattr(judged, name))
        columns["kind"].append(kind_of(judged))
        columns["size"].append(abs(judged.rating))
        columns["held"].append(held)
        columns["rater"].append(_number(self.raters, judged.rater))
        columns["group"].append(_number(self.groups, judged.group))
        columns["slot"].append(len(self.table) if judged.sign else NOBODY)
        for tag in judged.tags:
            self._tag_event.append(number)
            self._tag.append(_number(self.tags, tag))
        if judged.sign:
            self.table.append((number, event, *_kept(judged)))


def _kept(judged: Judgement) -> tuple[Any, ...]:
    """What an item is made of, in the order of its first fields, and who said it."""
    pair = (judged.prompt, judged.wanted, judged.unwanted, judged.rating)
    return (*pair, judged.edit, judged.rater, judged.group, judged.tags)


def _number(numbers: dict[str, int], name: str) -> int:
    return numbers.setdefault(name, len(numbers)) if name else NOBODY


def writing_systems(languages: Sequence[str]) -> tuple[str, ...]:
    """
    Names of writing systems as Unicode begins the names of their letters, such as LATIN, CYRILLIC or CJK.

    Raises:
        InputError: when no letter's name begins with one of them.
    """
    wanted = {name: name.strip().upper() for name in languages}
    missing = dict.fromkeys(name for name, upper in wanted.items() if not _is_known(upper))
    if missing:
        raise InputError(
            f"`feedback.languages` names {', '.join(map(repr, missing))}, and no letter of Unicode is called so",
            hint="name writing systems, as Latin, Cyrillic, Greek, Arabic, Devanagari, CJK, Hiragana or Hangul",
        )
    return tuple(wanted.values())


@functools.lru_cache(maxsize=256)
def _is_known(upper: str) -> bool:
    return bool(upper) and any(
        _starts(unicodedata.name(chr(i), ""), upper) for i in range(sys.maxunicode + 1) if chr(i).isalpha()
    )


def written_in(texts: Iterable[str], systems: tuple[str, ...]) -> bool:
    """
    Whether at least half of the letters belong to one of these writing systems; what has no letters, does.

    Args:
        systems: as `writing_systems` returns them.
    """
    ours = letters = 0
    for text in texts:
        if text.isascii() and "LATIN" in systems:
            found = sum(map(str.isalpha, text))
            ours, letters = ours + found, letters + found
            continue
        for character, times in Counter(text).items():
            if character.isalpha():
                letters += times
                ours += times * _belongs(character, systems)
    return ours >= LETTERS_MIN * letters


@functools.lru_cache(maxsize=65536)
def _belongs(character: str, systems: tuple[str, ...]) -> bool:
    name = unicodedata.name(character, "")
    return any(_starts(name, system) for system in systems)


def _starts(name: str, system: str) -> bool:
    """Whole words: `LATIN` is no beginning of `LATINX`."""
    return name == system or name.startswith((system + " ", system + "-"))
