"""The store: what was acknowledged is there, whatever happens to the process, the disk or the file."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from instructkit.errors import InputError, InstructKitError, NothingNew
from instructkit.feedback.store import database
from instructkit.feedback.store.events import content_id, event_of
from instructkit.feedback.store.salvage import Rest
from instructkit.feedback.store.store import Filter, Store, events_after

ROOT = Path(__file__).parents[2]


def rows(count: int, **more) -> list[dict]:
    return [{"prompt": f"q{i}", "response": f"a{i}", "rating": 1 - 2 * (i % 2), **more} for i in range(count)]


def events(found: list[dict]):
    return [(event_of(row, source="import:x", consent=True), row) for row in found]


def added(store: Store, found: list[dict]) -> tuple[int, int]:
    counts = list(store.add(events(found)))
    return sum(new for new, _ in counts), sum(known for _, known in counts)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "feedback.db"


def test_what_goes_in_comes_out(path) -> None:
    given = [
        {
            "messages": [{"role": "user", "content": "hé\u2028"}],
            "response": "a",
            "better": "b",
            "rater": "ann",
            "tags": ["x", "y"],
            "group": "g",
            "time": "2026-01-02T03:04:05+01:00",
            "run": "runs/ppo",
            "sampling": {"temperature": 1},
            "consent": False,
        },
        {"prompt": "q", "response": "a", "other": "c", "preferred": "tie", "shown_first": "other"},
    ]
    with Store.open(path, create=True) as store:
        assert added(store, given) == (2, 0)
        first, second = store.events()
    assert (first.prompt, first.kind, first.consent) == (given[0]["messages"], "edit", False)
    assert (first.time, first.tags, first.group) == ("2026-01-02T02:04:05.000Z", ("x", "y"), "g")
    assert first.rater.startswith("h:") and "ann" not in path.read_bytes().decode("latin1")
    assert second.judgement == {"other": "c", "preferred": "tie", "shown_first": "other"}
    for event in (first, second):  # and out of the store into another
        again = event_of(event.as_row(), source="elsewhere", consent=True)
        assert again == event


def test_the_same_rows_add_nothing_and_rows_that_are_alike_are_told_apart(path) -> None:
    given = [*rows(5), *rows(5), *rows(2)]  # some people said the same, namelessly
    with Store.open(path, create=True) as store:
        assert added(store, given) == (12, 0)
        assert added(store, given) == (0, 12)
        assert added(store, given + rows(2)) == (2, 12)
        exported = [event.as_row() for event in store.events()]
        assert added(store, exported) == (0, 14)
    with Store.open(path.with_name("other.db"), create=True) as other:
        assert added(other, exported) == (14, 0)
        assert added(other, exported) == (0, 14)


def test_the_numbers_that_other_files_give_their_rows_are_no_ids(path) -> None:
    with Store.open(path, create=True) as store:
        assert added(store, [{**row, "id": "1"} for row in rows(2)]) == (2, 0)
        assert added(store, [{**row, "id": "1"} for row in rows(4)]) == (2, 2)
        twice = [{"prompt": "q", "response": "a", "rating": 1, "id": number} for number in (7, 8)]
        assert added(store, twice) == (2, 0)  # told apart by their numbers
        assert added(store, twice) == (0, 2)
        assert all(len(event.id) == 26 for event in store.events())


def test_nobody_else_may_read_it(path) -> None:
    with Store.open(path, create=True) as store:
        added(store, rows(1))
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_an_empty_file_that_others_may_read_becomes_private(path) -> None:
    files = [path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))]
    for file in files:
        file.touch()
        file.chmod(0o644)
    with pytest.raises(InputError, match="is an empty file"):
        Store.open(path)
    with Store.open(path, create=True) as store:
        added(store, rows(1))
        assert sorted(path.parent.iterdir()) == sorted(files)
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_rights_that_were_given_to_a_store_stay(path) -> None:
    with Store.open(path, create=True) as store:
        added(store, rows(1))
    path.chmod(0o640)
    with Store.open(path, create=True) as store:
        added(store, rows(2))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_is_no_file_is_no_store_and_keeps_its_rights(path) -> None:
    os.mkfifo(path, 0o644)
    path.chmod(0o644)
    with pytest.raises(InputError, match="is no plain file; wanted one file"):
        Store.open(path, create=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_events_are_never_changed_or_removed(path) -> None:
    with Store.open(path, create=True) as store:
        added(store, rows(1))
        store.withdraw(event=next(store.events()).id)
    raw = sqlite3.connect(path)
    for statement in (
        "DELETE FROM event",
        "UPDATE event SET response = 'x'",
        "DELETE FROM withdrawal",
        "UPDATE withdrawal SET why = 'x'",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            raw.execute(statement)


def test_filters(path) -> None:
    given = [
        *rows(2, time="2026-01-01", run="runs/a", rater="ann", tags=["x"]),
        {
            "prompt": "q",
            "response": "a",
            "better": "b",
            "time": "2026-02-01",
            "rater": "bob",
            "tags": ["x", "y"],
        },
    ]
    with Store.open(path, create=True) as store:
        added(store, given)
        for wanted, count in (
            (Filter(), 3),
            (Filter(since="2026-01-15"), 1),
            (Filter(run="runs/a"), 2),
            (Filter(rater="ann"), 2),
            (Filter(tag="y"), 1),
            (Filter(tag="x", kind="rating"), 2),
            (Filter(kind="edit", rater="ann"), 0),
        ):
            assert (store.count(wanted), len(list(store.events(wanted)))) == (count, count), wanted


def test_events_between_two_others(path) -> None:
    with Store.open(path, create=True) as store:
        added(store, [*rows(2, rater="ann"), *rows(3, consent=False), *rows(4, rater="bob")])
        ids = [event.id for event in store.events()]
        store.withdraw(rater="bob")
        for after, until in (
            (None, None),
            (ids[0], None),
            (None, ids[6]),
            (ids[1], ids[5]),
            (ids[5], ids[5]),
            (ids[0], ids[3]),
        ):
            first, last = (ids.index(after) + 1 if after else 0, ids.index(until) + 1 if until else len(ids))
            wanted = Filter(withdrawn=True, after=after, until=until)
            assert [event.id for event in store.events(wanted)] == ids[first:last]
            assert store.left_out(after, until) == {
                "withdrawn": len(set(range(5, 9)) & set(range(first, last))),
                "without consent": len(set(range(2, 5)) & set(range(first, last))),
            }
        for unknown in (Filter(after="01X"), Filter(until="01X")):
            with pytest.raises(InputError, match="has no event 01X") as error:
                list(store.events(unknown))
            assert "feedback.since=all" in error.value.hint
        assert (store.has(ids[-1]), store.has("01X")) == (True, False)
    with pytest.raises(InputError, match="has no event 01X"):
        events_after(str(path), "01X")
    with pytest.raises(NothingNew, match="has seen all 2 that"):
        events_after(str(path), ids[-1])


def test_shares_are_held_for_ever(path) -> None:
    with Store.open(path, create=True) as store:
        store.pin("eval", 0.7, keep=False)  # a plan holds nothing
        store.pin("eval", 0.3)
        store.pin("tune", 0.1)
    with Store.open(path) as store:
        store.pin("eval", 0.3)
        for keep in (True, False):
            with pytest.raises(InputError, match="a share of 0.3 for feedback.eval, and .* 0.5") as error:
                store.pin("eval", 0.5, keep=keep)
            for way in ("set feedback.eval: 0.3", "export the events", "new feedback.chain"):
                assert way in error.value.hint
        with pytest.raises(InputError, match="a share of 0.1 for feedback.tune, and .* 0.2"):
            store.pin("tune", 0.2)


def test_a_row_is_known_by_what_it_says() -> None:
    row = {"prompt": "q", "response": "a", "rating": 1, "rater": "ann"}
    same = [
        {**row, "rating": 1.0},
        dict(reversed(row.items())),
        {**row, "id": "7", "time": 3, "better": None},
    ]
    others = [
        {**row, "prompt": "p"},
        {**row, "response": "b"},
        {**row, "rating": 0.5},
        {**row, "rater": "bob"},
        {"prompt": "q", "response": "a", "better": "b", "rater": "ann"},
        {"prompt": "q", "response": "a", "better": "c", "rater": "ann"},
        {"prompt": "q", "response": "a", "other": "b", "preferred": "tie", "rater": "ann"},
        {"messages": [{"role": "user", "content": "q"}], "response": "a", "rating": 1, "rater": "ann"},
    ]
    assert {content_id(each) for each in same} == {content_id(row)}
    assert len({content_id(each) for each in [row, *others]}) == 9
    # SHA-256 of ["ann", "q", "a", {"rating": 1.0}], its first 16 bytes: histories keep these.
    assert content_id(row) == "c:af666977ebafc7b58076f3f4d1b5f89c"


def test_a_store_is_read_while_another_process_writes(path, monkeypatch) -> None:
    """Without waiting for it, and nothing is written by it."""
    with Store.open(path, create=True) as store:
        added(store, rows(3))
        list(store.clusters(0.8).touched(["q"]))
    monkeypatch.setattr(database, "WAIT_SECONDS", 0)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO about VALUES ('x', 1)")
    before = path.read_bytes()
    with Store.open(path) as store:
        assert len(list(store.events())) == store.count() == 3
        assert list(store.clusters(0.8, keep=False).touched(["q", "p"])) == [(1,), (2,)]
    assert path.read_bytes() == before
    writer.execute("COMMIT")


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that others can look into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def somebody_without_rights() -> Iterator[None]:
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("folder", [0o555, 0o777])
def test_a_store_that_may_only_be_read(common: Path, folder: int) -> None:
    path = common / "feedback #1?.db"
    with Store.open(path, create=True) as store:
        added(store, rows(3))
        list(store.clusters(0.8).touched(["q"]))
    path.chmod(0o444)
    common.chmod(folder)
    with somebody_without_rights(), Store.open(path) as store:
        assert len(list(store.events())) == store.count() == 3
        assert store.left_out() == {"withdrawn": 0, "without consent": 0}
        assert list(store.clusters(0.8, keep=False).touched(["q", "p"])) == [(1,), (2,)]
        for write in (
            lambda: added(store, rows(4)),
            lambda: store.withdraw(event=next(store.events()).id),
            store.refuse_unwritable,
        ):
            with pytest.raises(InstructKitError, match="cannot be written"):
                write()
    common.chmod(0o755)


def damage(path: Path) -> list[str]:
    with Rest.of(path) as rest:
        return rest.damage()


def salvaged(path: Path) -> list:
    with Rest.of(path) as rest:
        return list(rest.salvage())


def test_events_that_are_known_use_up_no_number(path) -> None:
    """A number that no event has looks like an event that is lost."""
    with Store.open(path, create=True) as store:
        for count in (3, 3, 5):
            added(store, rows(count))
        assert store._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchone() == (5,)
        assert all(not isinstance(each, int) for each in salvaged(store.path))


def test_an_index_that_finds_no_withdrawal_stops_an_update(path) -> None:
    with Store.open(path, create=True) as store:
        added(store, rows(3))
        store.withdraw(event=next(store.events()).id)
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        asked = "SELECT rootpage FROM sqlite_master WHERE name = 'withdrawal_of_event'"
        place = 4096 * (store._db.execute(asked).fetchone()[0] - 1)
    assert len(events_after(str(path), None).rows) == 2
    content = bytearray(path.read_bytes())
    content[place + 3 : place + 5] = bytes(2)  # the page says that it has no entry
    path.write_bytes(content)
    with Store.open(path) as store:
        assert store.count() == 3  # by itself SQLite does not notice
    with pytest.raises(InputError, match="it is damaged .withdrawals: ") as told:
        events_after(str(path), None)
    assert "feedback check" in told.value.hint


def test_an_event_with_a_part_missing_is_lost(path) -> None:
    with Store.open(path, create=True) as store:
        added(store, rows(3))
        store._db.execute("DROP TRIGGER event_is_final")
        store._db.execute("UPDATE event SET response = 'a' || char(0) WHERE seq = 2")
        assert [isinstance(each, int) for each in salvaged(store.path)] == [False, True, False]


def test_an_event_that_is_garbled_is_damage(path) -> None:
    with Store.open(path, create=True) as store:
        added(store, rows(3))
        middle = [event.id for event in store.events()][1]
        store._db.execute("DROP TRIGGER event_is_final")
        for broken in ("{", "7"):
            store._db.execute("UPDATE event SET tags = ? WHERE seq = 2", (broken,))
            for read in (lambda: list(store.events()), lambda: list(store.those([middle]))):
                with pytest.raises(
                    InstructKitError, match="it is damaged .the event .* cannot be read"
                ) as told:
                    read()
                assert "--salvage" in told.value.hint
            assert [getattr(each, "prompt", each) for each in salvaged(store.path)] == ["q0", 2, "q2"]


def test_a_withdrawal_covers_what_a_rater_says_later(path) -> None:
    with Store.open(path, create=True) as store:
        added(store, [*rows(3, rater="ann"), *rows(2, rater="bob"), *rows(2)])
        one = next(store.events(Filter(rater="bob"))).id
        assert store.withdraw(event=one, why="a mistake") == 1
        assert store.withdraw(rater="ann") == 3
        assert store.withdraw(rater="ann") == 0
        added(store, [{"prompt": "new", "response": "a", "rating": 1, "rater": "ann"}])
        assert store.count() == 3  # one of bob's, and two of nobody's
        assert store.count(Filter(withdrawn=True)) == 8
        assert [found["why"] for found in store.withdrawals()] == ["a mistake", "", ""]
        with pytest.raises(InputError, match="no event nonsense"):
            store.withdraw(event="nonsense")
        with pytest.raises(InputError, match="nothing said by carol"):
            store.withdraw(rater="carol")


def test_a_store_of_version_one_is_brought_up_to_date(path) -> None:
    raw = sqlite3.connect(path)
    raw.executescript(database.STEPS[0])
    raw.execute("PRAGMA user_version = 1")
    raw.execute("INSERT INTO about VALUES ('salt', x'0102030405060708')")
    values = (
        "01",
        b"k",
        "2026",
        "chat",
        "",
        "",
        "",
        None,
        '"q"',
        "a",
        "rating",
        '{"rating": 1}',
        "[]",
        "",
        1,
    )
    columns = (
        "id, content_key, time, source, rater, run, run_hash, sampling, prompt, response, kind, judgement, "
        "tags, segment, consent"
    )
    raw.execute(f"INSERT INTO event({columns}) VALUES ({', '.join('?' * 15)})", values)
    raw.commit()
    raw.close()
    with Store.open(path) as store:
        assert [event.id for event in store.events()] == ["01"]
        assert store.salt == bytes([1, 2, 3, 4, 5, 6, 7, 8])
        assert store.withdraw(event="01") == 1
        assert damage(store.path) == []


def test_every_version_leads_to_the_same_schema(path) -> None:
    def schema(file: Path) -> list:
        raw = sqlite3.connect(file)
        return raw.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()

    Store.open(path, create=True).__exit__()
    for version in range(1, database.NEWEST):
        older = path.with_name(f"v{version}.db")
        raw = sqlite3.connect(older)
        for step in database.STEPS[:version]:
            raw.executescript(step)
        raw.execute(f"PRAGMA user_version = {version}")
        raw.close()
        Store.open(older).__exit__()
        assert schema(older) == schema(path)


@pytest.mark.parametrize("version", [0, 99])
def test_other_databases_are_refused(path, version: int) -> None:
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE mine(x)")
    raw.execute(f"PRAGMA user_version = {version}")
    raw.close()
    with pytest.raises(InputError, match="version 99" if version else "no feedback store"):
        Store.open(path)
    assert sqlite3.connect(path).execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]


def test_files_that_are_no_stores(path) -> None:
    with pytest.raises(InputError, match="no feedback store at"):
        Store.open(path)
    assert not path.exists()
    path.write_text("text " * 1000, encoding="utf-8")
    with pytest.raises(InputError, match="is no feedback store"):
        Store.open(path)


def test_a_full_disk_keeps_what_was_acknowledged(path) -> None:
    with Store.open(path, create=True) as store:
        store._db.execute(
            "PRAGMA max_page_count = 120"
        )  # what SQLite then says is what it says of a full disk
        acknowledged = 0
        with pytest.raises(InstructKitError, match="the disk is full") as error:
            for new, _ in store.add(events(rows(20_000))):
                acknowledged += new
        assert "nothing is added twice" in error.value.hint
        assert acknowledged > 0
    with Store.open(path) as store:
        assert store.count() == acknowledged
        assert added(store, rows(20_000)) == (20_000 - acknowledged, acknowledged)


def test_two_writers_and_a_reader_at_once(path) -> None:
    Store.open(path, create=True).__exit__()
    writers = [_writer(path, first, 3000) for first in (0, 3000)]
    with Store.open(path) as store:
        while any(writer.poll() is None for writer in writers):
            assert len(list(store.events())) <= store.count()
            time.sleep(0.01)
        assert [writer.returncode for writer in writers] == [0, 0]
        assert store.count() == 6000
        assert damage(store.path) == []


WRITER = """
import sys
from pathlib import Path
from instructkit.feedback.store import store
from instructkit.feedback.store.events import event_of
store.BATCH = 50
first, count = map(int, sys.argv[2:])
rows = ({"prompt": f"q{i}", "response": "a" * 200, "rating": 1} for i in range(first, first + count))
with store.Store.open(sys.argv[1]) as opened:
    done = 0
    for new, known in opened.add((event_of(row, source="x", consent=True), row) for row in rows):
        done += new + known
        print(first + done, flush=True)
