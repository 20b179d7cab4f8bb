"""
PPO-ptx: the loss on text that the policy should not forget, in every optimizer step beside PPO's own.

Source: Ouyang et al. 2022 (2203.02155), section 3.5 and appendix C.4 (8 rows an episode, coefficient 27.8). The coefficient
belongs to the reductions of one code base; here both losses are means over the tokens of the optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from trl.trainer.utils import pad

IGNORED = -100

Row = dict[str, list[int]]


class TextRows:
    """
    Rows in an order that depends on the seed and the count of rows drawn, and on nothing else, so resuming is exact.

    Args:
        rows: `input_ids` and `labels` each, `IGNORED` where nothing is learned.
        seed: of the order.
        pad_id: token that fills the gaps.
    """

    def __init__(self, rows: Sequence[Row], *, seed: int, pad_id: int) -> None:
        self.rows, self.seed, self.pad_id = rows, seed, pad_id

    def draw(self, start: int, count: int) -> list[Row]:
        """`count` rows from place `start` of the endless order; every row comes once in each pass."""
        found: list[Row] = []
        for place in range(start, start + count):
            round_, index = divmod(place, len(self.rows))
            found.append(self.rows[self._order(round_)[index]])
        return found

    def _order(self, round_: int) -> list[int]:
        if getattr(self, "_last", (None,))[0] != round_:
            generator = torch.Generator().manual_seed(self.seed + 7919 * round_)
            self._last = (round_, torch.randperm(len(self.rows), generator=generator).tolist())
        return self._last[1]

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Rows as the tensors of a reading: the first token as the prompt, the rest as the response."""
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        labels = [torch.tensor(row["labels"][1:]) for row in rows]
        return {
            "prompt_ids": torch.stack([row[:1] for row in ids]),
            "prompt_mask": torch.ones(len(ids), 1, dtype=torch.long),
            "completion_ids": pad([row[1:] for row in ids], padding_value=self.pad_id, padding_side="right"),
            "attended": pad(
                [torch.ones(len(row) - 1).long() for row in ids], padding_value=0, padding_side="right"
            ),
            "response_mask": pad(labels, padding_value=IGNORED, padding_side="right") != IGNORED,
        }


def learned_tokens(rows: Sequence[Row]) -> int:
    """How many tokens of these rows are learned: every label but the first and the ignored."""
    return sum(label != IGNORED for row in rows for label in row["labels"][1:])
