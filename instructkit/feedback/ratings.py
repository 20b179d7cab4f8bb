"""How a file's ratings are read: thumbs, words for them, or numbers of its scale, as one number from -1 to 1. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instructkit.data.thumbs import BAD, GOOD, RATINGS, THUMBS, plain_name

__all__ = ["RATINGS", "Reading", "rating_of"]


@dataclass(frozen=True)
class Reading:
    """
    How rows are read.

    Attributes:
        scale: the lowest and the highest rating of a file, where they are not -1 and 1.
        field: the one field, question or score that counts as the rating; all that look like one where it is None.
        consent: of rows that do not say.
        columns: other names of columns, as `{column: field}`.
    """

    scale: tuple[float, float] | None = None
    field: str | None = None
    consent: bool = True
    columns: Mapping[str, str] | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The scale, ours where none was said."""
        return self.scale or (-1.0, 1.0)


def rating_of(name: str, value: Any, how: Reading) -> float:
    """
    A rating from -1 to 1: of thumbs, of words for them, or of a number on its scale.

    Raises:
        ValueError: when it is none of these.
    """
    if isinstance(value, bool):
        return 1.0 if value else -1.0
    if isinstance(value, str) and value.strip().lower() in (*GOOD, *BAD):
        return 1.0 if value.strip().lower() in GOOD else -1.0
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"`{name}` is {str(value)[:60]!r}; wanted a number, true or false, or up or down"
        ) from None
    if how.scale is None and plain_name(name) in THUMBS and number == 0:
        return -1.0
    low, high = how.ends
    if not low <= number <= high:
        hint = "" if how.scale else "; say the scale of the file, as --scale 1:5"
        raise ValueError(f"`{name}` is {value!r}; wanted a number from {low:g} to {high:g}{hint}")
    return 2 * (number - low) / (high - low) - 1