"""


def _writer(path: Path, first: int, count: int) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def killed_at_random(path: Path, seed: int) -> None:
    """Start a writer, kill it at a random moment, and look for everything that it had acknowledged."""
    rng = random.Random(seed)
    Store.open(path, create=True).__exit__()
    writer = _writer(path, 0, 100_000)
    lines = [writer.stdout.readline() for _ in range(rng.randrange(1, 40))]
    time.sleep(rng.random() * 0.01)
    writer.send_signal(signal.SIGKILL)
    lines += writer.stdout.read().splitlines()
    writer.wait()
    acknowledged = max(int(line) for line in lines if line.strip())
    with Store.open(path) as store:
        assert damage(store.path) == []
        there = [event.prompt for event in store.events()]
    assert there[:acknowledged] == [f"q{i}" for i in range(acknowledged)]
    assert len(there) % 50 == 0  # a batch is there whole, or not at all


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_writer_loses_nothing_that_it_acknowledged(path, seed: int) -> None:
    killed_at_random(path, seed)


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(5, 55))
def test_fifty_killed_writers_lose_nothing(path, seed: int) -> None:
    killed_at_random(path, seed)


def damaged(path: Path) -> list[int]:
    """A store of 2000 events with a page in the middle overwritten; the numbers of the events whose words stood there."""
    with Store.open(path, create=True) as store:
        added(store, [{"prompt": f"<{i:05}>", "response": "a" * 100, "rating": 1} for i in range(1, 2001)])
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = store._db.execute("PRAGMA page_size").fetchone()[0]
    content = bytearray(path.read_bytes())
    page = content.index(b"<01000>") // size
    lost = [i for i in range(1, 2001) if content.index(f"<{i:05}>".encode()) // size == page]
    content[page * size : (page + 1) * size] = random.Random(0).randbytes(size)
    path.write_bytes(content)
    return lost


@pytest.mark.parametrize("text", ["short", "a long answer of many words " * 700])
def test_behind_a_broken_root_every_event_is_still_found(path, text: str) -> None:
    """The long ones go on over several pages, and over the 64 KiB of one varint."""
    said = [
        {
            "messages": [{"role": "user", "content": f"¿{i}?"}],
            "response": text + str(i),
            "rating": i % 2,
            "rater": f"r{i}",
        }
        for i in range(60)
    ] + [
        {"prompt": f"q{i}", "response": "a", "better": text, "time": 1.7e9 + i, "tags": ["x"]}
        for i in range(200)
    ]
    with Store.open(path, create=True) as store:
        added(store, said)
        before = list(store.events())
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root = store._db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'event'").fetchone()[0]
    content = bytearray(path.read_bytes())
    content[(root - 1) * 4096 : root * 4096] = random.Random(1).randbytes(4096)
    path.write_bytes(content)
    assert any("cannot be read" in each for each in damage(path))
    assert salvaged(path) == before


def test_a_damaged_page_is_named_and_the_rest_is_saved(path) -> None:
    lost = damaged(path)
    with Store.open(path) as store:
        told = damage(store.path)
        assert "malformed" in told[0] and "event 1000 cannot be read" in told
        with pytest.raises(InstructKitError, match="damaged") as error:
            list(store.events())
        assert "--salvage" in error.value.hint
        found = salvaged(store.path)
    unread = [item for item in found if isinstance(item, int)]
    assert unread == lost
    saved = [item.prompt for item in found if not isinstance(item, int)]
    assert saved == [f"<{i:05}>" for i in range(1, 2001) if i not in unread]
