"""Which events of a store are wanted, asked of the database or of an event that was saved from a damaged one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from instructkit.feedback.events import Event

COLUMNS = (
    "id, time, source, rater, run, run_hash, sampling, prompt, response, judgement, tags, segment, consent"
)
NOT_WITHDRAWN = (
    "NOT EXISTS (SELECT 1 FROM withdrawal WHERE withdrawal.event = event.id) AND "
    "(event.rater = '' OR NOT EXISTS (SELECT 1 FROM withdrawal WHERE withdrawal.rater = event.rater))"
)


@dataclass(frozen=True)
class Filter:
    """
    Which events: said since a time (ISO 8601), about a run, by a rater, with a tag, of a kind; with or without consent to
    training where that is given; that came after an event, and up to one, by their ids; withdrawn ones too or not.
    """

    since: str | None = None
    run: str | None = None
    rater: str | None = None
    tag: str | None = None
    kind: str | None = None
    consent: bool | None = None
    after: str | None = None
    withdrawn: bool = False
    until: str | None = None

    def question(
        self, hashed: Callable[[str], str], number: Callable[[str], int]
    ) -> tuple[str, list[str | int]]:
        """
        The condition of an SQL query on the table of events, and its values.

        Args:
            hashed: a rater's name as the store keeps it.
            number: the place of the event with an id.
        """
        found: list[tuple[str, list[str | int]]] = [] if self.withdrawn else [(NOT_WITHDRAWN, [])]
        if self.since:
            found.append(("time >= ?", [self.since]))
        if self.run:
            found.append(("(run = ? OR run_hash = ?)", [self.run, self.run]))
        if self.rater:
            found.append(("rater = ?", [hashed(self.rater)]))
        if self.tag:
            found.append(("EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)", [self.tag]))
        if self.kind:
            found.append(("kind = ?", [self.kind]))
        if self.consent is not None:
            found.append(("consent = ?", [int(self.consent)]))
        if self.after is not None:
            found.append(("seq > ?", [number(self.after)]))
        if self.until is not None:
            found.append(("seq <= ?", [number(self.until)]))
        conditions = " AND ".join(condition for condition, _ in found) or "1"
        return conditions, [value for _, values in found for value in values]

    def takes(self, event: Event, hashed: Callable[[str], str]) -> bool:
        """Whether an event is wanted, by what it says itself: not by its place, and not by whether it was withdrawn."""
        return (
            (not self.since or event.time >= self.since)
            and (not self.run or self.run in (event.run, event.run_hash))
            and (not self.rater or event.rater == hashed(self.rater))
            and (not self.tag or self.tag in event.tags)
            and (not self.kind or event.kind == self.kind)
            and (self.consent is None or event.consent == self.consent)
        )


def event_from(found: tuple[Any, ...]) -> Event:
    """
    The event that a row of the table keeps, its columns being `COLUMNS`.

    Raises:
        sqlite3.DatabaseError: when it cannot be read, which is damage like any other.
    """
    (id_, time, source, rater, run, run_hash, sampling, prompt, response, judgement, tags, group, consent) = (
        found
    )
    try:
        if "\0" in prompt + response:  # no event has them; a page has, of which a part is lost
            raise ValueError("it holds NUL bytes")
        return Event(
            *(id_, time, source, rater, json.loads(prompt), response, json.loads(judgement), run, run_hash),
            None if sampling is None else json.loads(sampling),
            tuple(json.loads(tags)),
            group,
            bool(consent),
        )
    except (ValueError, TypeError) as error:
        raise sqlite3.DatabaseError(f"the event {id_} cannot be read: {error}") from error
