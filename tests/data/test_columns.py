"""What columns may mean, by their names and by what stands in them."""

from __future__ import annotations

import pytest

from instructkit.data.columns import parse, propose
from instructkit.errors import InputError

QUESTIONS = [f"Where is order {i}?" for i in range(20)]
ANSWERS = [f"It is on its way, number {i}." for i in range(20)]
TABLES = {
    "a help desk": (
        ["Ticket", "Created", "Customer Message", "Agent_Reply (final)"],
        ["prompt", "completion"],
    ),
    "the answer first": (["Ticket", "Created", "supportReply", "userQuestion"], ["completion", "prompt"]),
    "one name is known": (["Ticket", "Created", "Text", "Our answer"], ["prompt", "completion"]),
    "no name is known": (["Ticket", "Created", "Column 1", "Column 2"], ["prompt", "completion"]),
    "pairs": (["Ticket", "Created", "Better reply", "Worse reply"], ["chosen", "rejected"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_understood(name: str) -> None:
    names, fields = TABLES[name]
    rows = [
        dict(zip(names, (str(i), f"2024-05-{i + 1:02} 10:00", q, a), strict=True))
        for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    assert propose(rows) == dict(zip(names[2:], fields, strict=True))


def test_a_rating_makes_feedback_of_an_answer() -> None:
    rows = [
        {"User Query": q, "Bot Response": a, "Was it helpful?": "yes" if i % 2 else "no"}
        for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    assert propose(rows) == {"User Query": "prompt", "Bot Response": "response", "Was it helpful?": "rating"}


def test_numbers_and_a_few_words_are_nothing() -> None:
    assert propose([{"a": i, "b": "open" if i % 2 else "shut", "c": f"{i}.5"} for i in range(40)]) == {}


def test_stock_answers_are_texts() -> None:
    stock = ["Your parcel is on its way.", "We do not know."]
    rows = [{"Customer": f"Where is {i}?", "Agent": stock[i % 2], "State": "open"} for i in range(40)]
    assert propose(rows) == {"Customer": "prompt", "Agent": "completion"}


def test_names_may_hold_anything() -> None:
    assert parse("A, b=c = prompt, Reply (final)=completion") == {
        "A, b=c": "prompt",
        "Reply (final)": "completion",
    }
    for wrong in ("", "prompt", "=prompt", "a=prompt,b"):
        with pytest.raises(InputError):
            parse(wrong)
