"""`instructkit feedback`: its commands, what they print, and their exit codes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from instructkit.cli.main import main
from instructkit.feedback.promotion.chain import Chain
from instructkit.feedback.store.store import Filter, Store


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture):
    def told(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["feedback", *arguments])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return told


def write(name: str, rows: list) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


ROWS = [{"prompt": f"q{i}", "response": "a", "rating": 1, "rater": f"r{i % 3}"} for i in range(9)]


ONE_ROW = {"prompt": "q", "response": "a", "rating": 1}
PAIR = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_ratings_that_are_all_alike_are_reported(run) -> None:
    rows = [{"prompt": f"q{i}", "response": "a", "rating": 1} for i in range(20)]
    out = run("import", write("ups.jsonl", rows), "--scale", "1:5")[1]
    assert out.startswith("ups.jsonl: ratings read as 1 (worst) to 5 (best): 20 down\n")
    assert "ratings read" not in run("import", write("few.jsonl", rows[:5]), "--store", "new.db")[1]


def test_columns_are_read_under_the_names_that_are_given(run) -> None:
    Path("app.csv").write_text(
        'Customer Message,"Reply, final",Helpful,user,note\nq1,a,1,ann,x\nq2,a,0,bob,\n', encoding="utf-8"
    )
    code, _, err = run("import", "app.csv")
    assert code == 2 and "--columns NAME=FIELD" in err
    meant = "Customer Message=prompt,Reply, final=response"
    code, told, err = run("import", "app.csv", "--columns", meant, "--columns", "Helpful=rating,note=unused")
    assert (
        (code, err) == (0, "")
        and "ratings read as 0 (worst) to 1 (best): 1 up, 1 down" in told
        and "not read" not in told
    )
    with Store.open("feedback.db") as store:
        events = list(store.events(Filter()))
    assert [event.judgement for event in events] == [{"rating": 1.0}, {"rating": -1.0}]
    assert all(event.rater and event.response == "a" for event in events)


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ("Question=prompt", "--columns names `Question`, which no row of rows.jsonl has"),
        ("rater=prompt", "rows.jsonl:1: `columns` makes `rater` to `prompt`, and the row has a `prompt`"),
        ("prompt=question", "--columns: `question` in `prompt=question` is not a field"),
    ],
)
def test_columns_that_cannot_be_read_are_refused(columns: str, error: str, run) -> None:
    code, _, err = run("import", write("rows.jsonl", ROWS[:1]), "--columns", columns)
    assert code == 2 and error in err and not Path("feedback.db").exists()


def test_a_file_is_imported_once(run) -> None:
    source = write("rows.jsonl", ROWS)
    assert run("import", source) == (
        0,
        "feedback.db: 9 new events, 0 known already, 0 rows with faults left out\n",
        "",
    )
    assert json.loads(run("import", source, "--json")[1]) == {
        "store": "feedback.db",
        "new": 0,
        "known": 9,
        "withdrawn": 0,
        "clashes": 0,
        "faults": 0,
        "unread": {},
        "replaced": {},
    }
    assert len(run("list")[1].splitlines()) == 9


def test_faults_stop_an_import_before_anything_is_stored(run) -> None:
    source = write("rows.jsonl", [*ROWS, "{broken", {"prompt": "q"}])
    code, _, err = run("import", source)
    assert code == 2
    assert "rows.jsonl:10: not JSON" in err and "rows.jsonl:11: found `prompt`" in err
    assert not Path("feedback.db").exists()
    code, out, err = run("import", source, "--skip-faults")
    assert (code, out) == (0, "feedback.db: 9 new events, 0 known already, 2 rows with faults left out\n")
    assert "rows.jsonl:10: not JSON" in err


def test_one_event_is_added_listed_exported_and_withdrawn(run) -> None:
    code, out, _ = run(
        "add", '{"prompt": "q", "response": "a", "better": "b", "rater": "ann", "tags": ["x"]}'
    )
    assert code == 0
    name = out.strip()
    assert name in run("list", "--tag", "x")[1] and "better=b" in run("list", "--kind", "edit")[1]
    assert run("list", "--rater", "bob")[1] == ""
    row = json.loads(run("export")[1])
    assert (row["id"], row["better"], row["tags"], row["consent"]) == (name, "b", ["x"], True)
    write("again.jsonl", [row])
    assert "0 new events, 1 known already" in run("import", "again.jsonl")[1]
    assert "1 events withdrawn" in run("withdraw", name, "--why", "asked")[1]
    assert run("list")[1] == "" and name in run("list", "--withdrawn")[1]
    assert "withdrawals: 1" in run("stats")[1]


PERSONAL = [
    {"prompt": "I am ann@example.org", "response": "Hi", "rating": 1},
    {"prompt": "I am bob@example.org", "response": "Hi", "rating": 1},
    {
        "messages": [{"role": "user", "content": "my card: 4111 1111 1111 1111"}],
        "response": "call +49 30 901820",
        "better": "from 192.168.1.17",
    },
    {"prompt": "q", "response": "a", "other": "I am carl@example.org", "preferred": "other"},
]
SECRETS = (b"example.org", b"4111", b"901820", b"192.168")
CLOSING = "3 EMAIL, 1 CARD, 1 PHONE, 1 IP"


def test_personal_data_is_replaced_before_it_is_stored(run) -> None:
    source = write("rows.jsonl", [*ROWS, *PERSONAL])
    line = f"13 new events, 0 known already, 0 rows with faults left out; personal data replaced: {CLOSING}"
    assert run("import", source)[1] == f"feedback.db: {line}\n"
    on_disk = b"".join(path.read_bytes() for path in Path().glob("feedback.db*"))
    assert b"I am <EMAIL>" in on_disk
    assert not [secret for secret in SECRETS if secret in on_disk]
    rows = [json.loads(line) for line in run("export")[1].splitlines()]
    assert [row.get("prompt") for row in rows[9:]] == ["I am <EMAIL>", "I am <EMAIL>", None, "q"]
    assert rows[11]["messages"][0]["content"] == "my card: <CARD>"
    assert (rows[11]["response"], rows[11]["better"]) == ("call <PHONE>", "from <IP>")
    assert rows[12]["other"] == "I am <EMAIL>"
    again = json.loads(run("import", source, "--json")[1])
    assert (again["new"], again["known"], again["replaced"]) == (0, 13, {})
    found = json.loads(run("stats", "--json")[1])
    assert found["placeholders"] == {"EMAIL": 3, "CARD": 1, "PHONE": 1, "IP": 1} and found["personal"] == {}
    assert f"personal data: replaced {CLOSING}; as it was none" in run("stats")[1]


def test_personal_data_is_kept_on_demand(run) -> None:
    source = write("rows.jsonl", PERSONAL)
    found = json.loads(run("import", source, "--keep-raw", "--json")[1])
    assert (found["new"], found["kept"]) == (4, {"EMAIL": 3, "CARD": 1, "PHONE": 1, "IP": 1})
    assert "replaced" not in found
    rows = [json.loads(line) for line in run("export")[1].splitlines()]
    assert [row.get("prompt", row.get("messages")) for row in rows] == [
        row.get("prompt", row.get("messages")) for row in PERSONAL
    ]
    assert f"personal data: replaced none; as it was {CLOSING}" in run("stats")[1]


@pytest.mark.parametrize("first", [(), ("--keep-raw",)])
def test_a_file_is_known_with_and_without_its_personal_data(run, first: tuple[str, ...]) -> None:
    """Rows that differ in personal data alone are told apart, and each is met again."""
    source = write("rows.jsonl", PERSONAL)
    second = () if first else ("--keep-raw",)
    assert "4 new events" in run("import", source, *first)[1]
    assert "0 new events, 4 known already" in run("import", source, *second)[1]
    assert "0 new events, 4 known already" in run("import", source, *first)[1]


def test_personal_data_of_one_event(run) -> None:
    row = json.dumps(PERSONAL[0])
    code, out, err = run("add", row)
    assert (code, len(out.strip()), err) == (0, 26, "feedback.db: 1 new; personal data replaced: 1 EMAIL\n")
    assert json.loads(run("export")[1])["prompt"] == "I am <EMAIL>"
    run("add", row, "--keep-raw")
    assert json.loads(run("export")[1].splitlines()[1])["prompt"] == PERSONAL[0]["prompt"]


def test_the_same_word_said_twice_is_two_events(run) -> None:
    row = '{"prompt": "q", "response": "a", "rating": 1}'
    assert run("add", row)[0] == run("add", row)[0] == 0
    assert len(run("list")[1].splitlines()) == 2


def trainable() -> int:
    with Store.open("feedback.db") as store:
        return store.count(Filter(consent=True))


@pytest.mark.parametrize("how", ["a row", "all rows", "an exported row"])
def test_consent_is_taken_back_by_a_file_that_comes_again(run, how: str) -> None:
    """However a known row comes, as one that says no it is withdrawn, and stays so."""
    source = write("rows.jsonl", ROWS)
    run("import", source)
    rows = ROWS if how != "an exported row" else [json.loads(line) for line in run("export")[1].splitlines()]
    again = write("rows.jsonl", [rows[0] | {"consent": False}, *rows[1:]]) if how != "all rows" else source
    options = ("--no-consent",) if how == "all rows" else ()
    count = 9 if how == "all rows" else 1
    code, out, _ = run("import", again, *options)
    told = f"0 new events, 9 known already, 0 rows with faults left out; {count} known ones withdrawn"
    assert code == 0 and told in out and out.endswith("they came without consent\n")
    assert trainable() == 9 - count
    found = json.loads(run("import", again, *options, "--json")[1])
    assert (found["withdrawn"], found["known"]) == (0, 9)  # withdrawn once, and for all
    assert run("import", write("rows.jsonl", ROWS))[0] == 0 and trainable() == 9 - count
    with Store.open("feedback.db") as store:
        assert {each["why"] for each in store.withdrawals()} == {
            "came again without consent (import:rows.jsonl)"
        }


@pytest.mark.parametrize("first", [(), ("--keep-raw",)])
def test_consent_is_taken_back_whatever_was_done_with_personal_data(run, first: tuple[str, ...]) -> None:
    run("import", write("rows.jsonl", PERSONAL), *first)
    source = write("rows.jsonl", [row | {"consent": False} for row in PERSONAL])
    second = () if first else ("--keep-raw",)
    assert "4 known ones withdrawn" in run("import", source, *second)[1]
    assert trainable() == 0


def test_a_withdrawn_event_is_exported_as_one(run) -> None:
    """Imported elsewhere, it may not be trained on there either."""
    run("import", write("rows.jsonl", ROWS))
    run("withdraw", "--rater", "r1")
    rows = [json.loads(line) for line in run("export", "--withdrawn")[1].splitlines()]
    assert [(row["consent"], row.get("withdrawn")) for row in rows[:3]] == [
        (True, None),
        (False, True),
        (True, None),
    ]
    assert run("export", "--withdrawn")[1] == run("list", "--withdrawn", "--json")[1]
    Path("feedback.db").unlink()
    assert "9 new events" in run("import", write("rows.jsonl", rows))[1]
    assert trainable() == 6


def test_what_is_saved_is_what_was_asked_for(run) -> None:
    run("import", write("rows.jsonl", ROWS))
    run("withdraw", "--rater", "r1")
    first = json.loads(run("export")[1].splitlines()[0])["id"]
    run("withdraw", first)
    assert run("export", "--salvage")[1] == run("export")[1]
    assert len(run("export", "--salvage")[1].splitlines()) == 5
    for asked in (("--rater", "r2"), ("--kind", "edit"), ("--withdrawn",), ("--since", "2999-01-01")):
        assert run("export", "--salvage", *asked) == run("export", *asked)


def test_withdrawals_that_are_lost_are_told(run) -> None:
    run("import", write("rows.jsonl", ROWS))
    for i in range(3):
        run("withdraw", "--rater", f"r{i}", "--why", f"<{i}> {'x' * 3000}")
    spoil(b"<1> ")
    code, out, err = run("export", "--salvage")
    assert code == 1 and "1 withdrawals could not be read: numbers 2" in err
    assert "what they took back may be among the events written" in err
    assert {json.loads(line)["prompt"] for line in out.splitlines()} == {"q1", "q4", "q7"}
    assert "withdrawal 2 cannot be read" in run("check", "--json")[1]


def test_stats_of_a_store_that_the_chain_does_not_know(run) -> None:
    run("import", write("rows.jsonl", ROWS))
    chain = Chain.at(Path("runs"), "default")
    assert "may be trained on: 9" in run("stats")[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(chain), "since", lambda *_: "01ARZ3NDEKTSV4RRFFQ69G5FAV")
        assert "was last promoted on events of another store" in run("stats")[1]
        assert json.loads(run("stats", "--json")[1])["new"] is None


def test_stats_as_data(run) -> None:
    run("import", write("rows.jsonl", ROWS))
    found = json.loads(run("stats", "--json")[1])
    assert (found["events"], found["raters"], found["kinds"]) == (9, 3, {"rating": 9})
    assert found["loudest"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("list",), "no feedback store at feedback.db"),
        (("add", "nonsense"), "no event: "),
        (("add", "[1]"), "found list; wanted a JSON object"),
        (("add", '{"prompt": "q"}'), "no event: found `prompt`"),
        (("withdraw",), "wanted an event's id or --rater"),
        (("import", "nowhere.jsonl"), "no data at nowhere.jsonl"),
        (("import", "x.jsonl", "--scale", "5:1"), "--scale 5:1 is no scale"),
        (("import", "x.jsonl", "--scale", "0:inf"), "--scale 0:inf is no scale"),
        (("import", "x.jsonl", "--scale=-inf:inf"), "--scale -inf:inf is no scale"),
        (("import", "x.jsonl", "--scale=-1e308:1e308"), "--scale -1e308:1e308 is no scale"),
        (("list", "--kind", "star"), "no kind is called 'star'"),
        (("list", "--since", "soon"), "--since soon is no time"),
        (("list", "--since", ""), "--since is empty"),
        (("export", "--rater", ""), "--rater is empty"),
        (("export", "--run", " "), "--run is empty"),
        (("list", "--tag", ""), "--tag is empty"),
        (("withdraw", "--rater", ""), "--rater is empty"),
        (("withdraw", ""), "ID is empty"),
    ],
)
def test_bad_input(run, arguments: tuple[str, ...], told: str) -> None:
    write("x.jsonl", ROWS)
    code, _, err = run(*arguments)
    assert code == 2
    assert told in err and "hint:" in err


@pytest.mark.parametrize(
    ("name", "held", "told"),
    [
        ("x.jsonl", b"", "x.jsonl holds no rows"),
        ("x.jsonl", b"\n\n", "x.jsonl holds no rows"),
        ("x.csv", b"", "x.csv holds no rows"),
        ("x.csv", b"prompt,response,rating\n", "x.csv holds no rows"),
        ("x.json", b"[]", "x.json holds no rows"),
        ("x.csv", b"prompt;response;rating\na;b;1\n", "its columns are parted by ';'"),
        ("x.csv", "prompt,response,rating,é\na,b,1,c\n".encode("latin-1"), "x.csv:1: not UTF-8"),
        ("x.csv", "prompt,response,rating\n".encode("utf-16"), "x.csv:1: UTF-16"),
    ],
)
@pytest.mark.parametrize("skip", [(), ("--skip-faults",)])
def test_a_file_without_a_row_is_not_imported(run, name: str, held: bytes, told: str, skip) -> None:
    """Whatever stands beside it: nothing of an import is stored when a file of it cannot be read."""
    Path(name).write_bytes(held)
    code, out, err = run("import", write("rows.jsonl", ROWS), name, *skip)
    assert (code, out) == (2, "")
    assert told in err and "nothing was imported" in err and "trained" not in err
    assert not Path("feedback.db").exists()


def test_a_row_is_one_event_however_often_its_file_is_named(run) -> None:
    rows, more = write("rows.jsonl", ROWS), write("more.jsonl", [*ROWS[:2], ONE_ROW])
    assert "9 new events, 9 known already" in run("import", rows, rows)[1]
    assert "1 new events, 2 known already" in run("import", more)[1]
    both = run("import", rows, more, "--store", "other.db")[1]
    assert both.startswith("other.db: 10 new events, 2 known already")


def test_another_event_with_a_known_id_is_told(run) -> None:
    id_ = run("add", json.dumps(ONE_ROW))[1].strip()
    again = [{**ONE_ROW, "id": id_, **more} for more in ({}, {"consent": False}, {"response": "changed"})]
    code, out, err = run("import", write("again.jsonl", again))
    assert code == 0 and "0 new events, 2 known already" in out and id_ in err
    assert err.startswith("warning: 1 rows left out: their ids are those of events that say something else")
    assert json.loads(run("import", "again.jsonl", "--json")[1])["clashes"] == 1
    run("import", write("rows.jsonl", ROWS), "--store", "other.db")
    rows = list(map(json.loads, run("export", "--store", "other.db")[1].splitlines()))
    assert "9 known already" in run("import", write("as-it-was.jsonl", rows), "--store", "other.db")[1]
    changed = write("changed.jsonl", [{**row, "rating": -1} for row in rows])
    assert run("import", changed, "--store", "other.db")[2].startswith("warning: 9 rows left out")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({**ONE_ROW, "time": "0001-01-01T00:00:00+14:00"}, "`time` is '0001-01-01"),
        ({**ONE_ROW, "rating": int("9" * 400)}, "`rating` is '999"),
        ({**ONE_ROW, "messages": [{"role": "user", "content": "q"}]}, "has both `prompt` and `messages`"),
        ({"winner": [], "conversation_a": PAIR, "conversation_b": PAIR}, "not of the kind"),
        ({"fields": {"prompt": "q", "response": "a"}, "responses": [5]}, "not of the kind"),
        ({"input": "q", "output": "a", "scores": [5]}, "not of the kind"),
    ],
)
def test_rows_of_odd_kinds_are_faults_with_a_place(run, row: dict, told: str) -> None:
    code, out, err = run("import", write("odd.jsonl", [ROWS[0], row]))
    assert (code, out) == (2, "") and "odd.jsonl:2: " in err and told in err
    assert run("import", "odd.jsonl", "--skip-faults")[1].startswith("feedback.db: 1 new events")


def test_an_empty_file_is_no_sound_store(run) -> None:
    Path("feedback.db").touch()
    for command in (("check",), ("list",), ("export", "--salvage")):
        code, out, err = run(*command)
        assert (code, out) == (2, "") and "feedback.db is an empty file" in err
    assert Path("feedback.db").stat().st_size == 0


def test_bytes_that_are_no_text_are_damage(run) -> None:
    run("import", write("rows.jsonl", [*ROWS, {**ROWS[0], "prompt": "find me here"}]))
    with Store.open("feedback.db") as store:
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = Path("feedback.db")
    path.write_bytes(path.read_bytes().replace(b"find me here", b"find\xff\xfe  here"))
    code, out, err = run("check")
    assert (code, out) == (1, "") and "event 10 cannot be read" in err
    assert len(run("export", "--salvage")[1].splitlines()) == 9


def test_a_judgement_on_another_scale_is_added(run) -> None:
    row = json.dumps({**ONE_ROW, "rating": 5})
    assert "--scale 1:5" in run("add", row)[2]
    assert run("add", row, "--scale", "1:5")[0] == 0
    assert json.loads(run("list", "--json")[1])["rating"] == 1.0


@pytest.mark.parametrize("length", range(4096, 230_000, 9_001))
def test_wherever_a_store_was_cut_off_nothing_is_lost_in_silence(run, length: int) -> None:
    count = cut_off(run, length)
    code, out, err = run("export", "--salvage")
    assert "please report it" not in err and code in (0, 1, 2)
    if code == 1:
        lost = re.search(r"(\d+) events could not be read", err)
        assert len(out.splitlines()) + (int(lost[1]) if lost else 0) == count
    assert "please report it" not in run("check")[2]


def test_of_faulty_rows_alone_no_store_is_made(run) -> None:
    code, out, err = run("import", write("rows.jsonl", [{"prompt": "q"}] * 3), "--skip-faults")
    assert (code, out) == (2, "") and "every row has a fault" in err and "rows.jsonl:1" in err
    assert not Path("feedback.db").exists()


@pytest.mark.parametrize(("given", "told"), [(b"", "nothing was given"), (b"\xff\xfe", "utf-8")])
def test_no_event_on_standard_input(run, monkeypatch, given: bytes, told: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
    code, out, err = run("add", "-")
    assert (code, out) == (2, "") and told in err and "please report it" not in err


def test_a_file_that_comes_again_on_another_scale_is_told(run) -> None:
    stars = [{"prompt": f"q{i}", "response": "a", "rating": i + 1, "rater": "ann"} for i in range(5)]
    source = write("stars.jsonl", stars)
    for scale in ("1:5", "1.0:5"):
        assert run("import", source, "--scale", scale)[2] == ""
    code, out, err = run("import", source, "--scale", "1:6")
    assert code == 0 and "4 new events, 1 known already" in out
    assert err.startswith("warning: import:stars.jsonl was read with --scale 1:5 before, and with 1:6 now: ")
    assert run("import", source, "--scale", "1:6")[2] == ""  # it adds nothing
    assert (
        run("import", write("stars.jsonl", [*stars, ONE | {"rater": "ann"}]), "--scale", "1:6")[2] == ""
    )  # told once
    assert run("import", write("others.jsonl", stars), "--scale", "0:10")[2] == ""  # another file
    for name in ("stars.jsonl: x", "star", "stars.jsonl:", "stars.jsonl;"):  # names that begin alike
        assert (
            run("import", write(f"{name}.jsonl", [ONE | {"prompt": name, "rater": "ann"}]), "--scale", "0:9")[
                2
            ]
            == ""
        )


def test_words_are_on_every_scale(run) -> None:
    source = write("thumbs.jsonl", [ONE | {"rating": "up", "rater": "ann"}])
    assert run("import", source)[2] == run("import", source, "--scale=1:5")[2] == ""
    assert run("import", source, "--scale=-1:1")[2] == ""


ONE = {"prompt": "q", "response": "a", "rating": 1}


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (ONE | {"concent": False}, "unknown `concent`; did you mean `consent`?"),
        (ONE | {"Consent": False}, "unknown `Consent`; did you mean `consent`?"),
        ({"prompt": "q", "responce": "a", "rating": 1}, "unknown `responce`; did you mean `response`?"),
        (ONE | {"xyzzy": 1}, "unknown `xyzzy`; wanted of `prompt`,"),
        ('{"prompt": "q", "response": "a", "rating": 1, "rating": -1}', "`rating` is given twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_written_by_hand_says_nothing_in_vain(run, event: dict | str, told: str) -> None:
    code, _, err = run("add", event if isinstance(event, str) else json.dumps(event))
    assert (code, told in err) == (2, True), err
    assert not Path("feedback.db").exists()


def test_what_was_exported_is_added_again(run) -> None:
    """Every name that an export has is known; other tools' rows have further names of their own."""
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    score = {"name": "quality", "value": 1, "dataType": "NUMERIC"}
    more = {"tags": ["x"], "group": "g", "run": "runs/ppo", "run_hash": "1", "sampling": {"temperature": 1}}
    given = [
        ONE | more | {"rater": "ann", "time": "2026-01-02", "source": "web"},
        {"prompt": "q", "response": "a", "other": "b", "preferred": "tie", "shown_first": "other"},
        {"messages": talk, "thumbs": "up", "metadata": {"consent": False}},
        {"input": "q", "output": "a", "scores": [score], "projectId": "p"},
    ]
    for row in given:
        assert run("add", json.dumps(row))[0] == 0
    run("withdraw", "--rater", "ann")
    rows = run("export", "--withdrawn")[1].splitlines()
    assert len(rows) == len(given)
    for line in rows:
        assert run("add", line, "--store", "other.db")[0] == 0


