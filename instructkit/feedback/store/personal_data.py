"""
Personal data in texts: found by shape and check digit, replaced by what kind of thing stood there.

Addresses, phones, cards and accounts are found by the pattern recognisers of presidio-analyzer (no language model, no
network), keys and tokens by the shapes that their issuers publish. Names are not looked for. A cheap look at each text
decides whether it could hold any; few do, and presidio is not even imported before one of them is met.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

KINDS = ("EMAIL", "PHONE", "CARD", "IBAN", "IP", "KEY")
PLACEHOLDER = re.compile(rf"<({'|'.join(KINDS)})>")
# Of numbers without a country code.
REGIONS = ("US", "GB", "DE", "FR", "IN", "BR", "AU", "CH", "ES", "JP", "IL")
# Per character of a token that only the word before it gives away; random hexadecimal digits have about 3.7.
ENTROPY_MIN_BITS = 3.2
# Below the first, presidio itself does not believe it; a key outranks what stands inside it.
SURE, KEY_SCORE = 0.3, 2.0
KEY_CHARACTERS = 16  # of the shortest key that is looked for
_WITHOUT_DIGITS = ("EMAIL", "KEY")
_TEXTS = ("prompt", "messages", "response", "better", "other")

# Gates: no more than what a text must hold for a kind to be in it.
_DIGIT = re.compile(r"\d")
_SIX_DIGITS = re.compile(r"\d(?:\W{0,4}\d){5}")
_IBAN_BEGINS = re.compile(r"[A-Z]{2}\d\d[ -]?[A-Z0-9]{4}")
_DOTTED = re.compile(r"\d\.\d")
_COLONS = re.compile(r"::|[0-9A-Fa-f]:[0-9A-Fa-f]{1,4}:")
_AT_A_DOMAIN = re.compile(r"(?<=[^\s@])@(?=\w[\w-]{0,62}\.\w)[\w.-]{1,255}")
_MAILBOX_CHARACTERS = 64  # RFC 5321, 4.5.3.1.1

_NOBODYS_ADDRESS = re.compile(r"127\.|0\.|255\.|::1?(/\d+)?$")  # of this machine, of none, or a mask
# Slices of Python, as `a[::2]` and `a[1::2]`, have the form of IPv6.
_IS_NO_SLICE = re.compile(r"[0-9A-Fa-f]{4}:.*[0-9A-Fa-f]|[0-9A-Fa-f]:.*[0-9A-Fa-f]{4}")
_DECIMAL = re.compile(r"(?:0|[1-9]\d*)\.\d+")
_BEFORE_THE_POINT = re.compile(r"(?<![\d.])\d+\.\Z")
_BOOK = re.compile(r"\bIS[BS]N(?:-1[03])?:?\s*$", re.IGNORECASE)

_KEYS = (
    re.compile(
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]*-----|\Z)", re.DOTALL
    ),
    re.compile(r"\beyJ[\w-]{8,4000}\.[\w-]{8,}\.[\w-]*"),  # JSON Web Token
    re.compile(r"\bsk-(?=[\w-]{0,99}\d)[\w-]{20,}"),
    re.compile(r"\b[srp]k_(?:live|test)_\w{16,}"),
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\b(?:gh[pousr]_\w{36,}|github_pat_\w{36,}|glpat-[\w-]{20,})"),
    re.compile(r"\bxox[abeoprs]-[\w-]{12,}"),
    re.compile(r"\bAIza[\w-]{35}"),
    re.compile(r"\b(?:hf|npm)_[A-Za-z0-9]{30,}"),
    re.compile(r"\bSG\.[\w-]{16,99}\.[\w-]{16,}"),
)
_NAMED_TOKEN = re.compile(
    r"(?i)\b(?:bearer|authorization|(?:[a-z]{1,20}[_-]){0,4}(?:token|api[_-]?key|secret|password|access[_-]?key))"
    r"\b[\"']?(?:\s*[:=]\s*|\s+(?:is\s+)?)[\"']?(?P<key>[\w+/=.-]{20,})"
)
_PASSWORD_IN_URL = re.compile(r"://[^\s/:@<>]*:(?P<key>[^\s/@<>]+)@")


@dataclass(frozen=True)
class Span:
    """Something found: its kind, its place, and how sure its finder is."""

    kind: str
    start: int
    end: int
    score: float


class Redactor:
    """Replaces personal data by typed placeholders such as `<EMAIL>`; what it has replaced, it leaves alone."""

    def redact(self, text: str) -> tuple[str, list[tuple[str, str]]]:
        """
        The text with placeholders, and what they stand for, as (kind, value) in the order of the text.

        What sticks out of an overlap is looked at again, so a second call finds nothing more.
        """
        found: list[tuple[str, str]] = []
        while may_hold(text) and (spans := _settled(_spans(text))):
            found += [(span.kind, text[span.start : span.end]) for span in spans]
            text = _replaced(text, spans)
        return text, found

    def row(self, row: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """
        A row of feedback with all its texts redacted: prompt or messages, response, better, other.

        Returns:
            The same object when nothing was found; and what was, as (kind, value).
        """
        changed: dict[str, Any] = {}
        found: list[tuple[str, str]] = []
        for name in _TEXTS:
            value = row.get(name)
            told, more = self._messages(value) if isinstance(value, list) else self._text(value)
            if more:
                changed[name] = told
                found += more
        return ({**row, **changed} if changed else row), found

    def _text(self, value: Any) -> tuple[Any, list[tuple[str, str]]]:
        return self.redact(value) if isinstance(value, str) and may_hold(value) else (value, [])

    def _messages(self, messages: list[Any]) -> tuple[list[Any], list[tuple[str, str]]]:
        told, found = [], []
        for message in messages:
            if isinstance(message, dict):
                content, more = self._text(message.get("content"))
                message = {**message, "content": content} if more else message
                found += more
            told.append(message)
        return told, found


def may_hold(text: str) -> bool:
    """Whether a text could hold personal data; False is certain."""
    kinds = KINDS if _DIGIT.search(text) else _WITHOUT_DIGITS
    return any(_GATES[kind](text) for kind in kinds)


def placeholders(text: str) -> Counter[str]:
    """How many placeholders a text holds, by kind."""
    return Counter(PLACEHOLDER.findall(text) if "<" in text else ())


def _has_six_digits(text: str) -> bool:
    return _SIX_DIGITS.search(text) is not None


def _may_be_iban(text: str) -> bool:
    return _IBAN_BEGINS.search(text) is not None


def _may_be_ip(text: str) -> bool:
    return _DOTTED.search(text) is not None or (":" in text and _COLONS.search(text) is not None)


def _may_be_key(text: str) -> bool:
    return "://" in text or "PRIVATE KEY" in text or max(map(len, text.split()), default=0) >= KEY_CHARACTERS


_GATES: dict[str, Callable[[str], bool]] = {
    "EMAIL": lambda text: "@" in text,
    "CARD": _has_six_digits,
    "PHONE": _has_six_digits,
    "IP": _may_be_ip,
    "IBAN": _may_be_iban,
    "KEY": _may_be_key,
}


def _spans(text: str) -> Iterator[Span]:
    """All that could be meant, overlaps and all."""
    for kind, gate in _GATES.items():
        if not gate(text):
            continue
        if kind == "KEY":
            yield from _keys(text)
            continue
        for first, last in _windows(kind, text):
            for found in _recognisers()[kind].analyze(text[first:last], []):
                span = Span(kind, first + found.start, first + found.end, found.score)
                if span.score >= SURE and _means_somebody(text, span):
                    yield span


def _windows(kind: str, text: str) -> Iterator[tuple[int, int]]:
    """Where to look: presidio's pattern of addresses takes time that grows with the square of what it is given."""
    if kind != "EMAIL":
        yield 0, len(text)
        return
    for found in _AT_A_DOMAIN.finditer(text):
        yield max(0, found.start() - _MAILBOX_CHARACTERS), found.end()


