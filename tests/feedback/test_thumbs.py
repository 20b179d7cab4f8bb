"""Exports of thumbs are read as they are: by `feedback import`, and as `feedback.events` of an update alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructkit.cli.main import main
from instructkit.data.sources import load_rows
from instructkit.errors import DataError
from instructkit.feedback.store.store import Filter, Store

ASKED = {"prompt": "q", "response": "a"}
WHEN = "2024-05-01T10:00:00.000Z"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def jsonl(rows: list[dict], name: str = "thumbs.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def imported(capsys, *arguments: str) -> tuple[int, str, list]:
    with pytest.raises(SystemExit) as ended:
        main(["feedback", "import", *arguments])
    told = "".join(capsys.readouterr())
    if not Path("feedback.db").exists():
        return ended.value.code, told, []
    with Store.open("feedback.db") as store:
        return ended.value.code, told, list(store.events(Filter()))


THUMBS = {
    "booleans": ("thumbs_up", (True, False)),
    "up and down": ("feedback", ("up", "down")),
    "1 and -1": ("score", (1, -1)),
    "1 and 0": ("score", (1, 0)),
    "1 and 0 as a rating": ("rating", (1, 0)),
    "1 and 0 as thumbs": ("thumbs_up", (1, 0)),
    "booleans of a table": ("Thumbs Up", ("TRUE", "FALSE")),
    "numbers of a table": ("score", ("1", "0")),
}


@pytest.mark.parametrize("name", THUMBS)
def test_thumbs_are_read_alike_whatever_they_are_called(name: str, capsys) -> None:
    field, values = THUMBS[name]
    rows = [{"prompt": f"q{i}", "response": "a", field: value} for i, value in enumerate(values)]
    source = jsonl(rows)
    code, _, events = imported(capsys, source)
    assert code == 0 and [event.judgement for event in events] == [{"rating": 1.0}, {"rating": -1.0}]
    assert [row["rating"] for row in load_rows(source, kind="feedback").rows] == [1.0, -1.0]


def test_a_table_as_an_app_exports_it(capsys) -> None:
    Path("app.csv").write_text(
        "prompt,response,User ID,created_at,thumbs_up,comment\n"
        "one,a,ann,2024-05-01 10:00:00 UTC,true,fine\n"
        "two,b,bob,1714557600,false,\n",
        encoding="utf-8",
    )
    code, told, events = imported(capsys, "app.csv")
    assert code == 0 and "columns that are not read: comment (1 rows)" in told
    assert [event.time for event in events] == [WHEN, WHEN]
    assert [event.judgement["rating"] for event in events] == [1.0, -1.0]
    assert len({event.rater for event in events}) == 2 and all(event.rater for event in events)
    assert "withdrawn" not in told
    found = load_rows("app.csv", kind="feedback")
    assert [row["rater"] for row in found.rows] == ["ann", "bob"] and found.unread == ("comment",)
    assert [row["time"] for row in found.rows] == ["2024-05-01 10:00:00", 1714557600.0]


def test_a_comment_beside_a_score_is_no_rating(capsys) -> None:
    source = jsonl([{**ASKED, "score": 1, "feedback": "well put"}])
    _, told, (event,) = imported(capsys, source)
    assert event.judgement == {"rating": 1.0} and "not read: feedback (1 rows)" in told
    assert load_rows(source, kind="feedback").unread == ("feedback",)


def test_a_blank_correction_is_none(capsys) -> None:
    source = jsonl([{**ASKED, "rating": -1, "better": " "}])
    _, _, (event,) = imported(capsys, source)
    assert event.judgement == {"rating": -1.0}
    assert load_rows(source, kind="feedback").rows[0]["rating"] == -1


def test_0_is_no_signal_beside_other_ratings_with_a_scale_and_from_a_store(capsys) -> None:
    mixed = jsonl([{**ASKED, "rating": value, "rater": "ann"} for value in (1, 0, -1)])
    assert [event.judgement["rating"] for event in imported(capsys, mixed)[2]] == [1.0, 0.0, -1.0]
    assert [row["rating"] for row in load_rows(mixed, kind="feedback").rows] == [1, 0, -1]
    Path("feedback.db").unlink()
    ones = jsonl([{**ASKED, "rating": value, "rater": "ann"} for value in (1, 0)])
    code, told, events = imported(capsys, ones, "--scale", "-1:1")
    assert [event.judgement["rating"] for event in events] == [1.0, 0.0] and "thumbs" not in told
    exported = jsonl([event.as_row() for event in events], "exported.jsonl")
    Path("feedback.db").unlink()
    assert [event.judgement["rating"] for event in imported(capsys, exported)[2]] == [1.0, 0.0]
    assert [row["rating"] for row in load_rows(exported, kind="feedback").rows] == [1, 0]


ZERO, ONE = ({**ASKED, "rating": value, "rater": "ann"} for value in (0, 1))
WITH_ERRORS = {
    "outside the scale": ({**ASKED, "rating": 5}, 0.0),
    "no prompt, and a rating that no thumb has": ({"response": "a", "rating": -1}, 0.0),
    "no response, and a rating that no thumb has": ({"prompt": "q", "rating": 0.5}, 0.0),
    "no prompt, and a thumb": ({"response": "a", "rating": 0}, -1.0),
    "no rating": (ASKED, -1.0),
}


@pytest.mark.parametrize("name", WITH_ERRORS)
def test_rows_with_errors_count_when_1_and_0_may_be_thumbs(name: str, capsys) -> None:
    wrong, meant = WITH_ERRORS[name]
    source = jsonl([ONE, ZERO, {**ONE, "prompt": "r"}, wrong])
    assert [event.judgement["rating"] for event in imported(capsys, source, "--skip-faults")[2]] == [
        *(1.0, meant, 1.0)
    ]
    found = load_rows(source, kind="feedback", skip_faults=True).rows
    assert [row["rating"] for row in found] == [1, meant, 1]


def test_each_file_is_read_on_its_own_scale(capsys) -> None:
    thumbs = jsonl([ONE, ZERO])
    other = jsonl([{**ASKED, "prompt": "r", "rating": value} for value in (-1, 0.5, 0)], "other.jsonl")
    wanted = [1, -1, -1, 0.5, 0]
    assert [event.judgement["rating"] for event in imported(capsys, thumbs, other)[2]] == wanted
    found = load_rows([{"source": thumbs}, {"source": other}], kind="feedback")
    assert sorted(row["rating"] for row in found.rows) == sorted(wanted)


@pytest.mark.parametrize("given", ["logs", "logs/*.jsonl"])
def test_each_file_of_a_folder_is_read_on_its_own_scale(given: str, capsys) -> None:
    Path("logs").mkdir()
    jsonl([ONE, ZERO], "logs/a.jsonl")
    jsonl([{**ASKED, "prompt": "r", "rating": value} for value in (-1, 0.5, 0)], "logs/b.jsonl")
    jsonl([], "logs/empty.jsonl")
    wanted = [1, -1, -1, 0.5, 0]
    assert [row["rating"] for row in load_rows(given, kind="feedback").rows] == wanted
    code, told, events = imported(capsys, given)
    assert code == 0 and [event.judgement["rating"] for event in events] == wanted
    assert "logs/a.jsonl: ratings read as 0 (worst) to 1" in told and "logs/b.jsonl: ratings" not in told


def test_the_file_of_a_folder_with_another_scale_is_named(capsys) -> None:
    Path("logs").mkdir()
    jsonl([ONE] * 9, "logs/a.jsonl")
    jsonl([{**ASKED, "rating": value} for value in (1, 4, 5)], "logs/stars.jsonl")
    with pytest.raises(DataError) as error:
        load_rows("logs", kind="feedback")
    assert "feedback import logs/stars.jsonl --scale 1:5" in error.value.hint


def test_who_is_asked_is_no_rater(capsys) -> None:
    source = jsonl([{"user": "q", "response": "a", "rating": 1}])
    code, told, _ = imported(capsys, source)
    assert code == 2 and "wanted `prompt` or `messages`" in told


def test_a_store_without_raters_says_what_it_cannot_do(capsys) -> None:
    _, told, _ = imported(capsys, jsonl([{**ASKED, "rating": 1}]))
    assert (
        "warning: no event has a rater or a time. The events of one person cannot be withdrawn together"
        in told
    )
    assert "`user_id`" in told and "`created_at`" in told


def test_five_alike_are_shown_and_the_rest_counted(capsys) -> None:
    source = jsonl([{**ASKED, "score": 7 + i} for i in range(30)] + [{"prompt": "q"}])
    code, told, _ = imported(capsys, source)
    lines = [line.strip() for line in told.splitlines()]
    assert code == 2 and lines[0] == "error: 31 faults"
    assert [line for line in lines if "`score` is" in line] == lines[1:6] and lines[
        6
    ] == "... and 25 more like this one"
    assert lines[7].startswith("thumbs.jsonl:31: found `prompt`")
    with pytest.raises(DataError) as caught:
        load_rows(source, kind="prompt", columns={"prompt": "unused"})
    assert len(str(caught.value).splitlines()) <= 7
