"""Where the tables of `clusters` lie: in a store, in a temporary database, or above a store that stays as it is."""

from __future__ import annotations

import sqlite3

from instructkit.feedback import migrations
from instructkit.feedback.opening import READ_ONLY, WAIT_SECONDS

TABLES = ("prompt_cluster", "prompt_met", "prompt_sketch", "prompt_band")
_CACHE_KIB = 128 * 1024


def temporary() -> sqlite3.Connection:
    """Tables of their own, on disk when they are large, and gone when they are closed."""
    connection = _connected("")
    connection.execute("PRAGMA synchronous = OFF")
    connection.executescript(migrations.STEPS[migrations.CLUSTERS])
    return connection


def kept(address: str) -> sqlite3.Connection:
    """The tables of a store; `address` is its `file:` URI, also one that only reads."""
    connection = _connected(address.removesuffix(READ_ONLY))
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def above(address: str) -> sqlite3.Connection:
    """
    A temporary database whose tables are read together with those of a store, which stays as it is.

    One transaction, never committed, holds the store as it was: the ids that are given here cannot be given there meanwhile.

    Args:
        address: of the store, a `file:` URI that only reads.
    """
    connection = temporary()
    connection.execute("ATTACH ? AS kept", (address,))
    connection.execute(f"PRAGMA kept.cache_size = -{_CACHE_KIB}")
    for table in TABLES:
        both = f"SELECT * FROM main.{table} UNION ALL SELECT * FROM kept.{table}"
        connection.execute(f"CREATE TEMP VIEW {table} AS {both}")
    connection.execute("BEGIN")
    return connection


def last(db: sqlite3.Connection, table: str) -> int:
    """The highest id; in order of the key, which a view of two tables can answer from their ends as well."""
    found = db.execute(f"SELECT id FROM {table} ORDER BY id DESC LIMIT 1").fetchone()
    return found[0] if found else 0


def _connected(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, timeout=WAIT_SECONDS, isolation_level=None)
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return connection
