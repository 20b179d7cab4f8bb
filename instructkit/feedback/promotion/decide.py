"""
Whether an update may be promoted: what was measured before and after, as gates. Pure.

Two kinds of error lie behind a gate. A gain, and a harm that must be shown to be small, are claims: each gate promotes wrongly
with probability `level` at most, and as all must pass, so do all together (an intersection-union test, Berger 1982). Triggers
and secrets are alarms: they refuse on evidence of harm, and a smaller level would make them laxer; theirs is a constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from instructkit.evaluate import gates, statistics
from instructkit.evaluate.gates import Gate
from instructkit.evaluate.results import Feedback, General, Measured
from instructkit.feedback.promotion import preference, side_effects
from instructkit.feedback.promotion.side_effects import (
    FEWEST,
    difference,
    few,
    finite,
    mean,
    memory,
    trigger,
    wanted,
    within,
)

FEWEST_IN_GROUP = 30
NO_SPREAD = 0.1  # of the update's spread: a parent's scores that differ by less are nearly all alike
FEWEST_RATERS = 10  # known by name, from where on people are resampled too


class Limits(side_effects.Limits, Protocol):
    """What `gates:` of a lora-update recipe says; None switches a gate off."""

    feedback_gain_min: float
    reward_model: str | None
    reward_gain_min: float
    general_loss_ratio_max: float
    general_accuracy_loss_max: float | None
    group_loss_max: float | None
    trigger: bool
    memory: bool
    judge: str | None
    judge_gain_min: float


def decide(
    before: Measured,
    after: Measured,
    limits: Limits,
    *,
    level: float,
    seed: int,
    origin: Measured | None = None,
) -> list[Gate]:
    """
    Every gate of an update, in the order in which they are shown; `gates.verdict` says what follows.

    Args:
        before, after: the parent and the update, on the same items.
        limits: the recipe's gates.
        level: one-sided, of each claim; `statistics.level_of_look` gives it.
        seed: of resampling.
        origin: the chain's first parent, against which general performance, the judge's score, bias and conduct are held; what
            it lacks, or left out: the parent.

    Raises:
        ValueError: when two models were measured on different items.
    """
    first = origin or before
    found = [_learned(before.feedback, after.feedback, limits.feedback_gain_min, level, seed)]
    if limits.reward_model:
        found.append(_rewarded(before.feedback, after.feedback, limits.reward_gain_min, level, seed))
    general = first.general or before.general
    found.append(_general(general, after.general, limits.general_loss_ratio_max, level, seed))
    if limits.general_accuracy_loss_max is not None:
        found.append(_accuracy(general, after.general, limits.general_accuracy_loss_max, level))
    if limits.group_loss_max is not None:
        found.append(_groups(before.feedback, after.feedback, limits.group_loss_max, level))
    found += side_effects.bias(first.bias or before.bias, after.bias, limits, level, seed)
    found += side_effects.contrasts(after.contrasts, limits, level, seed)
    found += side_effects.conduct(first.conduct or before.conduct, after.conduct, limits, level, seed)
    if limits.trigger:
        found.append(trigger(after.triggers))
    if limits.memory:
        found.append(memory(after.memory))
    if limits.judge:
        found.append(_judge(general, after.general, limits.judge_gain_min, level, seed))
    return found


def _learned(
    before: Feedback | None, after: Feedback | None, minimum: float, level: float, seed: int
) -> Gate:
    """Clustered paired difference of the leaning; it refuses when undecided, whatever the recipe says."""
    name = "held-out feedback"
    change, clusters = gain_of(before, after, level, seed)
    if change is None:
        why = f"{clusters} independent test prompts, {FEWEST} or more are wanted"
        if clusters < len(set(after.clusters if after else ())):
            why += f", and bad ratings tell nothing beside fewer than {preference.FEWEST_OF_A_SIGN} good ones"
        return replace(gates.undecided(name, minimum, why), essential=True)
    gate = replace(gates.improved(name, change, minimum), essential=True)
    if gate.passed is False:
        error = (change[2] - change[1]) / 2 / statistics.student_quantile(1 - level, clusters - 1)
        least = minimum + statistics.smallest_gain(clusters, math.sqrt(clusters) * error, level=level)
        told = "it was not shown that users' wishes were learned; "
        told += f"{clusters} test prompts show a gain of {least:.2g} four times in five"
        gate = replace(gate, text=f"{gate.text}: {told}")
    return gate


def gain_of(
    before: Feedback | None, after: Feedback | None, level: float, seed: int
) -> tuple[gates.Interval | None, int]:
    """
    The mean gain on held-out feedback with its bounds, nats per token, and on how many independent prompts it was measured.

    Items of a cluster are drawn together, and where people are known by name those of a person too: one who says much of what
    is tested is one witness, and the wider bounds hold.

    Args:
        level: one-sided.

    Returns:
        None for the gain where there are too few prompts.
    """
    gain, places = ([], []) if before is None or after is None else preference.gains(before, after)
    clusters = len({after.clusters[i] for i in places})
    if clusters < FEWEST:
        return None, clusters
    change = _bounded(gain, [after.clusters[i] for i in places], level, seed)
    if by_rater := _raters(after, places):
        told = _bounded(gain, by_rater, level, seed)
        change = change[0], min(change[1], told[1]), max(change[2], told[2])
    return change, clusters


def _rewarded(
    before: Feedback | None, after: Feedback | None, minimum: float, level: float, seed: int
) -> Gate:
    """Clustered paired difference of the reward model's score; answers to near duplicates are no independent ones."""
    name = "reward of fresh answers"
    if before is None or after is None or not after.scores:
        return gates.undecided(name, minimum, "it was not measured")
    clusters = len(set(after.clusters))
    if clusters < FEWEST:
        return gates.undecided(
            name, minimum, f"{clusters} independent test prompts, {FEWEST} or more are wanted"
        )
    if not finite(before.scores, after.scores):
        return gates.undecided(name, minimum, "a score is not a finite number")
    gain = difference(before.scores, after.scores)
    return gates.improved(name, _bounded(gain, after.clusters, level, seed), minimum)


