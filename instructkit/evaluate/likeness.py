"""
Others of a secret's form: what it is ranked among.

A rank is an exact probability only where the secret might as well have been one of the others. So only what was private
varies: an update that has grown fond of a company's domain has not learned the addresses in it, and must not be refused for it.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import string
from collections.abc import Callable, Sequence

# What issuers put before a key, in the shapes that `feedback.personal` finds, which is the same for everybody.
_ISSUER = re.compile(
    r"""
    -----BEGIN[A-Z0-9 ]*-----\s*
    | eyJ[\w-]*\.(?:eyJ)?                   # the header of a JSON Web Token says how it was signed
    | sk-(?:(?:proj|ant|svcacct|admin|or|live|test|api\d+|v\d+)-)*
    | [srp]k_(?:live|test)_
    | AKIA | ASIA | AIza
    | gh[pousr]_ | github_pat_ | glpat-
    | xox[abeoprs]-
    | hf_ | npm_
    | SG\.
    """,
    re.VERBOSE,
)
_END = re.compile(r"\s*-----END[A-Z0-9 ]*-----\s*\Z")
CARD_ISSUER_DIGITS = 6  # ISO/IEC 7812-1 before 2017; eight since, which would leave a card of 16 digits seven
IBAN_COUNTRY = 4  # characters: the country, and check digits of the whole
# Characters that name bank and branch, where they are not the usual four (SWIFT, IBAN registry).
IBAN_BANK = {
    "AT": 5, "BE": 3, "CH": 5, "DE": 8, "DK": 4, "ES": 8, "FI": 6, "FR": 10, "GB": 10, "IE": 10, "IT": 11, "LI": 5,
    "LU": 3, "PL": 8, "PT": 8, "SE": 3,
}  # fmt: skip
IBAN_BANK_USUAL = 4


def private_part(kind: str, value: str) -> tuple[int, int]:
    """
    The first character of what is private in a secret, and the one behind its last.

        EMAIL  the mailbox, before the `@`
        KEY    what comes behind the issuer's prefix; of a block the lines between `BEGIN` and `END`
        CARD   what comes behind the six digits of the issuer
        IBAN   what comes behind country and bank
        PHONE  what comes behind the first third of the digits, where country and area stand
        IP     the last two groups

    Of every other kind, and where nothing of that form is in it, the whole.

    Args:
        kind: as `feedback.personal` names it, in capitals or not.
        value: the secret.
    """
    start, end = _parts(kind.upper(), value)
    return (start, end) if any(map(_pool, value[start:end])) else (0, len(value))


def alike(kind: str, value: str, count: int, rng: random.Random) -> list[str]:
    """
    Random texts of a secret's form, all of them different and none of them the secret itself.

    What is private varies, see `private_part`: a digit for a digit, a small letter for a letter, a capital for a capital, a
    number of as many digits for a group of an address. Check digits of cards (Luhn) and accounts (ISO 7064) are right where
    those of the secret are; check digits that single countries put into accounts are not looked at.

    Args:
        kind: as for `private_part`.
        value: the secret.
        count: how many; all that there are where a form has fewer.
        rng: draws.

    Raises:
        ValueError: when there is no letter and no digit to vary.
    """
    pools, finished = _form(kind.upper(), value)
    if not any(len(pool) > 1 for pool in pools):
        raise ValueError("a text without letters and digits has no others of its form")
    if math.prod(map(len, pools)) <= 4 * count:  # few enough to be written down, and so the draw ends
        others = sorted({finished("".join(made)) for made in itertools.product(*pools)} - {value})
        return rng.sample(others, min(count, len(others)))
    found: dict[str, None] = {}
    while len(found) < count:
        made = finished("".join(map(rng.choice, pools)))
        if made != value:
            found[made] = None
    return list(found)


def _parts(kind: str, value: str) -> tuple[int, int]:
    if kind == "EMAIL":
        return 0, max(0, value.rfind("@"))
    if kind == "KEY":
        issuer, end = _ISSUER.match(value), _END.search(value)
        return issuer.end() if issuer else 0, end.start() if end else len(value)
    if kind == "CARD":
        return _behind(value, str.isdecimal, CARD_ISSUER_DIGITS), len(value)
    if kind == "IBAN":
        return _behind(value, str.isalnum, IBAN_COUNTRY + IBAN_BANK.get(value[:2], IBAN_BANK_USUAL)), len(
            value
        )
    if kind == "PHONE":
        digits = sum(map(str.isdecimal, value))
        return _behind(value, str.isdecimal, -(-digits // 3)), len(value)
    if kind == "IP":
        groups = _groups(value)
        return (groups[-2:][0].start(), groups[-1].end()) if groups else (0, 0)
    return 0, len(value)


def _behind(value: str, counted: Callable[[str], bool], count: int) -> int:
    """The place behind so many of the characters that count; the end where there are not so many."""
    places = [i for i, character in enumerate(value) if counted(character)]
    return places[count - 1] + 1 if count <= len(places) else len(value)


def _groups(address: str) -> list[re.Match[str]]:
    """The numbers of an address, without the length of a network's prefix."""
    return list(re.finditer(r"[0-9A-Fa-f]+", address.split("/")[0].split("%")[0]))


def _form(kind: str, value: str) -> tuple[list[Sequence[str]], Callable[[str], str]]:
    """What may stand at each place, and what makes check digits right."""
    start, end = private_part(kind, value)
    inside = value[start:end]
    if kind == "IP" and (start, end) != (0, len(value)):
        middle = _numbers(inside)
    else:
        middle = [_pool(character) or [character] for character in inside]
    pools = [*value[:start], *middle, *value[end:]]
    if kind == "CARD" and _luhn(value) == 0:
        last = _behind(value, str.isdecimal, sum(map(str.isdecimal, value))) - 1
        pools[last] = "0"
        return pools, lambda made: made[:last] + str(-_luhn(made) % 10) + made[last + 1 :]
    if kind == "IBAN" and _remainder(value) == 1:
        return pools, lambda made: f"{made[:2]}{98 - _remainder(made[:2] + '00' + made[4:]):02d}{made[4:]}"
    return pools, lambda made: made


def _numbers(inside: str) -> list[Sequence[str]]:
    """Of a piece of an address: numbers up to 255 with as many digits, of version 6 hexadecimal digits."""
    if ":" in inside or not re.fullmatch(r"\d{1,3}\.\d{1,3}", inside):
        letters = "ABCDEF" if any(map(str.isupper, inside)) else "abcdef"
        return [string.digits + letters if c in string.hexdigits else c for c in inside]
    first, second = ([str(n) for n in range(256) if len(str(n)) == len(group)] for group in inside.split("."))
    return [first, ".", second]


def _pool(character: str) -> str:
    if character.isdecimal():
        return string.digits
    if character.isalpha():
        return string.ascii_uppercase if character.isupper() else string.ascii_lowercase
    return ""


def _luhn(number: str) -> int:
    """Luhn's sum modulo ten, 0 where the check digit is right: every second digit from the right doubled (ISO/IEC 7812-1)."""
    digits = [int(c) for c in number if c.isdecimal()][::-1]
    return sum(sum(divmod(2 * d, 10)) if i % 2 else d for i, d in enumerate(digits)) % 10


def _remainder(account: str) -> int:
    """An IBAN modulo 97, 1 where its check digits are right: the first four behind the rest, letters from 10 on (ISO 7064)."""
    plain = [c for c in account.upper() if c in string.digits + string.ascii_uppercase]
    return int("".join(str(int(c, 36)) for c in [*plain[4:], *plain[:4]]) or "0") % 97