def spoil(text: bytes) -> None:
    """Overwrite the page that a text stands on."""
    with Store.open("feedback.db") as store:
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = Path("feedback.db")
    content = bytearray(path.read_bytes())
    place = content.index(text) // 4096 * 4096
    content[place : place + 4096] = b"\xff" * 4096
    path.write_bytes(content)


def test_check_tells_a_damaged_store(run) -> None:
    run(
        "import",
        write("rows.jsonl", [{"prompt": f"<{i}>", "response": "a" * 300, "rating": 1} for i in range(500)]),
    )
    assert run("check")[:2] == (0, "feedback.db: sound, 500 events\n")
    spoil(b"<250>")
    code, _, err = run("check")
    assert code == 1 and "feedback.db is damaged" in err and "--salvage" in err
    code, out, err = run("export", "--salvage")
    assert code == 1 and "events could not be read" in err
    assert 450 < len(out.splitlines()) < 500


COMMANDS = [
    ("add", '{"prompt": "q", "response": "a", "rating": 1}'),
    ("import", "rows.jsonl"),
    ("list", "--rater", "r1"),
    ("stats",),
    ("withdraw", "--rater", "r1"),
    ("export", "--rater", "r1"),
    ("export", "--salvage", "--rater", "r1"),
    ("check",),
]