def _keys(text: str) -> Iterator[Span]:
    for pattern in _KEYS:
        for found in pattern.finditer(text):
            yield Span("KEY", *found.span(), KEY_SCORE)
    for found in _PASSWORD_IN_URL.finditer(text):
        yield Span("KEY", *found.span("key"), KEY_SCORE)
    for found in _NAMED_TOKEN.finditer(text):
        if _looks_random(found["key"]):
            yield Span("KEY", *found.span("key"), KEY_SCORE)


def _looks_random(token: str) -> bool:
    """Letters and digits, and H = -Σ p log2 p over its characters as high as that of hexadecimal digits drawn at random."""
    if not (_DIGIT.search(token) and re.search("[A-Za-z]", token)):
        return False
    shares = [n / len(token) for n in Counter(token).values()]
    return -sum(share * math.log2(share) for share in shares) >= ENTROPY_MIN_BITS


def _means_somebody(text: str, span: Span) -> bool:
    """Whether what has the form of an address or a number is one: what machines and books are numbered by is not."""
    value = text[span.start : span.end]
    if span.kind in ("PHONE", "CARD") and _is_decimal(text, span):
        return False
    if span.kind == "IP":
        if _NOBODYS_ADDRESS.match(value) or not _DIGIT.search(value):  # words may have its form, `bad::cafe`
            return False
        return "." in value or _IS_NO_SLICE.search(value) is not None
    if span.kind == "PHONE":
        if _BOOK.search(text[max(0, span.start - 12) : span.start]):
            return False
        # A second since 1970 or a count has no separator, and no area begins with 1.
        return not re.fullmatch(r"1\d+|\d{,8}|(\d{1,3}\.){3}\d{1,3}", value)
    return True


