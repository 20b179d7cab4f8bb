"""Rows from files: every kind, every fault with its place, the same fingerprint for the same rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from instructkit.data.rows import check_rows
from instructkit.data.sources import load_rows
from instructkit.data.split import check_leak, load_split, split
from instructkit.errors import DataError, InputError
from instructkit.recipe.schema import DataSection

ROWS = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(40)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(name: str, rows: list[dict]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def test_every_kind_of_file_gives_the_same_rows() -> None:
    import pyarrow
    import pyarrow.parquet

    jsonl("a.jsonl", ROWS)
    Path("b.json").write_text(json.dumps(ROWS), encoding="utf-8")
    lines = ["prompt,completion", *(f"{row['prompt']},{row['completion']}" for row in ROWS)]
    Path("c.csv").write_text("\n".join(lines), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), "d.parquet")
    plain = ("a.jsonl", "b.json", "c.csv", "d.parquet")
    for name in plain:
        Path(f"{name}.gz").write_bytes(gzip.compress(Path(name).read_bytes()))
    names = [*plain, *(f"{name}.gz" for name in plain)]
    assert len({load_rows(name, kind="sft").fingerprint for name in names}) == 1


def test_places_count_lines_and_blank_lines_are_no_rows() -> None:
    Path("a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n', encoding="utf-8")
    assert load_rows("a.jsonl", kind="sft").places == ["a.jsonl:1", "a.jsonl:3"]


def test_globs_folders_and_mixtures() -> None:
    Path("d").mkdir()
    jsonl("d/a.jsonl", ROWS[:10])
    jsonl("d/b.jsonl", ROWS[10:30])
    assert len(load_rows("d/*.jsonl", kind="sft").rows) == len(load_rows("d", kind="sft").rows) == 30
    mixed = load_rows(
        [{"source": "d/a.jsonl", "weight": 1}, {"source": "d/b.jsonl", "weight": 1}], kind="sft", seed=1
    )
    assert len(mixed.rows) == 20
    again = load_rows(
        [{"source": "d/a.jsonl", "weight": 1}, {"source": "d/b.jsonl", "weight": 1}], kind="sft", seed=1
    )
    assert mixed.fingerprint == again.fingerprint


def test_columns_are_renamed() -> None:
    jsonl("a.jsonl", [{"q": "Why?", "a": "So."}])
    assert load_rows("a.jsonl", kind="sft", columns={"q": "prompt", "a": "completion"}).rows == [
        {"prompt": "Why?", "completion": "So."}
    ]


def test_a_column_that_no_row_has_is_a_fault_with_those_there_are() -> None:
    jsonl("a.jsonl", [{"q": "Hi", "a": "Hello"}])
    with pytest.raises(InputError, match="`columns` renames `quest`, which no row has") as caught:
        load_rows("a.jsonl", kind="sft", columns={"quest": "prompt", "a": "completion"})
    assert "the rows have a, q" in str(caught.value.hint)
    with pytest.raises(DataError):  # a held-out source may have other names than the training rows
        load_rows("a.jsonl", kind="sft", columns={"quest": "prompt"}, every_column=False)


@pytest.mark.parametrize(
    ("kind", "row", "told"),
    [
        ("sft", {"txt": "a"}, "found `txt`; wanted `messages`, or `prompt` and `completion`, or `text`"),
        ("sft", {"text": "  "}, "`text` is empty"),
        ("sft", {"text": 3}, "`text` is 3; wanted text"),
        ("sft", {"messages": [{"role": "user", "content": "a"}]}, "`messages` has no assistant turn"),
        ("sft", {"messages": [{"role": "bot", "content": "a"}]}, "`messages[0].role` is 'bot'"),
        ("sft", {"messages": [{"role": "user"}]}, "wanted `role` and `content`"),
        (
            "sft",
            {"messages": [{"role": r, "content": "a"} for r in ("user", "user", "assistant")]},
            "a second user message",
        ),
        ("sft", {"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, "must both be text"),
        ("preference", {"chosen": "a", "rejected": "a"}, "are the same"),
        ("preference", {"chosen": "a", "rejected": "b", "margin": "big"}, "`margin` is 'big'"),
        (
            "prompt",
            {"prompt": [{"role": "assistant", "content": "a"}]},
            "ends with assistant; wanted user last",
        ),
        ("feedback", {"prompt": "a", "response": "b"}, "found none of them"),
        ("feedback", {"prompt": "a", "response": "b", "rating": 2}, "wanted a number from -1 to 1"),
        (
            "feedback",
            {"prompt": "a", "response": "b", "rating": float("nan")},
            "wanted a number from -1 to 1",
        ),
        ("feedback", {"prompt": "a", "response": "b", "better": "b"}, "the same as `response`"),
        (
            "feedback",
            {"prompt": "a", "response": "b", "preferred": "x"},
            "wanted `response`, `other` or `tie`",
        ),
        ("feedback", {"response": "b", "rating": 1}, "wanted `prompt` or `messages`"),
    ],
)
def test_every_fault_is_told(kind: str, row: dict, told: str) -> None:
    faults = check_rows([row], kind, ["f.jsonl:1"])
    assert faults and faults[0].where == "f.jsonl:1"
    assert told in faults[0].message


def test_all_rows_are_checked_five_alike_shown_and_the_rest_counted() -> None:
    jsonl("a.jsonl", [{"text": "good"}, *({"text": ""} for _ in range(25))])
    with pytest.raises(DataError) as caught:
        load_rows("a.jsonl", kind="sft")
    lines = str(caught.value).splitlines()
    assert lines[0] == "a.jsonl:2: `text` is empty"
    assert lines[1:] == [
        *(f"a.jsonl:{i}: `text` is empty" for i in range(3, 7)),
        "... and 20 more like this one",
    ]


def test_a_row_of_another_shape_is_a_fault() -> None:
    jsonl("a.jsonl", [ROWS[0], {"text": "b"}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: a row of another shape than the rest"):
        load_rows("a.jsonl", kind="sft")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"text": "a"}\n{"text": \n', r"a\.jsonl:2: not JSON"),
        (b'["a"]\n', r"a\.jsonl:1: found a list; wanted a JSON object"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8"),
    ],
)
def test_broken_files_are_named_with_the_line(content: bytes, told: str) -> None:
    Path("a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=told):
        load_rows("a.jsonl", kind="sft")


@pytest.mark.parametrize("source", ["nothing.jsonl", "demo/nothing", "missing/*.csv"])
def test_a_missing_source_is_an_error_with_a_hint(source: str) -> None:
    with pytest.raises(InputError) as caught:
        load_rows(source, kind="sft")
    assert source in str(caught.value) and caught.value.hint


def test_a_near_name_is_suggested() -> None:
    jsonl("train.jsonl", ROWS)
    with pytest.raises(InputError) as caught:
        load_rows("trian.jsonl", kind="sft")
    assert "train.jsonl" in caught.value.hint


def test_a_split_keeps_a_prompt_on_one_side_and_moves_no_old_row() -> None:
    doubled = [*ROWS, *({**row, "completion": "Another."} for row in ROWS)]
    train, held_out = split(load_rows(jsonl("a.jsonl", doubled), kind="sft"), 0.3, seed=0)
    assert not {r["prompt"] for r in train.rows} & {r["prompt"] for r in held_out.rows}
    assert len(train.rows) + len(held_out.rows) == 80
    fewer, held_before = split(load_rows(jsonl("b.jsonl", doubled[:50]), kind="sft"), 0.3, seed=0)
    assert {r["prompt"] for r in held_before.rows} <= {r["prompt"] for r in held_out.rows}
    assert {r["prompt"] for r in fewer.rows} <= {r["prompt"] for r in train.rows}


def test_what_is_trained_on_may_not_be_held_out() -> None:
    train = load_rows(jsonl("a.jsonl", ROWS), kind="sft")
    with pytest.raises(
        InputError, match=r"2 held-out rows are also trained on, the first b\.jsonl:1 and a\.jsonl:1"
    ):
        check_leak(train, load_rows(jsonl("b.jsonl", ROWS[:2]), kind="sft"))


def test_a_section_with_a_share_with_a_file_and_with_neither() -> None:
    jsonl("a.jsonl", ROWS)
    jsonl("b.jsonl", [{"prompt": "New?", "completion": "Yes."}])
    held = [
        load_split(DataSection(train="a.jsonl", eval=e), kind="sft", seed=0)[1]
        for e in (0.2, "b.jsonl", None)
    ]
    assert 1 <= len(held[0].rows) < 40 and len(held[1].rows) == 1 and held[2] is None


def written(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return name


def test_only_a_line_feed_ends_a_json_row() -> None:
    rows = [{"text": "one\u2028two\x85three"}, {"text": "four"}]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    found = load_rows(written("a.jsonl", lines), kind="sft")
    assert found.rows == rows and found.places == ["a.jsonl:1", "a.jsonl:2"]


def test_a_cell_is_text_and_only_a_rating_is_a_number() -> None:
    written("a.csv", "prompt,completion\n3 + 4?,7\n")
    assert load_rows("a.csv", kind="sft").rows == [{"prompt": "3 + 4?", "completion": "7"}]
    written("b.csv", "prompt,response,stars\n3 + 4?,7,-0.5\n")
    row = load_rows("b.csv", kind="feedback", columns={"stars": "rating"}).rows[0]
    assert row == {"prompt": "3 + 4?", "response": "7", "rating": -0.5}


def test_a_table_row_is_named_by_its_first_line_and_may_be_long() -> None:
    written("a.csv", 'text\n"one\ntwo\u2028three"\n\n' + "x" * 200_000 + "\n")
    found = load_rows("a.csv", kind="sft")
    assert found.places == ["a.csv:2", "a.csv:5"]
    assert found.rows[0]["text"] == "one\ntwo\u2028three"


def test_a_comma_without_quotes_does_not_shorten_an_answer() -> None:
    written("a.csv", "prompt,completion\nWhy?,Well, because.\n")
    with pytest.raises(DataError, match=r"a\.csv:2: found 3 cells; the header names 2"):
        load_rows("a.csv", kind="sft")


def test_rows_that_cannot_be_read_and_rows_at_fault_are_told_together() -> None:
    written("a.jsonl", '{"text": ""}\n{bad\n{"text": 3}\n{"text": "good"}\n')
    with pytest.raises(DataError) as caught:
        load_rows("a.jsonl", kind="sft")
    assert [fault.where for fault in caught.value.faults] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert "not JSON" in caught.value.faults[1].message


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 50, mtime=0)[:-12], "cannot be read"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, r"a\.jsonl:1: not JSON: nested too deeply"),
        ("a.json", "[" * 100_000, r"a\.json:1: not JSON: nested too deeply"),
        ("a.jsonl", '{"text": "\\ud800"}', "half a character"),
    ],
)
def test_hard_files_are_errors_and_never_tracebacks(name: str, content: str | bytes, told: str) -> None:
    with pytest.raises(InputError, match=told):
        load_rows(written(name, content), kind="sft")


@pytest.mark.parametrize("source", ["", " ", "x" * 5000, "a\0b.jsonl", "a**b/*.jsonl", "folder"])
def test_a_source_that_names_nothing_is_an_error(source: str) -> None:
    Path("folder").mkdir()
    with pytest.raises(InputError, match="no data at"):
        load_rows(source, kind="sft")


def test_a_folder_named_demo_is_no_demo_set() -> None:
    Path("demo").mkdir()
    jsonl("demo/a.jsonl", ROWS)
    assert not load_rows("demo/a.jsonl", kind="sft").synthetic
    assert not load_rows("./demo/a.jsonl", kind="sft").synthetic


def test_a_column_takes_the_place_of_another_only_where_that_one_is_moved_away() -> None:
    for row in ({"q": "asked for", "text": "other"}, {"text": "other", "q": "asked for"}):
        jsonl("a.jsonl", [row])
        with pytest.raises(
            DataError, match=r"a\.jsonl:1: `columns` makes `q` to `text`, and the row has a `text`"
        ):
            load_rows("a.jsonl", kind="sft", columns={"q": "text"})
        moved = load_rows("a.jsonl", kind="sft", columns={"q": "text", "text": "unused"}).rows
        assert moved == [{"text": "asked for", "unused": "other"}]


def test_a_mixture_is_checked_whole_and_no_part_of_it_vanishes() -> None:
    few, many = jsonl("a.jsonl", [{"text": "a"}]), jsonl("b.jsonl", [{"text": "b"}] * 5 + [{"text": ""}])
    with pytest.raises(DataError, match=r"b\.jsonl:6: `text` is empty"):
        load_rows([few, many], kind="sft")
    with pytest.raises(InputError, match=r"c\.jsonl holds no rows"):
        load_rows([few, written("c.jsonl", "")], kind="sft")
    with pytest.raises(InputError, match=r"a\.jsonl: its weight leaves none of its rows"):
        load_rows([{"source": few, "weight": 0.1}, jsonl("d.jsonl", [{"text": "d"}] * 2)], kind="sft")


def test_one_bad_row_does_not_put_the_others_in_the_wrong() -> None:
    rows = [{"text": 3}, {"text": "a"}, {"text": "b"}]
    faults = check_rows(rows, "sft", ["f:1", "f:2", "f:3"])
    assert [str(fault) for fault in faults] == ["f:1: `text` is 3; wanted text"]


ASKED = [{"role": "user", "content": "p"}]


@pytest.mark.parametrize(
    ("kind", "rows", "told"),
    [
        (
            "preference",
            [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"chosen": "a", "rejected": "b"}],
            "a row of another shape than the rest",
        ),
        (
            "preference",
            [{"prompt": ASKED, "chosen": "a", "rejected": "b"}],
            "`prompt` and `rejected` must both be text or both be messages",
        ),
        (
            "feedback",
            [{"prompt": "p", "response": "b", "preferred": "other", "other": "b"}],
            "`other` is the same as `response`",
        ),
        ("sft", [{"prompt": "p", "completion": 7}], "`completion` is 7; wanted text or a list of messages"),
        ("sft", [{"messages": []}], "`messages` is empty; wanted a list of messages"),
    ],
)
def test_more_faults_of_shape(kind: str, rows: list[dict], told: str) -> None:
    faults = check_rows(rows, kind, [f"f:{i}" for i in range(1, len(rows) + 1)])
    assert told in faults[0].message and faults[0].where == f"f:{len(rows)}"


def test_a_comparison_with_its_label_turned_is_still_trained_on() -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    train = load_rows(jsonl("a.jsonl", [pair]), kind="preference")
    turned = load_rows(jsonl("b.jsonl", [{**pair, "chosen": "b", "rejected": "a"}]), kind="preference")
    with pytest.raises(InputError, match="1 held-out rows are also trained on"):
        check_leak(train, turned)


def test_a_list_without_weights_is_all_of_its_rows_and_weights_say_what_they_leave_out() -> None:
    many = jsonl("many.jsonl", [{"text": f"m{i}"} for i in range(10)])
    few = jsonl("few.jsonl", [{"text": f"f{i}"} for i in range(2)])
    everything = load_rows([many, few], kind="sft")
    assert len(everything.rows) == 12
    weighted = load_rows([{"source": many, "weight": 2}, {"source": few, "weight": 1}], kind="sft")
    assert weighted.shares == (("many.jsonl", 4, 10), ("few.jsonl", 2, 2))
    assert weighted.summary()["shares"][0] == {"source": "many.jsonl", "used": 4, "of": 10}


def test_another_answer_to_a_trained_prompt_is_held_out_where_the_recipe_says_so() -> None:
    asked = [{"prompt": "Go on.", "completion": answer} for answer in ("a", "b", "c")]
    section = DataSection(train=jsonl("a.jsonl", asked[:2]), eval=jsonl("b.jsonl", asked[2:]))
    with pytest.raises(
        InputError, match="1 held-out rows ask what is trained on with another answer"
    ) as error:
        load_split(section, kind="sft", seed=0)
    assert "`data.overlap_by: row`" in error.value.hint
    by_row = section.model_copy(update={"overlap_by": "row"})
    assert len(load_split(by_row, kind="sft", seed=0)[1].rows) == 1
    with pytest.raises(InputError, match="1 held-out rows are also trained on"):
        load_split(by_row.model_copy(update={"eval": jsonl("c.jsonl", asked[1:])}), kind="sft", seed=0)


def test_held_out_rows_that_are_trained_on_are_left_out_where_the_recipe_says_so() -> None:
    section = DataSection(
        train=jsonl("a.jsonl", ROWS[:10]), eval=jsonl("b.jsonl", ROWS[8:13]), on_overlap="skip"
    )
    train, held_out = load_split(section, kind="sft", seed=0)
    assert (len(train.rows), held_out.places) == (10, ["b.jsonl:3", "b.jsonl:4", "b.jsonl:5"])
    assert [row.as_dict() for row in held_out.skipped] == [
        {"where": f"b.jsonl:{i}", "reason": f"also trained on, as a.jsonl:{i + 8}", "row": ROWS[i + 7]}
        for i in (1, 2)
    ]
    with pytest.raises(InputError, match=r"2 held-out rows.*b\.jsonl:1 and a\.jsonl:9") as error:
        load_split(section.model_copy(update={"on_overlap": "stop"}), kind="sft", seed=0)
    assert "`data.on_overlap: skip`" in error.value.hint
    with pytest.raises(InputError, match="every held-out row is also trained on"):
        load_split(section.model_copy(update={"eval": section.train}), kind="sft", seed=0)