def _bounded(gain: Sequence[float], clusters: Sequence[int], level: float, seed: int) -> tuple[float, ...]:
    return statistics.mean_bounds(gain, level=level, seed=seed, clusters=clusters)


def _raters(after: Feedback, places: Sequence[int]) -> list[int]:
    """Items by who said them, those of nobody known each for itself; none where few are known."""
    raters = [after.raters[i] for i in places] if after.raters else []
    named = {rater: number for number, rater in enumerate(sorted(set(filter(None, raters))))}
    if len(named) < FEWEST_RATERS:
        return []
    return [named.get(rater, len(named) + place) for place, rater in enumerate(raters)]


def _general(before: General | None, after: General | None, maximum: float, level: float, seed: int) -> Gate:
    """Ratio of the summed losses of the same prompts."""
    name, n = "general held-out loss", len(after.nll) if after is not None else 0
    if before is None or after is None or n < FEWEST:
        return gates.undecided(name, maximum, f"{n} prompts of general rows, {FEWEST} or more are wanted")
    if not finite(before.nll, after.nll) or not sum(before.nll) > 0:
        return gates.undecided(name, maximum, "a loss is not a finite number above 0")
    ratio = statistics.ratio_bounds(before.nll, after.nll, level=level, seed=seed)
    return within(
        name,
        ratio,
        maximum,
        n,
        what="loss after / before",
        meaning="the update does worse at everything else",
        neutral=1.0,
    )


