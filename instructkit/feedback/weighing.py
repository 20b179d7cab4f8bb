"""The weight of each training judgement, step by step, and what each step did in figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructkit.feedback import weights as maths
from instructkit.feedback.intake import Columns
from instructkit.feedback.resampling import effective
from instructkit.feedback.settings import Settings
from instructkit.feedback.statistics import two_sided

MOST_SHARES = 100  # groups and tags whose shares are told, the heaviest first


@dataclass(frozen=True)
class Members:
    """
    Training judgements by what shares are counted of: one entry a judgement.

    Attributes:
        rater, cluster, group: numbers; -1 is nobody and no group.
        tag_owner, tag: pairs of a judgement and one of its tags.
        groups, tags: the numbers of their names.
    """

    rater: np.ndarray
    cluster: np.ndarray
    group: np.ndarray
    tag_owner: np.ndarray
    tag: np.ndarray
    groups: Mapping[str, int]
    tags: Mapping[str, int]

    @classmethod
    def of(
        cls,
        columns: Columns,
        clusters: np.ndarray,
        chosen: np.ndarray,
        names: tuple[Mapping[str, int], Mapping[str, int]],
    ) -> Members:
        """Of the chosen events; `clusters` has an entry for each of them."""
        place = np.full(len(columns.sign), -1, dtype=np.int64)
        place[chosen] = np.arange(len(chosen))
        here = place[columns.tag_event] >= 0
        _, compact = np.unique(clusters, return_inverse=True)
        return cls(
            *(columns.rater[chosen], compact, columns.group[chosen]),
            *(place[columns.tag_event[here]], columns.tag[here], *names),
        )

    def belong(self, name: str) -> np.ndarray:
        """Who belongs to `group:NAME` or `tag:NAME`."""
        kind, _, called = name.partition(":")
        if kind == "group":
            number = self.groups.get(called)
            return np.zeros(len(self.group), dtype=bool) if number is None else self.group == number
        found = np.zeros(len(self.group), dtype=bool)
        number = self.tags.get(called)
        if number is not None:
            found[self.tag_owner[self.tag == number]] = True
        return found

    def shares(self, weights: np.ndarray) -> dict[str, float]:
        """Share of the weight by group and by tag, which may overlap."""
        total = float(weights.sum()) or 1.0
        grouped = self.group >= 0
        by_group = np.bincount(self.group[grouped], weights[grouped], minlength=len(self.groups))
        by_tag = np.bincount(self.tag, weights[self.tag_owner], minlength=len(self.tags))
        found = {f"group:{name}": by_group[number] / total for name, number in self.groups.items()}
        found |= {f"tag:{name}": by_tag[number] / total for name, number in self.tags.items()}
        return {name: float(share) for name, share in found.items() if share > 0}


def weigh(
    columns: Columns, members: Members, chosen: np.ndarray, trust: np.ndarray, how: Settings
) -> tuple[np.ndarray, dict[str, Any]]:
    """
    Reliability, the size of ratings, recency, positions, balance and, last of all so that they hold, the caps.

    Args:
        chosen: the events that are weighed.
        trust: reliability of who judged, one a chosen event.

    Returns:
        One weight a chosen event, and the figures `position`, `recency`, `balance`, `shares`, `caps` and `weight`.
    """
    weights = trust * columns.size[chosen]
    report: dict[str, Any] = {"recency": None}
    if how.half_life_days is not None:
        times = columns.time[chosen]
        weights *= maths.recency(times, how.half_life_days)
        report["recency"] = {"half_life_days": how.half_life_days, "without_time": int(np.isnan(times).sum())}
    first = columns.first[chosen]
    if how.position_bias == "correct":
        weights *= maths.alike_positions(weights, first)
    before = members.shares(np.ones(len(weights)))
    report["balance"] = _balance(weights, members, how.balance)
    weights, report["caps"] = _caps(weights, members, how)
    report["position"] = _position(first, weights, how.position_bias == "correct")
    report["shares"] = _told(before, members.shares(weights))
    for name, told in report["balance"].items():
        told["after"] = float(weights[members.belong(name)].sum() / (weights.sum() or 1.0))
    report["weight"] = {"total": float(weights.sum()), "effective": effective(weights)}
    return weights, report


def _balance(weights: np.ndarray, members: Members, wanted: Mapping[str, float]) -> dict[str, Any]:
    """Bring the weights, in place, nearer to the targets; what was wanted, and what was there before."""
    inside = [members.belong(name) for name in wanted]
    total = weights.sum() or 1.0
    told = {
        name: {"wanted": share, "before": float(weights[who].sum() / total)}
        for (name, share), who in zip(wanted.items(), inside, strict=True)
    }
    if wanted:
        weights *= maths.balanced(weights, inside, list(wanted.values()))
    return told


def _caps(weights: np.ndarray, members: Members, how: Settings) -> tuple[np.ndarray, dict[str, Any]]:
    """The weights under both caps, or under those that can hold, with the reason where one cannot."""
    raters = len(np.unique(members.rater[members.rater >= 0]))
    clusters = len(np.unique(members.cluster))
    share = {
        "rater": maths.rater_share(raters, how.max_share_per_rater),
        "cluster": how.max_share_per_cluster,
    }
    off = {"rater": _rater_cap_is_off(weights, members, raters, share["rater"]), "cluster": None}
    if clusters < 1 / share["cluster"] - 1e-9:
        off["cluster"] = f"{clusters} clusters cannot all stay below {share['cluster']:g}"
    limits = tuple(1.0 if off[kind] else share[kind] for kind in ("rater", "cluster"))
    found = maths.capped_twice(weights, members.rater, members.cluster, limits)
    if found is None:  # a loud rater is the greater danger
        off["cluster"] = "it cannot hold together with the cap per rater"
        found = maths.capped_twice(weights, members.rater, members.cluster, (limits[0], 1.0))
    if found is None:
        off["rater"], found = "next to no weight would be left under it", weights
    told = {
        kind: {
            "limit": None if off[kind] else share[kind],
            "off": off[kind],
            "before": maths.largest_share(weights, owners),
            "after": maths.largest_share(found, owners),
        }
        for kind, owners in (("rater", members.rater), ("cluster", members.cluster))
    }
    told["rater"] |= {"raters": raters, "anonymous": _share_of(found, members.rater < 0)}
    return found, told


def _rater_cap_is_off(weights: np.ndarray, members: Members, raters: int, share: float) -> str | None:
    if raters == 0:
        return "no rater is known"
    if raters == 1:
        return "there is one rater"
    everyone_known = not weights[members.rater < 0].sum() > 0
    if everyone_known and raters < 1 / share - 1e-9:
        return f"{raters} raters cannot all stay below {share:g}"
    return None


def _position(first: np.ndarray, weights: np.ndarray, corrected: bool) -> dict[str, Any]:
    choices, chosen = int((first != 0).sum()), int((first > 0).sum())
    return {
        "choices": choices,
        "first_chosen": chosen / choices if choices else None,
        "probability": two_sided(chosen, choices) if choices else None,
        "corrected": corrected,
        "first_weight": _share_of(weights[first != 0], first[first != 0] > 0) if choices else None,
    }


def _share_of(weights: np.ndarray, who: np.ndarray) -> float:
    return float(weights[who].sum() / (weights.sum() or 1.0))


def _told(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, dict[str, float]]:
    heaviest = sorted(before, key=lambda name: (-before[name], name))[:MOST_SHARES]
    return {name: {"before": before[name], "after": after.get(name, 0.0)} for name in heaviest}
