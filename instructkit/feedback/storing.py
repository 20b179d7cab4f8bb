"""From events to a store: personal data is replaced before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from instructkit.data.records import Row
from instructkit.feedback.events import Event
from instructkit.feedback.personal import Redactor
from instructkit.feedback.store import Store


@dataclass
class Stored:
    """
    What became of events that were put into a store.

    Attributes:
        new, known: events that were added, and that were there.
        withdrawn: known ones that came again without consent, and might have been trained on until now.
        personal: personal data found in the new ones, by kind.
        clashes: ids of events that were left out, because another event, which says something else, has them.
    """

    new: int = 0
    known: int = 0
    withdrawn: int = 0
    personal: Counter[str] = field(default_factory=Counter)
    clashes: list[str] = field(default_factory=list)

    def __add__(self, other: Stored) -> Stored:
        return Stored(
            self.new + other.new,
            self.known + other.known,
            self.withdrawn + other.withdrawn,
            self.personal + other.personal,
            self.clashes + other.clashes,
        )


def put(store: Store, events: Iterable[tuple[Event, Row]], *, keep_raw: bool) -> Stored:
    """
    Add events to a store, with personal data replaced by placeholders unless it is to be kept.

    An event is known by its words as they are stored; by those as they were and as they would be as well while it is added,
    so that a file whose personal data was kept adds nothing when it comes again without, and the other way round. No hash
    of what was replaced is kept, from which a number could be guessed.
    """
    redactor, told = Redactor(), Stored()
    waiting: dict[str, list[str]] = {}

    def worded() -> Iterator[tuple[Event, Row, *tuple[Event, ...]]]:
        for event, row in events:
            plain, found = without_personal_data(event, redactor)
            if not found:
                yield event, row
                continue
            waiting[event.id] = [kind for kind, _ in found]
            yield (event, row, plain) if keep_raw else (plain, row, event)

    def taken_back(_: str) -> None:
        told.withdrawn += 1

    def added(event: Event) -> None:
        told.personal.update(waiting.get(event.id, ()))

    for new, known in store.add(
        worded(), on_new=added, on_taken_back=taken_back, on_clash=told.clashes.append
    ):
        told.new, told.known = told.new + new, told.known + known
        waiting.clear()
    return told


def without_personal_data(event: Event, redactor: Redactor) -> tuple[Event, list[tuple[str, str]]]:
    """The event with placeholders in all its texts, and what they stand for; the same object when nothing was found."""
    texts = {"prompt": event.prompt, "response": event.response, **event.judgement}
    told, found = redactor.row(texts)
    if not found:
        return event, found
    judgement = {name: told[name] for name in event.judgement}
    return replace(event, prompt=told["prompt"], response=told["response"], judgement=judgement), found
