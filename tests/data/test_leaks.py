"""What is held out and also trained on is told, in whatever shape it stands, and so is a prompt that has another answer."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from instructkit.data import files
from instructkit.data.sources import Rows, load_rows
from instructkit.data.split import begun, check_leak, leaks, load_split, split, without_leaks
from instructkit.errors import DataError, InputError
from instructkit.recipe.schema import DataSection

PAIR = {"prompt": "a", "completion": "b"}
SPOKEN = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
HALF = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(name: str, *found: dict, kind: str = "sft") -> Rows:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return load_rows(name, kind=kind)


@pytest.mark.parametrize("held", [PAIR, SPOKEN, HALF])
@pytest.mark.parametrize("trained", [PAIR, SPOKEN, HALF])
def test_a_row_is_known_in_every_shape(trained: dict, held: dict) -> None:
    assert leaks(rows("t.jsonl", trained), rows("h.jsonl", held)) == {"h.jsonl:1": "t.jsonl:1"}


def test_a_comparison_is_known_with_its_question_apart_or_within() -> None:
    apart = {"prompt": "a", "chosen": "b", "rejected": "c"}
    turns = {name: [SPOKEN["messages"][0], {"role": "assistant", "content": name}] for name in "bc"}
    within = {"chosen": turns["c"], "rejected": turns["b"]}
    both = rows("t.jsonl", apart, kind="preference"), rows("h.jsonl", within, kind="preference")
    assert leaks(*both) == {"h.jsonl:1": "t.jsonl:1"}


def test_another_answer_is_no_double_but_the_same_question() -> None:
    train = rows("t.jsonl", PAIR)
    held = rows("h.jsonl", {"prompt": "z", "completion": "b"}, {"prompt": "a", "completion": "other"})
    check_leak(train, held)
    with pytest.raises(InputError) as caught:
        check_leak(train, held, by_prompt=True)
    assert str(caught.value) == (
        "1 held-out rows ask what is trained on with another answer, the first h.jsonl:2 and t.jsonl:1"
    )
    kept = without_leaks(train, held, by_prompt=True)
    assert [row["prompt"] for row in kept.rows] == ["z"]
    assert kept.skipped[0].fault.message == "asks what is trained on, as t.jsonl:1"


@pytest.mark.parametrize(("kind", "leaky"), [("sft", True), ("preference", True)])
def test_a_split_of_a_recipe_is_checked_by_prompt(kind: str, leaky: bool) -> None:
    answers = {"sft": ({"completion": "b"}, {"completion": "c"})}
    answers["preference"] = ({"chosen": "b", "rejected": "c"}, {"chosen": "d", "rejected": "e"})
    for name, answer in zip(("t.jsonl", "h.jsonl"), answers[kind], strict=True):
        rows(name, {"prompt": "a"} | answer, kind=kind)
    with pytest.raises(InputError, match="what is trained on with another answer"):
        load_split(DataSection(train="t.jsonl", eval="h.jsonl"), kind=kind, seed=0)


def test_a_folder_tells_what_it_leaves_out(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    (here / "set" / "sub").mkdir(parents=True)
    for name in ("a.jsonl", "B.JSONL", "n.tsv", "sub/z.jsonl"):
        (here / "set" / name).write_text('{"text": "a"}\n', encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        found = load_rows("set", kind="sft")
    assert list(found.places) == ["set/B.JSONL:1", "set/a.jsonl:1"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert (
        line == "set: left out n.tsv, sub; of a folder its own .jsonl, .json, .csv, .parquet files are read"
    )


def test_a_file_has_no_split() -> None:
    rows("a.jsonl", PAIR)
    with pytest.raises(InputError, match=r"a\.jsonl has no split 'nope'"):
        load_rows([{"source": "a.jsonl", "split": "nope"}], kind="sft")


def test_a_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.lines, "__defaults__", (2**20, "end it"))
    Path("long.jsonl").write_bytes(b'{"text": "a"}\n' + b" " * (2**20 + 1))
    with pytest.raises(DataError, match=r"long\.jsonl:2: a line of more than 1 MiB"):
        load_rows("long.jsonl", kind="sft")


def talk(*texts: str) -> dict:
    return {
        "messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    }


def test_the_beginning_of_a_trained_conversation_is_trained_on() -> None:
    train = rows("t.jsonl", talk("x", "y"), talk("a", "b", "c", "d"))
    held = rows(
        "h.jsonl",
        talk("a", "b"),
        talk("c", "d"),
        talk("a", "b", "c", "e"),
        talk("a", "b", "c", "d", "e", "f"),
    )
    assert leaks(train, held) == {"h.jsonl:1": "t.jsonl:2"}
    assert leaks(train, held, by_prompt=True) == {"h.jsonl:1": "t.jsonl:2", "h.jsonl:3": "t.jsonl:2"}


def test_capitals_and_spaces_make_no_other_row() -> None:
    train = rows("t.jsonl", {"prompt": "What is  Rome?", "completion": "A city.\n"})
    assert leaks(train, rows("h.jsonl", {"prompt": "what is rome? ", "completion": "a city."}))
    assert not leaks(train, rows("h.jsonl", {"prompt": "what is rome", "completion": "a city."}))


def test_a_share_holds_out_nothing_that_is_trained_on_all_the_same() -> None:
    many = [talk(f"Question {i}?", "A.", "More?", "B.") for i in range(40)]
    many += [talk(f"QUESTION {i}?", "a.") for i in range(40)]
    found = rows("many.jsonl", *many)
    train, held_out = split(found, 0.3, 0)
    assert len(train.rows) + len(held_out.rows) == 80 and len(held_out.rows) > 5
    check_leak(train, held_out, by_prompt=True)
    assert list(train.places) == sorted(train.places, key=lambda place: int(place.rpartition(":")[2]))


def test_growing_chats_stay_together_and_the_share_is_kept() -> None:
    chats = [
        talk(*(f"{i} turn {j}" for j in range(2 * length))) for i in range(100) for length in (1, 2, 3, 4, 5)
    ]
    train, held_out = split(rows("chats.jsonl", *chats), 0.2, 0)
    assert leaks(train, held_out, by_prompt=True) == {} and 60 <= len(held_out.rows) <= 140
    starts = [{row["messages"][0]["content"] for row in side.rows} for side in (train, held_out)]
    assert not starts[0] & starts[1]


def test_whole_texts_are_compared_by_what_stands_before_their_answers() -> None:
    one = {"chosen": "Human: Hi\nAssistant: Hello", "rejected": "Human: Hi\nAssistant: Hell no"}
    turned = {"chosen": one["rejected"], "rejected": one["chosen"]}
    other = {"chosen": "Human: Hi\nAssistant: Yes", "rejected": "Human: Hi\nAssistant: No"}
    train = rows("t.jsonl", one, kind="preference")
    assert leaks(train, rows("h.jsonl", turned, kind="preference"))
    assert not leaks(train, rows("o.jsonl", other, kind="preference"))
    assert leaks(train, rows("o.jsonl", other, kind="preference"), by_prompt=True)
    bare = rows("b.jsonl", {"chosen": "a", "rejected": "b"}, kind="preference")
    assert not leaks(
        bare, rows("c.jsonl", {"chosen": "c", "rejected": "d"}, kind="preference"), by_prompt=True
    )


def test_a_long_talk_costs_no_more_than_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    from instructkit.data import split as prepare

    said = []
    monkeypatch.setattr(prepare, "_plain", lambda text: said.append(text) or text)
    assert len(prepare._keys(talk(*map(str, range(100))), "sft", by_prompt=False)) == 50
    assert len(said) == 150  # each turn once, and each answer once as an answer


def test_columns_that_are_not_read_make_no_other_row() -> None:
    """Each kind is compared by its own fields, whatever stands beside them."""
    talk_ = SPOKEN["messages"]
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "messages": talk_}
    turned = {**pair, "chosen": "c", "rejected": "b", "messages": []}
    other = {**pair, "rejected": "d"}
    train = rows("t.jsonl", pair, kind="preference")
    assert leaks(train, rows("h.jsonl", turned, kind="preference"))
    assert not leaks(train, rows("o.jsonl", other, kind="preference"))
    asked = [{"prompt": "a", "messages": value} for value in ([], talk_, talk_[:1])]
    prompts = rows("p.jsonl", *asked, kind="prompt")
    assert len(leaks(prompts, prompts)) == 3
    assert leaks(
        rows("s.jsonl", {**SPOKEN, "response": None, "text": "x"}), rows("q.jsonl", PAIR), by_prompt=True
    )
    assert not leaks(
        rows("x.jsonl", {"text": "one", "prompt": "a"}), rows("y.jsonl", {"text": "two", "prompt": "a"})
    )


def test_answers_that_are_trained_on_within_a_held_out_talk_are_found() -> None:
    train, held = rows("t.jsonl", talk("a", "b")), rows("h.jsonl", talk("a", "b", "c", "d"), talk("x", "y"))
    assert begun(train, held) == {"h.jsonl:1": "t.jsonl:1"}
    assert leaks(train, held) == {}
