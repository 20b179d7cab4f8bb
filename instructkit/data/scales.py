"""
The scale of a file's ratings: thumbs as 1 and 0, -1 to 1, or another one, which is an error. Pure.

A rating of 1 out of 5 would be learned as the best of all.
"""

from __future__ import annotations

import math
from typing import Any

from instructkit.errors import InputError

FAR_OFF = 1e6  # no scale of ratings goes so far


class Scale:
    """
    Collect the ratings of one file: of all its rows, also of those with errors elsewhere.

    `feedback import` and recipes share this rule, so they read a file alike.
    """

    def __init__(self) -> None:
        self.rated = self.outside = 0
        self.low, self.high = math.inf, -math.inf
        self._thumbs = True

    def add(self, rating: Any, *, kept: bool = False) -> None:
        """
        Count a rating; ignore a value that is no number.

        Args:
            kept: whether a store exported the row; on its scale 0 is no signal.
        """
        if isinstance(rating, bool) or not isinstance(rating, int | float) or not abs(rating) < FAR_OFF:
            return
        self.rated += 1
        self._thumbs &= rating in (0, 1) and not kept
        self.outside += not -1 <= rating <= 1
        self.low, self.high = min(self.low, rating), max(self.high, rating)

    @property
    def may_be_thumbs(self) -> bool:
        """Return whether all ratings so far are 1 or 0."""
        return self._thumbs

    @property
    def is_another(self) -> bool:
        """Return whether most ratings are outside -1 to 1."""
        return 2 * self.outside > self.rated

    @property
    def is_thumbs(self) -> bool:
        """Return whether all ratings are 1 or 0 and some are 0: thumbs up and down."""
        return self.rated > 0 and self._thumbs and self.low == 0

    def error(self, file: str) -> InputError:
        """Return the error for ratings on another scale."""
        low = min(self.low, 1) if self.low >= 0 else self.low
        message = f"{file}: {self.rated} rows of users' feedback, rated {self.low:g} to {self.high:g}"
        return InputError(
            f"{message}; wanted are ratings from -1 to 1",
            hint=f"`instructkit feedback import {file} --scale {low:g}:{self.high:g}` reads them into a store with the scale "
            "they were given on, and a recipe names that: `feedback: {events: feedback.db}`",
        )
