"""A reporter that keeps the notes of a stage and shows nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any


class Listener:
    """Keeps the notes; everything else passes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.dropped: dict[str, int] = {}  # rows that the trainer leaves out, by reason

    def note(self, text: str) -> None:
        """Keep a line."""
        self.notes.append(text)

    def phase(self, title: str, *, announced: bool = False) -> AbstractContextManager[None]:
        """Nothing is shown."""
        return nullcontext()

    def stage_started(self, title: str, total_steps: int | None) -> None:
        """Nothing is shown."""

    def step(self, step: int, total: int, figures: dict[str, float]) -> None:
        """Nothing is shown."""

    def finished(self) -> None:
        """Nothing is shown."""

    def table(self, run: dict[str, Any]) -> None:
        """There is no table."""
