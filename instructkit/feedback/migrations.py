"""The schema of a feedback store, by numbered steps: a store of any earlier number is brought up to the last."""

from __future__ import annotations

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
