"""Judgements in the files of others, each read as the event that it tells."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from instructkit.errors import Fault
from instructkit.feedback.store.importers import Reading, read

ASKED = [{"role": "user", "content": "q"}]
TALK = [*ASKED, {"role": "assistant", "content": "a"}]

FORMATS = {
    "ours": ({"prompt": "q", "response": "a", "rating": 0.5}, [("q", "a", {"rating": 0.5})]),
    "thumbs": ({"prompt": "q", "response": "a", "thumbs": "down"}, [("q", "a", {"rating": -1.0})]),
    "a truth value": ({"prompt": "q", "response": "a", "label": True}, [("q", "a", {"rating": 1.0})]),
    "a chat log": ({"messages": TALK, "score": 1}, [(ASKED, "a", {"rating": 1.0})]),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
            "rating": "thumbs_up",
        },
        [(ASKED, "a", {"rating": 1.0})],
    ),
    "Langfuse as text": (
        {
            "input": json.dumps({"messages": ASKED}),
            "output": json.dumps({"role": "assistant", "content": "a"}),
            "scores": [{"name": "user", "value": 1}],
        },
        [(ASKED, "a", {"rating": 1.0})],
    ),
    "Langfuse about JSON": (
        {"input": '{"a": 1}', "output": "[1, 2]", "scores": [{"name": "user", "value": 1}]},
        [('{"a": 1}', "[1, 2]", {"rating": 1.0})],
    ),
    "an arena": (
        {
            "model_a": "x",
            "model_b": "y",
            "winner": "model_b",
            "judge": "u1",
            "tstamp": 1700000000.5,
            "conversation_a": TALK,
            "conversation_b": [*ASKED, {"role": "assistant", "content": "b", "num_tokens": 1}],
        },
        [(ASKED, "a", {"other": "b", "preferred": "other", "shown_first": "response"})],
    ),
    "an arena's tie": (
        {
            "winner": "tie (bothbad)",
            "conversation_a": TALK,
            "conversation_b": [*ASKED, {"role": "assistant", "content": "b"}],
        },
        [(ASKED, "a", {"other": "b", "preferred": "tie", "shown_first": "response"})],
    ),
    "Argilla 2": (
        {
            "fields": {"instruction": "q", "response": "a"},
            "responses": {
                "rating": [
                    {"value": 1, "user_id": "u1", "status": "submitted"},
                    {"value": -1, "user_id": "u2", "status": "discarded"},
                ],
                "correction": [{"value": "b", "user_id": "u2"}],
            },
        },
        [("q", "a", {"rating": 1.0}), ("q", "a", {"better": "b"})],
    ),
    "Argilla 1": (
        {
            "fields": {"prompt": "q", "answer": "a"},
            "responses": [{"user_id": "u1", "status": "submitted", "values": {"rating": {"value": -1}}}],
        },
        [("q", "a", {"rating": -1.0})],
    ),
    "Langfuse": (
        {
            "id": "t",
            "input": {"messages": ASKED},
            "output": {"role": "assistant", "content": "a"},
            "userId": "u1",
            "scores": [
                {
                    "name": "user-feedback",
                    "value": 0,
                    "dataType": "BOOLEAN",
                    "timestamp": "2026-01-01T00:00:00Z",
                },
                {"name": "quality", "value": 0.5, "dataType": "NUMERIC"},
            ],
        },
        [(ASKED, "a", {"rating": -1.0}), (ASKED, "a", {"rating": 0.5})],
    ),
}


def write(folder: Path, *rows: dict) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, tmp_path) -> None:
    row, expected = FORMATS[name]
    found = list(read(write(tmp_path, row), Reading()))
    assert [(event.prompt, event.response, event.judgement) for event, _ in found] == expected
    assert all(event.source == "import:rows.jsonl" for event, _ in found)


def test_a_rater_may_be_the_number_0(tmp_path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"prompt": "q", "response": "a", "rating": 1, "rater": 0}\n', encoding="utf-8")
    ((event, _),) = read(str(source), Reading())
    assert event.rater == "0"


def test_what_else_a_row_says_is_kept(tmp_path) -> None:
    (arena, _), (argilla, _), *_ = read(
        write(tmp_path, FORMATS["an arena"][0], FORMATS["Argilla 2"][0]), Reading()
    )
    assert (arena.rater, arena.run, arena.time) == ("u1", "x", "2023-11-14T22:13:20.500Z")
    assert argilla.rater == "u1"


ABOUT = {"consent": False, "group": "a", "tags": ["x", "y"], "time": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize("wrap", [lambda about: about, lambda about: {"metadata": about}])
@pytest.mark.parametrize("name", FORMATS)
def test_consent_group_tags_and_time_come_through_every_format(name: str, wrap, tmp_path) -> None:
    row = {key: value for key, value in FORMATS[name][0].items() if key != "tstamp"}
    found = list(read(write(tmp_path, {**row, **wrap(ABOUT)}), Reading(consent=True)))
    assert len(found) == len(FORMATS[name][1])
    assert {(event.consent, event.group, event.tags) for event, _ in found} == {(False, "a", ("x", "y"))}
    if "metadata" not in wrap(ABOUT):  # there a time may be anything, such as how long an answer took
        assert {event.time for event, _ in found} == {"2026-01-01T00:00:00.000Z"}


@pytest.mark.parametrize("about", [{"time": "1.2s"}, {"group": 3}, {"tags": {"env": "prod"}}, {"tags": [1]}])
@pytest.mark.parametrize("name", FORMATS)
def test_other_things_of_these_names_in_a_metadata_are_no_faults(name: str, about, tmp_path) -> None:
    path = write(tmp_path, {**FORMATS[name][0], "metadata": about})
    plain = [event.group for event, _ in read(path, Reading())]
    assert len(plain) == len(FORMATS[name][1]) and 3 not in plain


def test_a_metadata_of_text_is_read_too(tmp_path) -> None:
    row = FORMATS["Langfuse"][0]
    ((event, _), *_) = read(write(tmp_path, {**row, "metadata": '{"consent": "no"}'}), Reading())
    assert event.consent is False
    ((event, _), *_) = read(write(tmp_path, {**row, "metadata": "of no use"}), Reading())
    assert event.consent is True


@pytest.mark.parametrize("name", ["ours", "a chat log", "an arena", "Argilla 2", "Langfuse"])
def test_a_refusal_of_consent_holds_wherever_it_stands(name: str, tmp_path) -> None:
    row = FORMATS[name][0]
    for told in (
        {"consent": True, "metadata": {"consent": False}},
        {"consent": False, "metadata": {"consent": True}},
    ):
        found = list(read(write(tmp_path, {**row, **told}), Reading()))
        assert [event.consent for event, _ in found] == [False] * len(found)
    (fault,) = read(write(tmp_path, {**row, "metadata": {"consent": "ask me"}}), Reading())
    assert isinstance(fault, Fault) and "`consent` is 'ask me'; wanted true or false" in fault.message


def test_what_a_score_says_is_of_that_score_alone(tmp_path) -> None:
    row = FORMATS["Langfuse"][0]
    one, other = row["scores"]
    one = {**one, "metadata": {"consent": False, "tags": "x"}}
    (first, _), (second, _) = read(write(tmp_path, {**row, "scores": [one, other], "tags": ["y"]}), Reading())
    assert (first.consent, first.tags) == (False, ("x", "y"))
    assert (second.consent, second.tags) == (True, ("y",))


def test_an_arena_has_its_language_beside_its_tags(tmp_path) -> None:
    ((event, _),) = read(
        write(tmp_path, {**FORMATS["an arena"][0], "language": "German", "tags": ["x"]}), Reading()
    )
    assert event.tags == ("German", "x")


def said(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_an_arena_of_several_turns_with_the_same_history(tmp_path) -> None:
    row = {
        "winner": "model_a",
        "conversation_a": said("q", "a", "r", "b"),
        "conversation_b": said("q", "a", "r", "c"),
    }
    ((event, _),) = read(write(tmp_path, row), Reading())
    assert (event.prompt, event.response) == (said("q", "a", "r"), "b")
    assert event.judgement == {"other": "c", "preferred": "response", "shown_first": "response"}


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (("q", "a"), ("z", "b"), "follow different conversations: message 1 is not the same"),
        (
            ("q", "a", "r", "c"),
            ("q", "b", "r", "d"),
            "follow different conversations: message 2 is not the same",
        ),
        (
            ("q", "a"),
            ("q", "a", "r", "d"),
            "follow different conversations: they have 1 and 3 messages before them",
        ),
        (
            ("q", "a"),
            ("q", "b", "r"),
            "`conversation_b` ends with the role 'user'; wanted the assistant's answer",
        ),
        (
            ("q", "a", "r"),
            ("q", "b"),
            "`conversation_a` ends with the role 'user'; wanted the assistant's answer",
        ),
        (("q", "a"), (), "`conversation_b` is empty; wanted a list of messages"),
    ],
)
def test_arena_answers_that_cannot_be_compared(one, other, told: str, tmp_path) -> None:
    source = write(
        tmp_path, {"winner": "model_b", "conversation_a": said(*one), "conversation_b": said(*other)}
    )
    (fault,) = read(source, Reading())
    assert isinstance(fault, Fault) and fault.where == f"{source}:1"
    assert told in fault.message


@pytest.mark.parametrize(("stars", "rating"), [(1, -1.0), (3, 0.0), (5, 1.0), ("4", 0.5)])
def test_a_scale_is_stretched_to_ours(stars, rating: float, tmp_path) -> None:
    source = write(tmp_path, {"prompt": "q", "response": "a", "score": stars})
    ((event, _),) = read(source, Reading(scale=(1, 5)))
    assert event.judgement == {"rating": rating}


@pytest.mark.parametrize("stars", ["-1", -1, "0", "thumbs"])
def test_off_the_scale_is_a_fault_as_a_text_too(stars, tmp_path) -> None:
    (fault,) = read(write(tmp_path, {"prompt": "q", "response": "a", "rating": stars}), Reading(scale=(1, 5)))
    assert isinstance(fault, Fault) and f"`rating` is {stars!r}; wanted a number" in fault.message


@pytest.mark.parametrize(("told", "rating"), [("-1", -1.0), ("+1", 1.0), (" 0.5 ", 0.5), ("Down", -1.0)])
def test_texts_without_a_scale(told: str, rating: float, tmp_path) -> None:
    ((event, _),) = read(write(tmp_path, {"prompt": "q", "response": "a", "rating": told}), Reading())
    assert event.judgement == {"rating": rating}


def test_one_field_can_be_chosen(tmp_path) -> None:
    row = FORMATS["Langfuse"][0]
    ((event, _),) = read(write(tmp_path, row), Reading(field="quality"))
    assert event.judgement == {"rating": 0.5}
    ((event, _),) = read(
        write(tmp_path, {"prompt": "q", "response": "a", "stars": -1, "rating": 1}), Reading(field="stars")
    )
    assert event.judgement == {"rating": -1.0}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"prompt": "q", "response": "a", "rating": 4},
            "wanted a number from -1 to 1; say the scale of the file, as --scale 1:5",
        ),
        (
            {"prompt": "q", "response": "a", "rating": "great"},
            "`rating` is 'great'; wanted a number, true or false, or up or down",
        ),
        ({"prompt": "q", "response": "a"}, "wanted a rating, a better answer or a preference"),
        ({"prompt": "q", "response": "a", "better": "a"}, "`better` is the same as `response`"),
        ({"response": "a", "rating": 1}, "wanted `prompt` or `messages`"),
        ({"prompt": "q", "response": "a", "rating": 1, "tags": 3}, "`tags` is 3; wanted a list of texts"),
        ({"prompt": "q", "response": "a", "rating": 1, "time": "soon"}, "`time` is 'soon'; wanted ISO 8601"),
        (
            {"prompt": "q", "response": "a", "rating": 1, "consent": "maybe"},
            "`consent` is 'maybe'; wanted true or false",
        ),
        ({"messages": ASKED, "rating": 1}, "does not end with an assistant's answer"),
        (
            {"winner": "c", "conversation_a": TALK, "conversation_b": TALK},
            "`winner` is 'c'; wanted `model_a`",
        ),
        (
            {"winner": "tie", "conversation_a": TALK, "conversation_b": TALK},
            "`other` is the same as `response`",
        ),
        ({"fields": {"x": 1}, "responses": {}}, "wanted a prompt and a response"),
        ({"input": "q", "output": "a", "scores": []}, "the trace has no score"),
        ({"a": 1}, "found `a`; wanted a prompt or messages"),
    ],
)
def test_faults_say_where_and_what(row: dict, told: str, tmp_path) -> None:
    source = write(tmp_path, FORMATS["ours"][0], row)
    good, fault = read(source, Reading())
    assert isinstance(fault, Fault) and not isinstance(good, Fault)
    assert fault.where == f"{source}:2"
    assert told in fault.message


def test_a_table_of_ratings(tmp_path) -> None:
    path = tmp_path / "ratings.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["prompt", "response", "rating", "tags", "consent", "rater"])
        table.writerow(["q", "7", "5", "a, b", "no", "ann"])
    ((event, _),) = read(str(path), Reading(scale=(1, 5)))
    assert (event.response, event.judgement, event.tags, event.consent) == (
        "7",
        {"rating": 1.0},
        ("a", "b"),
        False,
    )


@pytest.mark.parametrize(
    ("header", "cells", "told"),
    [
        (
            "prompt,response,rating",
            "q,a,",
            "`rating` is empty; wanted a rating, a better answer or a preference",
        ),
        (
            "prompt,response,better",
            "q,a,",
            "`better` is empty; wanted a rating, a better answer or a preference",
        ),
        ("prompt,response,rating,thumbs", "q,a,,", "`rating` and `thumbs` are empty; wanted a rating,"),
        ("prompt,response,stars,rating", "q,a,,1", "`stars` is empty; wanted a rating"),
        ("prompt,response,rating", "q,,1", "`response` is empty; wanted the answer that was judged"),
        ("prompt,response,rating", "q,,", "`response` is empty; wanted the answer that was judged"),
    ],
)
def test_an_empty_cell_is_named(header: str, cells: str, told: str, tmp_path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text(f"{header}\n{cells}\n", encoding="utf-8")
    (fault,) = read(str(path), Reading(field="stars" if "stars" in header else None))
    assert fault.where == f"{path}:2" and fault.message.startswith(told)
