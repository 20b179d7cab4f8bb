"""Opening the file of a feedback store: made for its owner alone, brought up to date, or only read; and its errors in words."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from instructkit.errors import InputError, InstructKitError

STEPS = (
    # 1: events, and what the store knows of itself. Events are only ever added.
    """
    CREATE TABLE event(
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        content_key BLOB NOT NULL UNIQUE,
        time TEXT NOT NULL,
        source TEXT NOT NULL,
        rater TEXT NOT NULL,
        run TEXT NOT NULL,
        run_hash TEXT NOT NULL,
        sampling TEXT,
        prompt TEXT NOT NULL,
        response TEXT NOT NULL,
        kind TEXT NOT NULL,
        judgement TEXT NOT NULL,
        tags TEXT NOT NULL,
        segment TEXT NOT NULL,
        consent INTEGER NOT NULL
    );
    CREATE TABLE about(name TEXT PRIMARY KEY, value BLOB NOT NULL);
    CREATE TRIGGER event_is_final BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
    CREATE TRIGGER event_stays BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'events are never removed'); END;
    """,
    # 2: withdrawals, of one event or of all of a rater, the later ones too.
    """
    CREATE TABLE withdrawal(
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        time TEXT NOT NULL,
        event TEXT REFERENCES event(id),
        rater TEXT,
        why TEXT NOT NULL,
        CHECK ((event IS NULL) <> (rater IS NULL))
    );
    CREATE INDEX withdrawal_of_event ON withdrawal(event);
    CREATE INDEX withdrawal_of_rater ON withdrawal(rater);
    CREATE TRIGGER withdrawal_is_final BEFORE UPDATE ON withdrawal
        BEGIN SELECT RAISE(ABORT, 'withdrawals are never changed'); END;
    CREATE TRIGGER withdrawal_stays BEFORE DELETE ON withdrawal
        BEGIN SELECT RAISE(ABORT, 'withdrawals are never removed'); END;
    CREATE INDEX event_of_rater ON event(rater);
    CREATE INDEX event_at_time ON event(time);
    """,
    # 3: which prompts are nearly the same: hashes only. A prompt keeps the clusters that it was given.
    """
    CREATE TABLE prompt_cluster(id INTEGER PRIMARY KEY, position REAL NOT NULL);
    CREATE TABLE prompt_met(prompt_key BLOB PRIMARY KEY, clusters TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE prompt_sketch(id INTEGER PRIMARY KEY, hashes BLOB NOT NULL, clusters TEXT NOT NULL);
    CREATE TABLE prompt_band(band INTEGER, sketch INTEGER, PRIMARY KEY (band, sketch)) WITHOUT ROWID;
    """,
)
CLUSTERS = 2  # the step that makes the tables of `feedback.clusters`, which may also stand in a database of their own
NEWEST = len(STEPS)


WAIT_SECONDS = 30  # for another writer
READ_ONLY = "?mode=ro"
_STILL_OPENS = "`instructkit feedback check` tells what is, and `feedback export --salvage` writes what can still be read"
PAST_READING = (
    "restore it from a copy, or import the same files again into a new store, with --store, and withdraw "
    "again what was withdrawn"
)


def prepare(path: Path, *, create: bool) -> None:
    """
    Before a file is opened: one that becomes a store, new or still empty, is closed to everybody but its owner.

    Raises:
        InputError: when there is none and none is to be made, or what is there is no file.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; wanted one file", hint=f"as {path / 'feedback.db'}")
    there = path.exists()
    if there and not path.is_file():
        raise InputError(f"{path}: is no plain file; wanted one file", hint="give another path with --store")
    if not there and not create:
        raise InputError(
            f"no feedback store at {path}", hint="`instructkit feedback import FILE --store PATH` makes one"
        )
    empty = there and path.stat().st_size == 0
    if empty and not create:
        raise InputError(
            f"{path} is an empty file: nothing was stored in it yet, or it was cut off", hint=PAST_READING
        )
    if not there or empty:
        _make_private(path)


def _make_private(path: Path) -> None:
    """An empty file that nobody else may read; SQLite gives its companions the same rights where it makes them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        for file in (path, *_companions(path)):
            if file.exists():  # made by others, with the rights that they have as a rule
                file.chmod(0o600)
    except OSError as error:
        raise InputError(f"{path} cannot be made: {error}", hint="give another path with --store") from error


def connect(path: Path) -> tuple[sqlite3.Connection, str]:
    """
    A connection in autocommit mode to a store of the newest version, and the address of a second one that only reads.

    Nothing is written when the store is up to date, so that it can be read while another process writes, and where
    nobody may write at all.

    Raises:
        InputError: when the file is no store, or one of a newer version.
        sqlite3.Error: when it cannot be read, or is old and cannot be written.
    """
    address = path.absolute().as_uri()
    try:
        return _current(path, address), f"{address}{READ_ONLY}"
    except sqlite3.OperationalError as error:
        if not _unwritable(str(error)) or _unsettled(path):
            raise
    # SQLite wants companion files even to read. None can be made here, and none are there, so nobody is writing.
    address += f"{READ_ONLY}&immutable=1"
    return _current(path, address), address


def connect_to_the_rest(path: Path) -> tuple[sqlite3.Connection, str]:
    """
    As `connect`; where that fails for damage, a connection that reads what is left, also of a file that was cut off.

    Raises:
        InputError, sqlite3.Error: as `connect` does, when not even its version can be read.
    """
    try:
        return connect(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        address = f"{path.absolute().as_uri()}{READ_ONLY}"
        connection = sqlite3.connect(address, uri=True, timeout=WAIT_SECONDS, isolation_level=None)
        try:
            # By its size alone SQLite refuses a file that is shorter than it says, unless its schema may be mended.
            connection.execute("PRAGMA writable_schema = ON")
            _version(path, connection)
        except BaseException:
            connection.close()
            raise
        return connection, address


def _current(path: Path, address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, timeout=WAIT_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        if _version(path, connection) < NEWEST:
            connection.execute("PRAGMA journal_mode = WAL")
            _migrate(path, connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _unsettled(path: Path) -> bool:
    """Whether writes are still in the log beside the file."""
    log, _ = _companions(path)
    return log.exists() and log.stat().st_size > 0


def _version(path: Path, db: sqlite3.Connection) -> int:
    have = db.execute("PRAGMA user_version").fetchone()[0]
    if have > NEWEST:
        raise InputError(
            f"{path} is a feedback store of version {have}, and this instructkit knows {NEWEST}",
            hint="install a newer instructkit",
        )
    if have == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise InputError(f"{path} is a database, but no feedback store", hint="give another path")
    return have


def _migrate(path: Path, db: sqlite3.Connection) -> None:
    with transaction(db):
        for step in STEPS[_version(path, db) :]:  # another process may have been faster
            for statement in _statements(step):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {NEWEST}")
        db.execute("INSERT OR IGNORE INTO about VALUES ('salt', ?)", (os.urandom(16),))


def _statements(step: str) -> Iterator[str]:
    """The statements of a step; a trigger has semicolons inside."""
    text = ""
    for line in step.splitlines():
        text += line + "\n"
        if sqlite3.complete_statement(text):
            yield text
            text = ""


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """One transaction: all of it on disk when the block is left, or none of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@contextlib.contextmanager
def in_words(path: Path, damaged: str = _STILL_OPENS) -> Iterator[None]:
    """
    What goes wrong with the file is told in words, and with what to do about it.

    Args:
        damaged: what to do about damage; the usual ways on need a store that opens.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _told(path, str(error), damaged) from error


def _unwritable(text: str) -> bool:
    return "readonly" in text or "unable to open" in text


def _told(path: Path, text: str, damaged: str) -> InstructKitError:
    if "full" in text:
        told, hint = (
            "the disk is full",
            "free some space and give the same files again: nothing is added twice",
        )
    elif "locked" in text:
        told, hint = f"another process has been writing for {WAIT_SECONDS} s", "try again"
    elif "not a database" in text:
        return InputError(f"{path} is no feedback store", hint="give another path with --store")
    elif _unwritable(text):
        what = "written" if "readonly" in text else "opened"
        return InputError(f"{path}: it cannot be {what} ({text})", hint=_permissions(path))
    else:
        return InputError(f"{path}: it is damaged ({text})", hint=damaged)
    return InstructKitError(f"{path}: {told}", hint=hint)


def _permissions(path: Path) -> str:
    """Whose permissions to look at: a store has companions, and those made while it was read-only stay so."""
    closed = [
        file
        for file in (path, *_companions(path))
        if file.exists() and not os.access(file, os.R_OK | os.W_OK)
    ]
    named = f"of {', '.join(map(str, closed))}" if closed else f"of the file and of its folder {path.parent}"
    return f"check the permissions {named}"


def _companions(path: Path) -> list[Path]:
    """The files that SQLite keeps beside a store."""
    return [path.with_name(path.name + end) for end in ("-wal", "-shm")]