def _is_decimal(text: str, span: Span) -> bool:
    """Whether digits are a number with a point, or the part behind the point: of 0.5 on, and 17.25, but of no area as 030."""
    behind = _BEFORE_THE_POINT.search(text, max(0, span.start - 32), span.start)
    return behind is not None or _DECIMAL.fullmatch(text, span.start, span.end) is not None


def _settled(spans: Iterator[Span]) -> list[Span]:
    """Of those that overlap the surest, then the longest, then the first; in the order of the text."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (-span.score, span.start - span.end, span.start, span.kind)):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)


def _replaced(text: str, spans: list[Span]) -> str:
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span.start], f"<{span.kind}>"]
        end = span.end
    return "".join([*parts, text[end:]])


@functools.cache
def _recognisers() -> dict[str, Any]:
    """Presidio's recognisers by our names, none of which asks a model or the network."""
    import tldextract
    from presidio_analyzer import Pattern
    from presidio_analyzer.predefined_recognizers import (
        CreditCardRecognizer,
        EmailRecognizer,
        IbanRecognizer,
        IpRecognizer,
        PhoneRecognizer,
    )

    # By default it would fetch the newest list of suffixes, and keep it in the user's home.
    suffixes = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class OfflineEmailRecognizer(EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return suffixes(pattern_text).fqdn != ""

    newer = [  # Mastercard's second series, and the 19 digits of Maestro and UnionPay
        Pattern("2 series", r"\b2[2-7]\d{2}[- ]?\d{4}[- ]?\d{4}[- ]?\d{4}\b", SURE),
        Pattern("19 digits", r"\b6\d{3}[- ]?\d{4}[- ]?\d{4}[- ]?\d{4}[- ]?\d{3}\b", SURE),
    ]
    return {
        "EMAIL": OfflineEmailRecognizer(),
        "CARD": CreditCardRecognizer(patterns=[*CreditCardRecognizer.PATTERNS, *newer]),
        "PHONE": PhoneRecognizer(supported_regions=REGIONS),
        "IP": IpRecognizer(),
        "IBAN": IbanRecognizer(),
    }
