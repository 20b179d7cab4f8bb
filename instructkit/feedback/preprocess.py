"""
From feedback rows to training rows: which objective they allow, and what becomes of each of them.

A row judges one answer: a rating in [-1, 1], a better answer, or a preference between it and another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from instructkit.errors import InputError

OBJECTIVES = ("sft", "dpo", "kto")


@dataclass(frozen=True)
class Judged:
    """One event as a measurement reads it: what was wanted after a prompt, what was not, and how much (-1 to 1)."""

    prompt: Any
    wanted: str
    unwanted: str | None
    weight: float = 1.0


def kind_of(row: dict[str, Any]) -> str:
    """`edit`, `preference` or `rating`, by the field that the row has."""
    if row.get("better") is not None:
        return "edit"
    return "preference" if row.get("preferred") is not None else "rating"


def prompt_of(row: dict[str, Any]) -> Any:
    """The prompt of an event: given as `prompt`, or as the `messages` before the answer."""
    return row["prompt"] if row.get("prompt") is not None else row["messages"]


def judged(rows: list[dict[str, Any]]) -> list[Judged]:
    """Every event that says something: ratings of 0 and ties are left out, they ask for nothing."""
    events = []
    for row in rows:
        prompt, kind = prompt_of(row), kind_of(row)
        if kind == "edit":
            events.append(Judged(prompt, row["better"], row["response"]))
        elif row.get("preferred") == "tie":
            continue
        elif kind == "preference":
            pair = (row["response"], row["other"])
            wanted, unwanted = pair if row["preferred"] == "response" else pair[::-1]
            events.append(Judged(prompt, wanted, unwanted))
        elif row["rating"]:
            events.append(Judged(prompt, row["response"], None, float(row["rating"])))
    return events


def objective(rows: list[dict[str, Any]], wanted: str = "auto") -> tuple[str, str]:
    """
    Choose SFT, DPO or KTO by what the rows hold.

    Preferences make pairs, so DPO; ratings of both signs make KTO; only edits or only good ratings make SFT. Edits
    among preferences are pairs too. Where several are possible, the one with the most rows is taken.

    Returns:
        The objective and the reason, in words.

    Raises:
        InputError: when no row could be learned from.
    """
    counts = {kind: sum(kind_of(row) == kind for row in rows) for kind in ("edit", "preference", "rating")}
    good = sum(kind_of(row) == "rating" and row["rating"] > 0 for row in rows)
    bad = sum(kind_of(row) == "rating" and row["rating"] < 0 for row in rows)
    told = ", ".join(f"{n} {kind}s" for kind, n in counts.items() if n) or "no events"
    if wanted != "auto":
        return wanted, f"set in the recipe; the events are {told}"
    if good and bad and good + bad > counts["preference"] + counts["edit"]:
        return "kto", f"{good} good and {bad} bad ratings, more than anything else ({told})"
    if counts["preference"]:
        return "dpo", f"pairs from preferences and edits ({told})"
    if counts["edit"] or good:
        return "sft", f"better answers and good ratings are demonstrations ({told})"
    raise InputError(
        f"the feedback holds nothing to learn from: {told}",
        hint="add edits, preferences, good ratings, or ratings of both signs",
    )


def training_rows(rows: list[dict[str, Any]], chosen: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """
    Rows in the form of TRL's trainer of an objective, and what became of every event; the counts add up to all.

    Args:
        rows: feedback rows, checked.
        chosen: one of `OBJECTIVES`.
    """
    made: list[dict[str, Any]] = []
    outcomes = {"used": 0, f"no use to {chosen}": 0}
    for row in rows:
        new = _MAKERS[chosen](row)
        made.extend(new)
        outcomes["used" if new else f"no use to {chosen}"] += 1
    return made, {what: n for what, n in outcomes.items() if n}


def _sft(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"prompt": event.prompt, "completion": _answer(event.prompt, event.wanted)}
        for event in judged([row])
        if event.weight > 0
    ]


def _dpo(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": event.prompt,
            "chosen": _answer(event.prompt, event.wanted),
            "rejected": _answer(event.prompt, event.unwanted),
        }
        for event in judged([row])
        if event.unwanted is not None
    ]


def _kto(row: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for event in judged([row]):
        good = event.unwanted is not None or event.weight > 0
        rows.append(
            {"prompt": event.prompt, "completion": _answer(event.prompt, event.wanted), "label": good}
        )
        if event.unwanted is not None:
            answer = _answer(event.prompt, event.unwanted)
            rows.append({"prompt": event.prompt, "completion": answer, "label": False})
    return rows


_MAKERS: dict[str, Callable[[dict[str, Any]], list[dict[str, Any]]]] = {"sft": _sft, "dpo": _dpo, "kto": _kto}


def _answer(prompt: Any, text: str) -> Any:
    """An answer in the form of its prompt: text to text, a message to messages."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