def cut_off(run, length: int) -> int:
    """A store in a file that ends too early; how many events it had."""
    many = [{**ROWS[0], "prompt": "q" * 2000 + str(i)} for i in range(50)]
    run("import", write("rows.jsonl", [*ROWS, *many]))
    path = Path("feedback.db")
    count = len(run("list")[1].splitlines())
    path.write_bytes(path.read_bytes()[:length])
    return count


@pytest.mark.parametrize("command", COMMANDS[:6], ids=lambda command: " ".join(command[:2])[:16])
def test_a_store_that_was_cut_off_is_told_alike(run, command: tuple[str, ...]) -> None:
    cut_off(run, 100_000)
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert "error: feedback.db: it is damaged (database disk image is malformed)" in err
    assert "`instructkit feedback check` tells what is" in err and "--salvage" in err


def test_of_a_store_that_was_cut_off_the_rest_is_saved(run) -> None:
    count = cut_off(run, 100_000)
    code, out, err = run("check")
    assert code == 1 and "event 54 cannot be read" in run("check", "--json")[1]
    assert "feedback.db is damaged" in err and "--salvage" in err
    code, out, err = run("export", "--salvage")
    saved, lost = len(out.splitlines()), int(err.split(" events could not be read")[0].split()[-1])
    assert code == 1 and saved + lost == count and saved > 10
    assert run("import", write("rest.jsonl", map(json.loads, out.splitlines())), "--store", "new.db")[0] == 0