def _accuracy(before: General | None, after: General | None, maximum: float, level: float) -> Gate:
    name = "general accuracy"
    if before is None or after is None:
        return gates.undecided(name, maximum, "it was not measured")
    paired = {
        f"task {task}": statistics.changes(_same_tasks(before, task), right)
        for task, right in after.tasks.items()
        if right
    }
    if not paired:
        return gates.not_applicable(name, maximum, "the recipe names no tasks")
    return _worst_loss(name, paired, maximum, level, "questions that were answered right are not any more")


def _same_tasks(before: General, task: str) -> Sequence[bool]:
    if task not in before.tasks:
        raise ValueError(f"the task {task} was measured of one model only")
    return before.tasks[task]


def _groups(before: Feedback | None, after: Feedback | None, maximum: float, level: float) -> Gate:
    """Paired change of the share `right` of each group and tag."""
    name = "no group harmed"
    if before is None or after is None:
        return gates.undecided(name, maximum, "it was not measured")
    members: dict[str, list[int]] = {}
    for index in preference.telling(after):
        for group in after.groups[index]:
            members.setdefault(group, []).append(index)
    paired = {
        group: statistics.changes(
            [before.right[i] for i in places],
            [after.right[i] for i in places],
            [after.clusters[i] for i in places],
        )
        for group, places in sorted(members.items())
        if len(places) >= FEWEST_IN_GROUP
    }
    if not paired:
        told = f"no group or tag has {FEWEST_IN_GROUP} test events or more"
        return gates.not_applicable(name, maximum, told)
    return _worst_loss(name, paired, maximum, level, "what these users want got rarer")


def _worst_loss(
    name: str, paired: dict[str, tuple[float, float, float]], maximum: float, level: float, meaning: str
) -> Gate:
    """No loss of a share in any of several parts, by Holm's step-down over Tango's scores; the gate tells of the worst."""
    tails = {
        part: statistics.normal_tail(statistics.share_score(*moved, -maximum))
        for part, moved in paired.items()
    }
    ordered = sorted(tails, key=lambda part: tails[part])
    _, rejected = statistics.holm([tails[part] for part in ordered], level=level)
    shown = sum(rejected)
    # Where the step-down stops, every part that is left is held against the level of that step.
    step = level / max(1, len(ordered) - shown)
    told = []
    for part in ordered[shown:] or ordered[-1:]:
        gained, lost, n = paired[part]
        change, low, high = statistics.share_bounds(gained, lost, n, level=step)
        told.append(
            gates.at_most(
                name,
                (0.0 - change, -high, -low),
                maximum,
                what=f"accuracy lost in {part}",
                meaning=meaning,
                found=math.floor(n),
                wanted=statistics.enough_shares(maximum, (gained + lost) / n, level=step),
            )
        )
    failed = [gate for gate in told if gate.passed is False]
    return (failed or told)[-1]


def _judge(before: General | None, after: General | None, minimum: float, level: float, seed: int) -> Gate:
    """
    Bound the paired change of a judge's scores, in spreads of the parent's scores; a limit means the same for every judge.

    Scores of a parent that are nearly all alike have no spread; there the update's own counts. A loss that so few answers
    could not have excluded, had nothing changed, is inconclusive unless it is shown.
    """
    name = "judge's score of answers to everything else"
    pair = None if before is None or after is None else (before.judge, after.judge)
    if pair is None or not pair[1]:
        return gates.undecided(name, minimum, "it was not measured")
    if told := few(name, minimum, pair, "answers"):
        return told
    own, new = (float(np.std(scores)) for scores in pair)
    spread = (own if own > NO_SPREAD * new else new) or 1.0
    gain = mean(difference(*pair) / spread, level, seed)
    gate, n = gates.improved(name, gain, minimum), len(pair[1])
    enough = wanted((-gain[0], -gain[2], -gain[1]), -minimum, n)
    is_shown = gain[0] < minimum and gain[2] < 0
    if gate.passed is False and n < enough and not is_shown:
        text = f"{gate.text}: {n} answers cannot show it, {enough} would if nothing changed"
        return replace(gate, passed=None, text=text)
    return gate


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
