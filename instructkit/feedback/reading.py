"""Events of a feedback store as checked rows, the new ones or those with given ids."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from instructkit.data.sources import Rows, fingerprint
from instructkit.data.table import Table
from instructkit.errors import InputError, NothingNew
from instructkit.feedback.events import Event
from instructkit.feedback.store import Filter, Store

_MORE = "import more with `instructkit feedback import`"


def events_after(path: str, last: str | None, *, until: str | None = None, limit: int | None = None) -> Rows:
    """
    The events of a store that may be trained on and came after one.

    Args:
        last: id of that event; None for all of them.
        until: id of the last event that is read; None for all of them.
        limit: the first so many.

    Raises:
        NothingNew: when there are such events, and all came before.
        InputError: when there is no such store, or no such event in it, or nothing that may be trained on, or withdrawals
            cannot be relied on.
    """
    with Store.open(path) as store:
        store.refuse_damaged_withdrawals()
        rows = _rows(store.events(Filter(consent=True, after=last, until=until)), path, limit)
        before = store.count(Filter(consent=True)) if last and not rows.rows else 0
    if not rows.rows and before:
        raise NothingNew(
            f"{path} holds no new events: the chain's current adapter has seen all {before} that may be trained on",
            hint=f"{_MORE}, or learn from all of them again with feedback.since=all",
        )
    if not rows.rows:
        raise InputError(f"{path} holds no events that may be trained on", hint=_MORE)
    return rows


def events_with(path: str, ids: Iterable[str]) -> Rows:
    """Those of the events with these ids that may still be trained on: none that was withdrawn since."""
    with Store.open(path) as store:
        return _rows(store.those(ids), path, None)


def _rows(events: Iterable[Event], path: str, limit: int | None) -> Rows:
    kept = Table()
    for event in events:
        if limit is not None and len(kept) >= limit:
            break
        kept.append((event.as_row(), f"{path} event {event.id}"))
    rows, places = (kept.column(range(len(kept)), itemgetter(i)) for i in (0, 1))
    return Rows(rows, places, path, fingerprint(rows), kind="feedback")