@pytest.mark.parametrize("command", COMMANDS[6:], ids=lambda command: " ".join(command[:2])[:16])
def test_a_store_that_is_past_reading_is_told_alike(run, command: tuple[str, ...]) -> None:
    """No hint leads back to a command that needs something to read."""
    cut_off(run, 3000)
    code, out, err = run(*command)
    assert (code, out) == (1 if command == ("check",) else 2, "") and "damaged" in err
    assert "hint: restore it from a copy" in err and "feedback check" not in err and "--salvage" not in err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2])[:16])
def test_damage_is_told_with_its_path(run, command: tuple[str, ...]) -> None:
    """Where the store opens, and what a command needs first cannot be read: the salt of raters' names."""
    run("import", write("rows.jsonl", ROWS))
    run("withdraw", "--rater", "r0")
    with Store.open("feedback.db") as store:
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = store._db.execute("SELECT rootpage FROM sqlite_master WHERE name IN ('about', 'withdrawal')")
        places = [(page - 1) * 4096 for (page,) in pages]
    content = bytearray(Path("feedback.db").read_bytes())
    for place in places:
        content[place : place + 4096] = b"\xff" * 4096
    Path("feedback.db").write_bytes(content)
    code, _, err = run(*command)
    assert code == (1 if command == ("check",) else 2)
    assert "feedback.db" in err and "damaged" in err and "please report it" not in err
    if command[0] == "check":
        assert "feedback check" not in err and "--salvage" in err
    elif "--salvage" in command:
        assert "hint: restore it from a copy" in err and "--salvage" not in err
    else:
        assert "`instructkit feedback check` tells what is" in err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2])[:16])
def test_a_folder_is_no_store(run, command: tuple[str, ...]) -> None:
    write("rows.jsonl", ROWS)
    Path("folder").mkdir()
    code, out, err = run(*command, "--store", "folder")
    assert (code, out) == (2, "")
    assert "error: folder: is a folder; wanted one file\nhint: " in err
