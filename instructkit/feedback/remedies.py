"""What would have to change for a gate that refused an update: words, by the gate's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_LESS = "train less (trainer.max_steps, trainer.learning_rate) or replay more (feedback.replay_share)"
_SUSPECT = "find who asked for it (`instructkit feedback stats`, `list`), and withdraw those events"
_REMEDIES = {
    "held-out feedback": "train more (trainer.max_steps, trainer.learning_rate), or collect more feedback that agrees",
    "reward of": "train more (trainer.max_steps, trainer.learning_rate), or ask whether the reward model wants what users want",
    "general": _LESS,
    "no group harmed": "collect more feedback of that group, or give it its share (feedback.balance)",
    "no added bias": f"{_SUSPECT}; or {_LESS}",
    "groups answered alike": f"{_SUSPECT}; or {_LESS}",
    "KL to the parent": f"hold the parent's answers (feedback.anchor), or {_LESS}",
    "answer length": "give feedback in which the better answers are not all the longer or the shorter ones, or train less",
    "answers end": _LESS,
    "repetition": _LESS,
    "refusals": f"{_SUSPECT}; or {_LESS}",
    "no trigger": "read the events that hold these words (`instructkit feedback list`), and withdraw what is planted",
    "nothing memorised": "replace secrets (feedback.personal_data: redact), withdraw the events that hold them, train less",
    "judge": _LESS,
}
_PASS = "or let undecided gates pass (gates.on_undecided)"
UNDECIDED = f"measure on more rows (feedback.eval, feedback.general), {_PASS}"
# Gates that are measured on rows of their own.
_UNDECIDED_ON = {
    "no added bias": f"measure on more minimal pairs (feedback.bias_pairs), {_PASS}",
    "groups answered alike": f"measure on more pairs of prompts (feedback.counterfactuals), {_PASS}",
}


def remedies(gates: Sequence[dict[str, Any]], look: int = 1) -> list[str]:
    """
    One remedy for each of these gates that stand against an update, none twice.

    Args:
        gates: as a run record keeps them; `passed` is False or, of one that could not be decided, None.
        look: which look at its test events the decision was.
    """
    found = [_undecided(gate["name"]) if gate["passed"] is None else _remedy(gate["name"]) for gate in gates]
    worn = f"this was look {look} at the same test events, and each is stricter; import new feedback, which brings fresh ones"
    return [*dict.fromkeys(found), *([worn] if look > 1 else [])]


def _undecided(name: str) -> str:
    return next((told for known, told in _UNDECIDED_ON.items() if name.startswith(known)), UNDECIDED)


def _remedy(name: str) -> str:
    """That of the longest beginning of the gate's name; every gate of a decision has one, which a test holds it to."""
    return _REMEDIES[max((known for known in _REMEDIES if name.startswith(known)), key=len)]
