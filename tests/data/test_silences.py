"""What was read wrongly, or left out, without a word: each is read, told or refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from instructkit.data.inspect import look
from instructkit.data.sources import load_rows
from instructkit.data.split import split
from instructkit.errors import InputError

from .written import PAIR, TALK, load, write


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_labels_of_1_and_0_are_those_of_feedback() -> None:
    rows = [{**PAIR, "label": 1}, {**PAIR, "label": 0.0}]
    assert [row["rating"] for row in load(*rows, kind="feedback").rows] == [1.0, -1.0]
    Path("kto.csv").write_text("prompt,completion,label\nq,a,1\nq,b,0\nr,c,0\n", encoding="utf-8")
    assert [row["rating"] for row in load_rows("kto.csv", kind="feedback").rows] == [1.0, -1.0, -1.0]
    assert look("kto.csv").kind == look("rows.jsonl").kind == "feedback"


def test_a_class_is_no_label_of_an_answer() -> None:
    rows = [{**PAIR, "label": n} for n in (1, 2, 3, 4)]
    assert len(load(*rows).rows) == 4 and look("rows.jsonl").kind == "sft"
    assert len(load({"text": "a", "label": 0}).rows) == 1


def test_mappings_without_a_weight_keep_all_rows_as_names_do() -> None:
    few, many = write("few.jsonl", {"text": "a"}), write("many.jsonl", *({"text": str(i)} for i in range(9)))
    assert len(load_rows([{"source": few}, {"source": many}], kind="sft").rows) == 10
    assert len(load_rows([{"source": few, "weight": 1.0}, {"source": many}], kind="sft").rows) == 2


def test_fields_of_messages_that_only_a_template_reads_are_named() -> None:
    talk = [{**TALK[0], "name": "Ann", "weight": 1}, {**TALK[1], "thinking": "Hm.", "tool_calls": None}]
    assert load({"messages": talk}).beside == ("name", "thinking")
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello.", "thinking": "Hm."}]
    found = load({"conversations": turns})
    assert found.beside == ("thinking",) and found.summary()["beside"] == ["thinking"]


def test_a_prompt_beside_whole_conversations_is_one_of_their_questions() -> None:
    sides = {"chosen": TALK, "rejected": [TALK[0], {"role": "assistant", "content": "What?"}]}
    assert load({"prompt": " Hi", **sides}, kind="preference").rows == [sides]


def test_empty_fields_of_other_shapes_are_gone() -> None:
    assert load({**PAIR, "text": "t", "messages": None}).rows == [PAIR]
    assert load({"messages": TALK, "prompt": None, "id": None}).rows == [{"messages": TALK, "id": None}]


def test_a_saved_dataset_without_splits_has_none() -> None:
    from datasets import Dataset

    Dataset.from_list([{"text": "alone"}]).save_to_disk("one")
    with pytest.raises(InputError, match="one has no split 'test'"):
        load_rows([{"source": "one", "split": "test"}], kind="sft")


def test_rows_of_a_source_that_is_named_twice_are_kept_apart_twice() -> None:
    write("rows.jsonl", *[PAIR] * 3, {"text": "alone"})
    found = load_rows(["rows.jsonl", "rows.jsonl"], kind="sft", skip_faults=True)
    assert [skipped.row for skipped in found.skipped] == [{"text": "alone"}] * 2


def test_a_row_that_cannot_be_read_is_kept_as_it_stands() -> None:
    Path("rows.csv").write_bytes('text\n"a"b\ncaf\u00e9\ngood\n'.encode("latin-1"))
    found = load_rows("rows.csv", kind="sft", skip_faults=True)
    assert [row.as_dict()["row"] for row in found.skipped] == ['"a"b\n', "caf\ufffd"]
    assert found.rows == [{"text": "good"}]
    Path("rows.json").write_text('[{"text": "a"}, {"text": "b", "text": "c"}]', encoding="utf-8")
    found = load_rows("rows.json", kind="sft", skip_faults=True)
    assert found.rows == [{"text": "a"}] and found.skipped[0].fault.where == "rows.json row 2"


def test_half_characters_are_not_told_as_another_encoding() -> None:
    Path("rows.json").write_text('[{"text": "\\udc80"}]', encoding="utf-8")
    with pytest.raises(InputError, match="half a character"):
        load_rows("rows.json", kind="sft")


def test_a_column_without_a_name_is_called_by_its_number() -> None:
    Path("rows.csv").write_text(",text\n0,a\n1,b\n", encoding="utf-8")
    assert load_rows("rows.csv", kind="sft").unread == ("column 1",)
    assert load_rows("rows.csv", kind="sft", columns={"column 1": "unused"}).unread == ()


def test_one_row_of_a_parquet_file_does_not_hide_the_others() -> None:
    folder = Path(__file__).parents[1] / "faults" / "data"
    for name, column in (("sft-latin-1.parquet", "prompt"), ("sft-time-out-of-range.parquet", "made")):
        found = load_rows(str(folder / name), kind="sft", skip_faults=True)
        assert [row["completion"] for row in found.rows] == ["a"]
        assert f"`{column}`" in found.skipped[0].fault.message and "b" in found.skipped[0].as_dict()["row"]


def test_labels_in_words_and_as_tables_write_them() -> None:
    Path("kto.csv").write_text("prompt,completion,label\nq,a,1.0\nq,b,0.0\nr,c,FALSE\n", encoding="utf-8")
    assert [row["rating"] for row in load_rows("kto.csv", kind="feedback").rows] == [1.0, -1.0, -1.0]
    assert look("kto.csv").kind == "feedback" and not look("kto.csv").faults


def test_an_empty_prompt_beside_two_conversations_is_none() -> None:
    sides = {"chosen": TALK, "rejected": [TALK[0], {"role": "assistant", "content": "What?"}]}
    assert load({"prompt": None, **sides}, kind="preference").rows == [sides]


def test_a_stray_quote_takes_no_other_row() -> None:
    lines = ["text", *(f"row {i}" for i in range(5)), '"open', *(f"row {i}" for i in range(6, 12))]
    Path("rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = load_rows("rows.csv", kind="sft", skip_faults=True)
    assert [row["text"] for row in found.rows] == [f"row {i}" for i in range(12) if i != 5]
    assert [place.rpartition(":")[2] for place in found.places] == [str(i + 2) for i in range(12) if i != 5]
    assert [row.as_dict()["row"] for row in found.skipped] == ['"open\n']
    Path("rows.csv").write_text('text\n"a\nb\n"c" d\ne\n', encoding="utf-8")
    found = load_rows("rows.csv", kind="sft", skip_faults=True)
    assert [row["text"] for row in found.rows] == ["b", "e"]
    assert [row.fault.where for row in found.skipped] == ["rows.csv:2", "rows.csv:4"]


def test_a_json_file_that_is_too_large_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from instructkit.data import files

    monkeypatch.setattr(files, "LONGEST_JSON_BYTES", 40)
    for text in ('[{"text": "a"},\n' * 5, '[{"text": "a"},' * 5):
        Path("rows.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError) as caught:
            load_rows("rows.json", kind="sft")
        assert "write it as .jsonl" in f"{caught.value} {caught.value.hint}"


def test_ratings_on_another_scale_are_not_skipped_down_to_ours() -> None:
    rows = [{"prompt": f"q {i}", "response": "a", "rating": 1 + i % 5} for i in range(20)]
    for skip in (False, True):
        with pytest.raises(InputError) as caught:
            load(*rows, kind="feedback", skip_faults=skip)
        assert "instructkit feedback import rows.jsonl --scale 1:5" in caught.value.hint
    one = [{**row, "rating": 5 if i == 3 else 1} for i, row in enumerate(rows)]
    assert len(load(*one, kind="feedback", skip_faults=True).rows) == 19


def test_a_limit_counts_good_rows_where_faults_are_skipped() -> None:
    rows = [{"text": ""}, *({"text": str(i)} for i in range(6)), {"text": ""}]
    found = load(*rows, skip_faults=True, limit=3)
    assert [row["text"] for row in found.rows] == ["0", "1", "2"]
    assert [each.fault.where for each in found.skipped] == ["rows.jsonl:1"]
    with pytest.raises(InputError, match=r"rows\.jsonl:1"):
        load(*rows, limit=3)
    assert len(load(*rows[1:7], limit=3).rows) == 3


def test_shares_are_told_of_the_rows_that_are_kept() -> None:
    one, two = (write(name, *({"text": f"{name} {i}"} for i in range(20))) for name in ("a.jsonl", "b.jsonl"))
    found = load_rows([one, two], kind="sft", limit=10)
    assert sum(used for _, used, _ in found.shares) == 10
    for source, used, of in found.shares:
        assert (used, of) == (sum(place.startswith(source) for place in found.places), 20)


def test_columns_of_rows_that_are_left_out_are_not_told() -> None:
    found = load({"text": "a"}, {"text": "b"}, {**PAIR, "text": "c", "more": 1}, skip_faults=True)
    assert found.unread == () and len(found.skipped) == 1


def test_a_pattern_finds_no_hidden_files_unless_it_asks_for_them() -> None:
    write("a.jsonl", {"text": "a"}), write(".b.jsonl", {"text": "b"})
    assert len(load_rows("*.jsonl", kind="sft").rows) == 1
    assert len(load_rows(".*.jsonl", kind="sft").rows) == 1


def test_a_packed_file_says_so_whatever_its_name(here: Path) -> None:
    Path("rows.jsonl").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    with pytest.raises(InputError, match=r"rows\.jsonl:1: gzipped.*rename the file to rows\.jsonl\.gz"):
        load_rows("rows.jsonl", kind="sft")


def test_some_margins_are_told_with_the_first_row_without() -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(
        InputError, match=r"1 of 2 comparisons have a `margin`; rows\.jsonl:2 has none"
    ) as caught:
        load({**pair, "margin": 1}, pair, kind="preference")
    assert "columns: {margin: unused}" in caught.value.hint


def test_a_share_of_one_prompt_says_why_nothing_is_held_out() -> None:
    found = load(*({"prompt": "q", "completion": str(i)} for i in range(9)))
    with pytest.raises(InputError, match="they have 1 different prompts, and all rows of one go to one side"):
        split(found, 0.5, 0)
