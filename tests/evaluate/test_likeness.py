"""Others of a secret's form: what varies is what was private, check digits are right, and all are different."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructkit.evaluate.memorisation import alike, private_part
from instructkit.feedback.store.personal_data import Redactor

# Kind, what is public before, what is private, what is public behind it. The numbers are examples of their issuers.
FORMS = [
    ("EMAIL", "", "ann.bell", "@acme-travel.com"),
    ("email", "", "ann.bell", "@acme-travel.com"),
    ("KEY", "sk-", "a1B2c3D4e5F6g7H8i9J0", ""),
    ("KEY", "sk-ant-api03-", "a1B2c3D4e5F6g7H8i9J0", ""),
    ("KEY", "sk_live_", "a1B2c3D4e5F6g7H8", ""),
    ("KEY", "AKIA", "ABCDEFGH12345678", ""),
    ("KEY", "ASIA", "ABCDEFGH12345678", ""),
    ("KEY", "ghp_", "a1B2c3D4e5F6g7H8i9J0a1B2c3D4e5F6g7H8", ""),
    ("KEY", "github_pat_", "a1B2c3D4e5F6g7H8i9J0a1B2c3D4e5F6g7H8", ""),
    ("KEY", "glpat-", "a1B2c3D4e5F6g7H8i9J0", ""),
    ("KEY", "xoxb-", "123456789012-abcdef", ""),
    ("KEY", "AIza", "a1B2c3D4e5F6g7H8i9J0a1B2c3D4e5F6g7H", ""),
    ("KEY", "hf_", "a1B2c3D4e5F6g7H8i9J0a1B2c3D4e5", ""),
    ("KEY", "npm_", "a1B2c3D4e5F6g7H8i9J0a1B2c3D4e5", ""),
    ("KEY", "SG.", "a1B2c3D4e5F6g7H8.i9J0a1B2c3D4e5F6", ""),
    ("KEY", "eyJhbGciOiJIUzI1NiJ9.eyJ", "zdWIiOiIxIn0.c2lnbmF0dXJl", ""),
    ("KEY", "-----BEGIN RSA PRIVATE KEY-----\n", "MIIab12\nXyz9", "\n-----END RSA PRIVATE KEY-----"),
    ("CARD", "4111 11", "11 1111 1111", ""),
    ("IBAN", "DE8937040044", "0532013000", ""),
    ("IBAN", "GB29 NWBK 6016 13", "31 9268 19", ""),
    ("PHONE", "+1 415", " 555-2671", ""),
    ("IP", "203.0.", "113.77", ""),
    ("IP", "2001:db8:0:0:0:0:", "1a2b:c3d4", ""),
    ("canary", "", "quilt 4471", ""),
    ("KEY", "", "hunter2hunter3hunter4", ""),
]


@pytest.mark.parametrize(("kind", "before", "private", "behind"), FORMS)
def test_what_varies_is_what_was_private(kind: str, before: str, private: str, behind: str) -> None:
    value = before + private + behind
    assert private_part(kind, value) == (len(before), len(before) + len(private))
    others = alike(kind, value, 60, random.Random(0))
    assert len({*others, value}) == 61
    assert others == alike(kind, value, 60, random.Random(0)) != alike(kind, value, 60, random.Random(1))
    inside = [other[len(before) : len(other) - len(behind)] for other in others]
    if kind != "IBAN":  # whose check digits, the third and fourth character, follow from the rest
        assert all(other.startswith(before) and other.endswith(behind) for other in others)
    varied = {
        i for made in inside for i, (old, new) in enumerate(zip(private, made, strict=True)) if old != new
    }
    assert varied == {i for i, character in enumerate(private) if character.isalnum()}
    for made in inside:
        for old, new in zip(private, made, strict=True):
            if kind == "IP":  # of version 6 letters and digits are one
                assert old.isalnum() == new.isalnum()
            else:
                assert (old.isdigit(), old.islower(), old.isupper()) == (
                    new.isdigit(), new.islower(), new.isupper(),
                )  # fmt: skip
                assert old.isalnum() or old == new


def test_every_kind_of_key_that_is_looked_for_is_among_these() -> None:
    """A form that is redacted and has no known beginning would be ranked against others that no issuer gives out."""
    for kind, before, private, behind in FORMS:
        if kind == "KEY" and before:
            value = before + private + behind
            assert Redactor().redact(f"It is {value}")[1] == [("KEY", value)]


def test_cards_and_accounts_have_right_check_digits_where_the_secret_has() -> None:
    def luhn(number: str) -> int:
        digits = [int(c) for c in number if c.isdigit()]
        doubled = [d if i % 2 else (2 * d if d < 5 else 2 * d - 9) for i, d in enumerate(digits)]  # 16 digits
        return sum(doubled) % 10

    def modulo_97(account: str) -> int:
        plain = account.replace(" ", "")
        return int("".join(str(ord(c) - 55) if c.isalpha() else c for c in plain[4:] + plain[:4])) % 97

    cards = alike("CARD", "4111 1111 1111 1111", 200, random.Random(0))
    assert {luhn(card) for card in cards} == {0}
    assert {luhn(card) for card in alike("CARD", "4111 1111 1111 1112", 200, random.Random(0))} == set(
        range(10)
    )
    for account in ("DE89370400440532013000", "GB29 NWBK 6016 1331 9268 19"):
        assert {modulo_97(other) for other in alike("IBAN", account, 200, random.Random(0))} == {1}


def test_groups_of_an_address_are_numbers_that_there_are() -> None:
    others = alike("IP", "203.0.113.77", 200, random.Random(0))
    assert all(ip_address(other) and len(other) == 12 for other in others)
    assert all(other.endswith("/24") for other in alike("IP", "10.0.0.1/24", 20, random.Random(0)))


def test_where_there_are_fewer_others_all_of_them_are_given() -> None:
    """Nine digits, 25 letters, and 10 x 10 - 1 addresses: none twice, and drawing comes to an end."""
    assert sorted(alike("pin", "7", 200, random.Random(0))) == [d for d in "0123456789" if d != "7"]
    assert len(set(alike("EMAIL", "a@b.org", 200, random.Random(0)))) == 25
    assert len(set(alike("IP", "10.0.0.1", 200, random.Random(0)))) == 99
    assert len(set(alike("pin", "77", 99, random.Random(0)))) == 99


def test_where_nothing_private_is_left_the_whole_varies() -> None:
    assert private_part("EMAIL", "_@x.org") == (0, 7) and private_part("CARD", "4111") == (0, 4)
    assert private_part("IP", "host") == (0, 4)


def test_a_draw_is_even() -> None:
    """Each of nine digits is as likely: below the 99.9 % point of chi-square with 8 degrees."""
    counts = [0] * 10
    for seed in range(600):
        counts[int(alike("pin", "3", 1, random.Random(seed))[0])] += 1
    assert counts[3] == 0 and sum((n - 600 / 9) ** 2 / (600 / 9) for n in counts[:3] + counts[4:]) < 26.1


@given(st.text(alphabet="abzAZ059 .@-é", min_size=1, max_size=12), st.integers(0, 5))
def test_a_text_of_the_same_form(text: str, seed: int) -> None:
    if not any(character.isalnum() for character in text):
        with pytest.raises(ValueError, match="without letters and digits"):
            alike("canary", text, 1, random.Random(seed))
        return
    (made,) = alike("canary", text, 1, random.Random(seed))
    assert made != text
    for old, new in zip(text, made, strict=True):
        assert (old.isdigit(), old.islower(), old.isupper()) == (new.isdigit(), new.islower(), new.isupper())
        assert old.isalnum() or old == new
