"""What is wrong with an update before it begins: a worn test set, and an adapter that holds what was withdrawn."""

from __future__ import annotations

from typing import Any

from instructkit.evaluate.inference import budget_warning
from instructkit.feedback.store import Store


def warnings(inputs: Any) -> list[str]:
    """
    In words, for a plan and for the beginning of a run; empty where nothing is to be said.

    Args:
        inputs: the `UpdateInputs`.
    """
    told = [budget_warning(inputs.power()["look"] - 1), _withdrawn(inputs), _elsewhere(inputs)]
    return [f"warning: {text}" for text in told if text]


def _elsewhere(inputs: Any) -> str | None:
    """That test events were looked at where this chain does not see it."""
    if inputs.elsewhere is None:
        return None
    return (
        f"updates from this store were made below {inputs.elsewhere} before; how often they looked at its test events is counted "
        "there and not here: let run.output lie below it too"
    )


def _withdrawn(inputs: Any) -> str | None:
    """That the adapter that is gone on from has learned from events that are withdrawn since; a file has none."""
    if inputs.current is None or inputs.newest is None:
        return None
    number = int(inputs.current.name)
    with Store.open(inputs.data["events"].source) as store:
        count = inputs.chain.count_trained(set(store.withdrawn_ids())).get(number, 0)
    if not count:
        return None
    return (
        f"update {number}, which this one goes on from, has learned from {count} events that are withdrawn since, and so will "
        "what it becomes; feedback.mode: new begins without them"
    )
