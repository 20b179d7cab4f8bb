"""Writing systems: which letters a text is written in, by Unicode's names for them."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from instructkit.errors import InputError

LETTERS_MIN = (
    0.5  # (j) of a text's letters: names, code and quotations in another script are no other language
)


def known(languages: Sequence[str]) -> tuple[str, ...]:
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
    Whether at least half (j) of the letters belong to one of these writing systems; what has no letters, does.

    Args:
        systems: as `known` returns them.
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
