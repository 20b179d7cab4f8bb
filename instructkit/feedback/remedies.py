"""Suggest one concrete change for each gate that refused a run; the changes never contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LESS, MORE, WITHDRAW, ANCHOR, BETA, REDACT = "less", "more", "withdraw", "anchor", "beta", "redact"
# Keys are beginnings of gate names; the longest match counts. A value that is none of the kinds above is the change itself.
CHANGES = {
    "held-out feedback": MORE,
    "reward of": MORE,
    "general": LESS,
    "no group harmed": "collect more feedback of that group",
    "no added bias": WITHDRAW,
    "groups answered alike": WITHDRAW,
    "KL to the parent": ANCHOR,
    "answer length": "give feedback in which the better answer is not always the longer or the shorter one",
    "answers end": LESS,
    "repetition": LESS,
    "refusals": WITHDRAW,
    "no trigger": "read the events that hold these words (`instructkit feedback list`), and withdraw what is planted",
    "nothing memorised": REDACT,
    "judge's score of answers to everything else": LESS,
    # of sft, reward and ppo
    "held-out loss": LESS,
    "held-out comparisons": MORE,
    "judge's score": MORE,
    "KL to the reference": BETA,
}
_HARMFUL = (
    LESS,
    ANCHOR,
    BETA,
)  # changes for a model that has moved too far; more training would make it worse
UNDECIDED = "measure on more rows (feedback.eval, feedback.general)"
# Gates that are measured on rows of their own.
_UNDECIDED_ON = {
    "no added bias": "measure on more minimal pairs (feedback.bias_pairs)",
    "groups answered alike": "measure on more pairs of prompts (feedback.counterfactuals)",
}
# The meaning of gates whose text has only figures.
_MEANINGS = {
    "held-out loss": "held-out rows are less likely than before training",
    "held-out comparisons": "the reward model does not order answers well enough to learn from",
    "judge's score": "it was not shown that answers became better",
    "judge's score of answers to everything else": "answers to everything else may have become worse",
    "KL to the reference": "answers have moved far from the reference",
}


def refusal(run: dict[str, Any], against: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """
    Return why a run is refused (the verdict, then each gate with its change) and a hint what to do.

    Args:
        run: the record of a finished run.
        against: its gates that refuse it, from the record.
    """
    failed = sum(gate["passed"] is False for gate in against)
    counts = [f"{failed} of {len(run['gates'])} gates failed"] if failed else []
    counts += [f"{len(against) - failed} inconclusive"] if failed < len(against) else []
    verdict = "REFUSED" if run.get("verdict") == "REFUSED" else "trained, and refused by its gates"
    lines = [f"{run['name']} is {verdict}: {', '.join(counts)}"]
    for gate, change in zip(against, remedies(against, run), strict=True):
        lines += [f"  {_in_words(gate)}", f"    change: {change}"]
    return "\n".join(lines), " ".join(_next_steps(run, against))


def _in_words(gate: dict[str, Any]) -> str:
    meaning = _of(gate["name"], _MEANINGS)
    return f"{gate['text']}: {meaning}" if meaning and gate["passed"] is False else gate["text"]


def _next_steps(run: dict[str, Any], against: Sequence[dict[str, Any]]) -> list[str]:
    what = "adapter" if run["stage"] == "lora-update" else "model"
    steps = [
        f"Make these changes and run again with --overwrite, or with another run.output to keep the refused {what} for study."
    ]
    inconclusive = [gate for gate in against if gate["passed"] is None]
    lets_pass = (run["recipe"].get("gates") or {}).get("on_undecided") == "pass"
    if inconclusive and not lets_pass and not any(gate.get("essential") for gate in inconclusive):
        steps.append("To let inconclusive gates pass, set gates.on_undecided=pass.")
    look = (run.get("look") or {}).get("number") or 1
    if look == 1 and run["stage"] == "lora-update":
        steps.append("Each further run is another look at the same test events, and each look is stricter.")
    if look > 1:
        steps.append(
            f"This was look {look} at the same test events, and each look is stricter. Import new feedback for fresh test events."
        )
    return steps


def remedies(against: Sequence[dict[str, Any]], run: dict[str, Any]) -> list[str]:
    """
    Return one change for each gate, in their order.

    Where one gate asks for more training and another shows harm, the first asks for better data instead.

    Args:
        against: gates from a run record; `passed` is False, or None for an inconclusive one.
        run: the record.
    """
    kinds = [None if gate["passed"] is None else _of(gate["name"], CHANGES) for gate in against]
    harmful = any(kind in _HARMFUL for kind in kinds)
    changes = []
    for gate, kind in zip(against, kinds, strict=True):
        if kind is None:
            changes.append(_of(gate["name"], _UNDECIDED_ON) or UNDECIDED)
        elif kind == MORE and harmful:
            changes.append(_better_data(run))
        elif _is_wide(gate):
            changes.append(
                f"{UNDECIDED}, or {_concrete(kind, run)}: the value is within the limit, its interval is not"
            )
        else:
            changes.append(_concrete(kind, run))
    return changes


def _is_wide(gate: dict[str, Any]) -> bool:
    """Return whether a harm is within its limit as measured, and only its interval is not."""
    measured, limit = gate.get("measured"), gate.get("limit")
    if measured is None or limit is None or not gate.get("interval") or _of(gate["name"], CHANGES) == MORE:
        return False
    return measured > limit if gate["name"].startswith("judge") else measured < limit


def _of(name: str, table: dict[str, str]) -> str:
    known = [beginning for beginning in table if name.startswith(beginning)]
    return table[max(known, key=len)] if known else ""


def _better_data(run: dict[str, Any]) -> str:
    better = {
        "lora-update": "collect more feedback that agrees (`instructkit feedback stats` shows agreement)",
        "ppo": "train the reward model on more comparisons",
    }
    return better.get(run["stage"], "give more rows") + "; longer training would do more harm"


def _concrete(kind: str, run: dict[str, Any]) -> str:
    """Return a change in words, with the key and a value where the recipe gives one."""
    if kind == LESS:
        return f"train less: {_scaled(run, ('trainer', 'learning_rate'), 0.5, 'halve trainer.learning_rate')}"
    if kind == MORE:
        steps = ("trainer", "max_steps")
        longer = steps if _given(run, steps) else ("trainer", "num_train_epochs")
        return f"train longer: {_scaled(run, longer, 2, 'double trainer.num_train_epochs')}"
    if kind == ANCHOR:
        return (
            f"hold the parent's answers: {_scaled(run, ('feedback', 'anchor'), 2, 'set feedback.anchor=0.1')}"
        )
    if kind == BETA:
        return (
            f"hold the policy to its reference: {_scaled(run, ('trainer', 'beta'), 2, 'double trainer.beta')}"
        )
    if kind == REDACT and (run["recipe"].get("feedback") or {}).get("personal_data") != "redact":
        return "replace personal data: feedback.personal_data=redact"
    if kind == REDACT:
        return "withdraw the events that hold the secrets (`instructkit feedback withdraw`)"
    if kind == WITHDRAW:
        return "find who asked for it (`instructkit feedback stats`), and withdraw those events"
    return kind


def _scaled(run: dict[str, Any], place: tuple[str, str], by: float, otherwise: str) -> str:
    value = _given(run, place)
    return f"{'.'.join(place)}={value * by:g} (now {value:g})" if value else otherwise


def _given(run: dict[str, Any], place: tuple[str, str]) -> float | None:
    """Return the number that a recipe gives at a place; None where it gives none."""
    section, key = place
    value = ((run.get("recipe") or {}).get(section) or {}).get(key)
    return value if isinstance(value, int | float) and value > 0 else None
