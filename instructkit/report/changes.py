"""What an update has changed, in words: answers before and after, new phrases, topics that moved, the largest losses."""

from __future__ import annotations

from typing import Any

INDENT = "  "
LOSSES = 3
LONGEST = 160  # characters of a text that are shown


def changes(run: dict[str, Any]) -> list[str]:
    """
    Lines for the terminal; none for a run that is no update.

    Args:
        run: a record whose `moved` is that of `stages.update_tables`.
    """
    moved = run.get("moved")
    if not moved:
        return []
    lines = ["what has changed, in words"]
    for answer in moved.get("answers", []):
        lines.append(f"{INDENT}{_asked(answer['prompt'])}")
        shown = [name for name in ("before", "after", "wanted", "disliked") if name in answer]
        width = max(map(len, shown))
        lines += [f"{INDENT * 2}{name:{width}}  {_short(answer[name])}" for name in shown]
    if moved.get("phrases"):
        lines.append(f"{INDENT}new phrases: " + ", ".join(f"`{phrase}`" for phrase in moved["phrases"]))
    if moved.get("topics"):
        told = ", ".join(f"{name} {gain:+.2f}" for name, gain in moved["topics"].items())
        lines.append(f"{INDENT}gain by group and tag (nats/token): {told}")
    losses = (f"{INDENT}among the largest losses: {_loss(loss)}" for loss in moved["largest_losses"])
    return lines + list(dict.fromkeys(losses))[:LOSSES]  # several people may have wanted the same


def _loss(loss: dict[str, Any]) -> str:
    """Return a line on a judgement met less than before: a wanted answer that became rarer, or a disliked one that did not."""
    answer = f"disliked: {_short(loss['disliked'])}" if "disliked" in loss else _short(loss["wanted"])
    return f"{loss['gain']:+.2f} on {_asked(loss['prompt'])} -> {answer}"


def _asked(prompt: str | list[dict[str, Any]]) -> str:
    """The last message of a prompt."""
    return _short(prompt if isinstance(prompt, str) else str(prompt[-1]["content"]))


def _short(text: str) -> str:
    told = " ".join(text.split())
    return told if len(told) <= LONGEST else f"{told[: LONGEST - 3]}..."
