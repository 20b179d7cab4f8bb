"""Progress of loops that take no training step: a loop counts, and whoever runs it may listen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextvars import ContextVar
from typing import TypeVar

Listener = Callable[[int, int], None]
Part = TypeVar("Part", bound=Sized)
Item = TypeVar("Item")
LISTENER: ContextVar[Listener | None] = ContextVar(
    "listener", default=None
)  # of the outermost loop; None inside one


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within this context the outermost loop of `counted` calls `listener(done, total)` after each part."""
    token = LISTENER.set(listener)
    try:
        yield
    finally:
        LISTENER.reset(token)


def counted(parts: Iterable[Part], total: int) -> Iterator[Part]:
    """
    Yield each part, and report how many items are done after it.

    Loops inside this one report nothing: the outermost count is the one that a person wants.

    Args:
        parts: batches; `len` of each is how many items it holds.
        total: items of all parts.
    """
    listener, done = LISTENER.get(), 0
    LISTENER.set(None)
    try:
        for part in parts:
            yield part
            done += len(part)
            if listener is not None:
                listener(done, total)
    finally:
        LISTENER.set(listener)


def each(items: Sequence[Item]) -> Iterator[Item]:
    """Yield each item, counted."""
    for (item,) in counted(((item,) for item in items), len(items)):
        yield item
