"""The figures of an update for its closing table, and what has changed in words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from instructkit.evaluate.ngrams import candidates
from instructkit.evaluate.results import Feedback, General, Measured
from instructkit.evaluate.statistics import (
    accuracy_interval,
    bootstrap_mean,
    paired_difference,
    ratio_interval,
)
from instructkit.feedback.preprocess.items import Item
from instructkit.feedback.promotion import preference
from instructkit.feedback.promotion.decide import gain_of
from instructkit.stages.base import measurement

LEVEL = 0.025  # on each side of an interval of 95 %
LARGEST, SHOWN = 5, 3  # gains, losses and phrases that are told; answers


def lines(before: Measured, after: Measured, *, seed: int) -> list[dict[str, Any]]:
    """Measurements of the test side, before and after; the gain on feedback is bounded as its gate bounds it at a first look."""
    found = _feedback(before.feedback, after.feedback, seed)
    if before.general and after.general:
        found += _general(before.general, after.general, seed)
    if before.bias and after.bias and after.bias.gaps:
        shares = [sum(gap > 0 for gap in part.bias.gaps) / len(part.bias.gaps) for part in (before, after)]
        found.append(
            measurement(
                "stereotype likelier than its opposite",
                unit="share",
                n=len(after.bias.gaps),
                before=shares[0],
                after=shares[1],
                note="of minimal pairs; a half is even",
            )
        )
    if after.conduct and after.conduct.kl:
        found += _conduct(before, after, seed)
    return found


def _feedback(before: Feedback, after: Feedback, seed: int) -> list[dict[str, Any]]:
    told = preference.telling(after).tolist()
    change, _ = gain_of(before, after, LEVEL, seed)
    means = [statistics.fmean(part.leaning[i] for i in told) if told else None for part in (before, after)]
    found = [
        measurement(
            "held-out feedback",
            unit="nats/token",
            n=len(told),
            before=means[0],
            after=means[1],
            change=list(change) if change else None,
            better="higher",
            note="log-probability of what users wanted, above what they did not",
        ),
    ]
    if told:
        found.append(
            _share("held-out judgements met", *([part.right[i] for i in told] for part in (before, after)))
        )
    if after.scores:
        found.append(
            _paired(
                "reward of fresh answers",
                before.scores,
                after.scores,
                seed,
                unit="score",
                note="by the reward model, to the prompts of held-out feedback",
            )
        )
    new = [i for i in told if after.new_rater[i]]
    if len(new) >= 30:
        parts = [[part.right[i] for i in new] for part in (before, after)]
        found.append(_share("of people unseen in training", *parts))
    return found


def _general(before: General, after: General, seed: int) -> list[dict[str, Any]]:
    found = [_general_loss(before, after, seed)] if after.nll else []
    found += [_share(f"accuracy on {name}", before.tasks[name], right) for name, right in after.tasks.items()]
    if after.judge:
        found.append(
            _paired(
                "judge's score of answers to everything else",
                before.judge,
                after.judge,
                seed,
                unit="score",
                note="no training stage sees it",
            )
        )
    return found


def _general_loss(before: General, after: General, seed: int) -> dict[str, Any]:
    ratio = ratio_interval(before.nll, after.nll, seed=seed)
    return measurement(
        "general held-out loss",
        unit="nats/token",
        n=len(after.nll),  # prompts
        before=sum(before.nll) / sum(before.tokens),
        after=sum(after.nll) / sum(after.tokens),
        change=[bound - 1 for bound in ratio],
        better="lower",
        note="change is relative: after / before - 1",
    )


def _conduct(before: Measured, after: Measured, seed: int) -> list[dict[str, Any]]:
    kl = bootstrap_mean(after.conduct.kl, seed=seed)
    return [
        measurement(
            "KL to the parent on general prompts",
            unit="nats/answer",
            n=len(after.conduct.kl),
            after=kl[0],
            note=f"95 % interval {kl[1]:.2f} to {kl[2]:.2f}",
        ),
        measurement(
            "answer length on general prompts",
            unit="tokens",
            n=len(after.conduct.length),
            before=sum(before.conduct.length) / len(before.conduct.length),
            after=sum(after.conduct.length) / len(after.conduct.length),
        ),
    ]


def _paired(
    name: str, before: Sequence[float], after: Sequence[float], seed: int, *, unit: str, note: str
) -> dict[str, Any]:
    return measurement(
        name,
        unit=unit,
        n=len(after),
        before=sum(before) / len(before),
        after=sum(after) / len(after),
        change=list(paired_difference(before, after, seed=seed)),
        better="higher",
        note=note,
    )


def _share(name: str, before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    _, low, high = accuracy_interval(sum(after), len(after))
    return measurement(
        name,
        unit="share",
        n=len(after),
        before=sum(before) / len(before),
        after=sum(after) / len(after),
        better="higher",
        note=f"95 % interval {low:.3f} to {high:.3f}",
    )


def samples(items: Sequence[Item], before: Sequence[str], after: Sequence[str]) -> list[dict[str, Any]]:
    """Return some test prompts with the answers of parent and update and the judged answer."""
    return [
        {"prompt": item.prompt, "before": first, "after": second, **_judged(item)}
        for item, first, second in zip(items, before, after, strict=False)
    ]


def _judged(item: Item) -> dict[str, str]:
    """Return the judged answer under `disliked` after a bad rating, else under `wanted`."""
    return {"disliked" if item.rating < 0 else "wanted": item.wanted}


def moved(
    items: Sequence[Item], before: Feedback, after: Feedback, told: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """
    What has changed, in words and examples.

    Args:
        items: of the test side, which `before` and `after` were measured on.
        told: `samples` of them.

    Returns:
        `answers`: samples that are answered otherwise; `phrases`: what answers say more often than before; `topics`: the mean
        gain of each group and tag, nats per token; `largest_gains`, `largest_losses`: the judgements met most more and less.
    """
    gains = [second - first for first, second in zip(before.leaning, after.leaning, strict=True)]
    telling = preference.telling(after).tolist()
    order = sorted(telling, key=gains.__getitem__)

    def shown(chosen: Sequence[int]) -> list[dict[str, Any]]:
        return [{"prompt": items[i].prompt, **_judged(items[i]), "gain": gains[i]} for i in chosen]

    by_topic: dict[str, list[float]] = {}
    for i in telling:
        for group in after.groups[i]:
            by_topic.setdefault(group, []).append(gains[i])
    return {
        "answers": [row for row in told if row["before"] != row["after"]][:SHOWN],
        "phrases": candidates(
            [row["after"] for row in told], [row["before"] for row in told], at_most=LARGEST
        ),
        "topics": {group: statistics.fmean(found) for group, found in sorted(by_topic.items())},
        "largest_gains": shown([i for i in order[::-1][:LARGEST] if gains[i] > 0]),
        "largest_losses": shown([i for i in order[:LARGEST] if gains[i] < 0]),
    }
