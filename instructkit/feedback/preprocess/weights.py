"""
How much each judgement counts: pure maths on arrays, one entry a judgement in every array.

Who, which cluster and which item are whole numbers from 0; -1 is nobody. Figures marked (j) are judgement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructkit.feedback.preprocess.items import Settings
from instructkit.feedback.preprocess.objectives import effective
from instructkit.feedback.preprocess.read import Columns
from instructkit.feedback.store.summary import two_sided

PRIOR_JUDGEMENTS = 5.0  # (j) how many judgements at the mean agreement each rater is given beforehand
RELIABILITY_MIN, RELIABILITY_MAX = 0.2, 1.0  # (j)
BALANCE_MOST = 5.0  # (j) by which reweighting to target shares raises or lowers a judgement at most
RATER_SHARE, RATER_SHARES = 0.05, 2.0  # (j) max(0.05, 2 / raters)
_TOLERANCE = 1e-9
_CAP_ROUNDS, _BALANCE_ROUNDS = 1000, 500
_LEAST_LEFT = 1e-3  # of the weight: two caps that leave less than this cannot hold together


def capped(weights: np.ndarray, owners: np.ndarray, share: float) -> np.ndarray | None:
    """
    Weights of which no owner holds more than a share of the total that is left.

    With the `k` heaviest owners at the cap and the rest `R` untouched, the total is `T = R + k s T`, so `T = R / (1 - k s)`;
    `k` is the smallest number for which the next owner is at or below `s T`. There water-filling ends; this is it at once.

    Args:
        weights: none below 0.
        owners: whose each is; -1 is nobody's and is not capped.
        share: `s`, above 0.

    Returns:
        New weights, none above the old; an owner's are lowered by one factor. None when no weights can satisfy it but zeros.
    """
    owned = owners >= 0
    if share >= 1 or not owned.any():
        return weights.copy()
    totals = np.bincount(owners[owned], weights=weights[owned])
    heaviest = np.sort(totals)[::-1]
    # Summed from the light end: what is left over by the heavy ones must not drown in their rounding.
    rest = np.append(np.cumsum(heaviest[::-1])[::-1], 0.0) + weights[~owned].sum()
    count = min(len(heaviest), int(np.ceil(1 / share - _TOLERANCE)) - 1)
    limits = share * rest[: count + 1] / (1 - share * np.arange(count + 1))
    held = (np.append(heaviest, 0.0)[: count + 1] <= limits * (1 + _TOLERANCE)) & (rest[: count + 1] > 0)
    if not held.any():
        return None
    limit = limits[np.argmax(held)]
    factors = limit / np.maximum(totals, limit)
    return np.where(owned, weights * factors[np.where(owned, owners, 0)], weights)


def capped_twice(
    weights: np.ndarray,
    raters: np.ndarray,
    clusters: np.ndarray,
    shares: tuple[float, float],
) -> np.ndarray | None:
    """
    Weights under which no rater and no cluster holds more than its share: one cap after the other until both hold.

    Args:
        shares: of a rater, and of a cluster.

    Returns:
        New weights; None when next to nothing would be left, as where the others of a loud rater all speak of one prompt.
    """
    left, least = weights, _LEAST_LEFT * weights.sum()
    for _ in range(_CAP_ROUNDS):
        for owners, share in ((raters, shares[0]), (clusters, shares[1])):
            found = capped(left, owners, share)
            if found is None or found.sum() < least:
                return None
            left = found
        if largest_share(left, raters) <= shares[0] * (1 + _TOLERANCE):
            return left
    return None


def largest_share(weights: np.ndarray, owners: np.ndarray) -> float:
    """Of all weight, what the owner with the most holds; nobody's weight counts in the total alone."""
    owned = owners >= 0
    total = weights.sum()
    if not owned.any() or total <= 0:
        return 0.0
    return float(np.bincount(owners[owned], weights=weights[owned]).max() / total)


def agreements(signs: np.ndarray, items: np.ndarray, raters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Of each rater, agreement with the others on shared items, leave-one-out.

    A judgement of an item that `m` others judged scores the share of those `m` who judged it alike; a rater's agreement is the
    mean score of their judgements of shared items. Nobody's judgements (-1) count for nothing here.

    Args:
        signs: 1 or -1.
        items: what was judged; each rater judges an item once.

    Returns:
        By rater: the sum of the scores, and the number of judgements that have one.
    """
    known = raters >= 0
    signs, raters = signs[known], raters[known]
    if not len(raters):
        return np.zeros(0), np.zeros(0)
    _, items = np.unique(items[known], return_inverse=True)
    alike = np.where(
        signs > 0, np.bincount(items, weights=signs > 0)[items], np.bincount(items, weights=signs < 0)[items]
    )
    others = np.bincount(items)[items] - 1
    scores = np.divide(alike - 1, others, out=np.zeros(len(others)), where=others > 0)
    return np.bincount(raters, weights=scores), np.bincount(raters, weights=others > 0)


def reliability(scores: np.ndarray, counts: np.ndarray, raters: np.ndarray) -> np.ndarray:
    """
    Weight by rater: `clip(2 a - 1, 0.2, 1)` with `a = (sum of scores + 5 m) / (judgements + 5)`.

    `m` is the mean score of all judgements, `2 a - 1` the agreement beyond chance where both verdicts are as likely. Five
    judgements at the mean (j) shrink the agreement of those who share little; who shares nothing, or is nobody, has the mean.

    Args:
        scores, counts: as `agreements` returns them, by rater.
        raters: of each judgement whose weight is wanted.

    Returns:
        One weight a judgement; all 1 when no item is shared.
    """
    if counts.sum() == 0:
        return np.ones(len(raters))
    mean = scores.sum() / counts.sum()
    shrunk = (scores + PRIOR_JUDGEMENTS * mean) / (counts + PRIOR_JUDGEMENTS)
    by_rater = np.clip(2 * np.append(shrunk, mean) - 1, RELIABILITY_MIN, RELIABILITY_MAX)
    return by_rater[np.where((raters >= 0) & (raters < len(scores)), raters, len(scores))]


def recency(times: np.ndarray, half_life_days: float) -> np.ndarray:
    """
    `2^(-age / half-life)`, the age being counted from the newest judgement; one without a time weighs as the mean of the others.

    Args:
        times: seconds since 1970, or NaN.
        half_life_days: days after which a judgement counts half.
    """
    known = np.isfinite(times)
    found = np.ones(len(times))
    if known.any():
        found[known] = np.exp2(-(times[known].max() - times[known]) / (half_life_days * 86400))
        found[~known] = found[known].mean()
    return found


def alike_positions(weights: np.ndarray, first: np.ndarray) -> np.ndarray:
    """
    Factors under which choices of the answer shown first weigh as much in all as choices of the second.

    The heavier side is lowered and nothing is raised, since a position that is seldom chosen would otherwise rest on a few loud
    choices. Without choices on both sides nothing can be told of the bias, and all factors are 1.

    Args:
        first: 1 where the answer shown first was chosen, -1 where the second was, 0 where it is not known.
    """
    one, two = weights[first > 0].sum(), weights[first < 0].sum()
    if one <= 0 or two <= 0:
        return np.ones(len(weights))
    return np.where(first > 0, min(1.0, two / one), np.where(first < 0, min(1.0, one / two), 1.0))


def balanced(weights: np.ndarray, members: Sequence[np.ndarray], targets: Sequence[float]) -> np.ndarray:
    """
    Factors that bring named shares of the weight to their targets: raking (Deming and Stephan 1940), each from 1/5 to 5 (j).

    Args:
        members: for each target, who belongs to it (truth values); they may overlap.
        targets: wanted shares of the weight, from 0 to 1. One that nobody or everybody belongs to is passed over.
    """
    factors = np.ones(len(weights))
    for _ in range(_BALANCE_ROUNDS):
        before = factors.copy()
        for inside, target in zip(members, targets, strict=True):
            now = weights * factors
            part, total = now[inside].sum(), now.sum()
            if 0 < part < total * (1 - _TOLERANCE):
                factors *= np.where(inside, target * total / part, (1 - target) * total / (total - part))
                factors = np.clip(factors, 1 / BALANCE_MOST, BALANCE_MOST)
        if np.abs(factors - before).max(initial=0.0) < _TOLERANCE:
            break
    return factors


def soft_labels(signs: np.ndarray, items: np.ndarray, trust: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    What the judges of each item say together: `agreement = max(T+, T-) / (T+ + T-)`, `T` being the trust in those of either sign.

    Args:
        signs: 1 or -1.
        items: what was judged, from 0 without gaps.
        trust: reliability of who judged it, above 0.

    Returns:
        By item: its sign (that of its first judgement where both sides weigh the same), and its agreement from 0.5 to 1.
    """
    n = int(items.max()) + 1 if len(items) else 0
    good = np.bincount(items, weights=np.where(signs > 0, trust, 0.0), minlength=n)
    bad = np.bincount(items, weights=np.where(signs < 0, trust, 0.0), minlength=n)
    first = np.zeros(n, dtype=np.int64)
    first[items[::-1]] = signs[::-1]
    level = np.isclose(good, bad, rtol=1e-12, atol=0)
    sign = np.where(level, first, np.where(good > bad, 1, -1))
    return sign, np.where(level, 0.5, np.maximum(good, bad) / (good + bad))


def rater_share(raters: int, wanted: float | None) -> float:
    """The most that one rater may hold: what the recipe says, else `max(0.05, 2 / raters)` (j)."""
    return wanted if wanted is not None else max(RATER_SHARE, RATER_SHARES / max(raters, 1))


STANDS, DUPLICATE, OVERRULED = 0, 1, 2


def last_words(who: np.ndarray, answers: np.ndarray, said: np.ndarray, times: np.ndarray) -> np.ndarray:
    """
    Of what one rater said about one answer the last stands; earlier ones are its duplicates where they say the same.

    Nobody (-1) is no rater who could overrule: of anonymous judgements only those that say the same are merged, which
    also keeps a form that is sent a hundred times from counting a hundred times.

    Args:
        who: rater, one an event; -1 is nobody.
        answers: what was judged.
        said: what was said about it.
        times: seconds, or NaN. The latest is the last where all have a time, else the one that stands last in order.

    Returns:
        `STANDS`, `DUPLICATE` or `OVERRULED`, one an event.
    """
    n = len(who)
    if not n:
        return np.zeros(0, dtype=np.int8)
    apart = np.where(who < 0, said, np.zeros_like(said))
    groups = _numbered(who, answers, apart)
    untimed = np.bincount(groups, weights=np.isnan(times)) > 0
    order = np.lexsort((np.arange(n), np.where(untimed[groups], 0.0, times), groups))
    last = np.empty(int(groups.max()) + 1, dtype=np.int64)
    ends = np.flatnonzero(np.append(groups[order][1:] != groups[order][:-1], True))
    last[groups[order][ends]] = order[ends]
    found = np.where(said == said[last[groups]], DUPLICATE, OVERRULED).astype(np.int8)
    found[last] = STANDS
    return found


def _numbered(*keys: np.ndarray) -> np.ndarray:
    """Groups of equal keys, numbered from 0."""
    order = np.lexsort(keys)
    new = np.zeros(len(order), dtype=bool)
    for key in keys:
        new[1:] |= key[order][1:] != key[order][:-1]
    groups = np.empty(len(order), dtype=np.int64)
    groups[order] = np.cumsum(new)
    return groups


def contested(items: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """
    Items that were judged both ways.

    Args:
        items: what was judged, from 0 without gaps.
        signs: 1 or -1.

    Returns:
        One truth value an item.
    """
    n = int(items.max()) + 1 if len(items) else 0
    good = np.bincount(items, weights=signs > 0, minlength=n)
    return (good > 0) & (np.bincount(items, minlength=n) > good)


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
        weights *= recency(times, how.half_life_days)
        report["recency"] = {"half_life_days": how.half_life_days, "without_time": int(np.isnan(times).sum())}
    first = columns.first[chosen]
    if how.position_bias == "correct":
        weights *= alike_positions(weights, first)
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
        weights *= balanced(weights, inside, list(wanted.values()))
    return told


def _caps(weights: np.ndarray, members: Members, how: Settings) -> tuple[np.ndarray, dict[str, Any]]:
    """The weights under both caps, or under those that can hold, with the reason where one cannot."""
    raters = len(np.unique(members.rater[members.rater >= 0]))
    clusters = len(np.unique(members.cluster))
    share = {
        "rater": rater_share(raters, how.max_share_per_rater),
        "cluster": how.max_share_per_cluster,
    }
    off = {"rater": _rater_cap_is_off(weights, members, raters, share["rater"]), "cluster": None}
    if clusters < 1 / share["cluster"] - 1e-9:
        off["cluster"] = f"{clusters} clusters cannot all stay below {share['cluster']:g}"
    limits = tuple(1.0 if off[kind] else share[kind] for kind in ("rater", "cluster"))
    found = capped_twice(weights, members.rater, members.cluster, limits)
    if found is None:  # a loud rater is the greater danger
        off["cluster"] = "it cannot hold together with the cap per rater"
        found = capped_twice(weights, members.rater, members.cluster, (limits[0], 1.0))
    if found is None:
        off["rater"], found = "next to no weight would be left under it", weights
    told = {
        kind: {
            "limit": None if off[kind] else share[kind],
            "off": off[kind],
            "before": largest_share(weights, owners),
            "after": largest_share(found, owners),
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


@dataclass(frozen=True)
class Labels:
    """
    What the standing events of each item say together; one entry a standing event.

    Attributes:
        agreement: of the item.
        stands: whether the event is an item: on its own, or for all that judged the answer both ways.
        of: the standing event that it is part of.
        disputed: whether the item is set aside.
    """

    agreement: np.ndarray
    stands: np.ndarray
    of: np.ndarray
    disputed: np.ndarray


def trusted(
    columns: Columns, train: np.ndarray, standing: np.ndarray, *, weighted: bool
) -> tuple[np.ndarray, dict[str, Any] | None]:
    """
    Reliability of who judged, one a standing event, and what the report tells of it.

    Args:
        train: the events that it is learned from: training events alone, so that nothing of the others reaches a weight.
        standing: the events that are judged with it.
        weighted: False trusts everyone alike.
    """
    if not weighted:
        return np.ones(len(standing)), None
    scores, counts = agreements(columns.sign[train], columns.item[train], columns.rater[train])
    trust = reliability(scores, counts, columns.rater[standing])
    shared = float(counts.sum())
    return trust, {
        "raters": int((counts > 0).sum()),
        "judgements": int(shared),
        "mean": float(scores.sum() / shared) if shared else None,
        "prior": PRIOR_JUDGEMENTS,
        "lowest": float(trust.min()) if len(trust) else None,
        "highest": float(trust.max()) if len(trust) else None,
    }


def labels_of(columns: Columns, standing: np.ndarray, trust: np.ndarray, least: float) -> Labels:
    """
    Soft labels of answers that were judged both ways; a faint rating is as little against a clear one as it says.

    Args:
        standing: the events that are judged.
        trust: reliability of who judged, one a standing event.
        least: agreement below which an answer is set aside.
    """
    _, items = np.unique(columns.item[standing], return_inverse=True)
    signs = columns.sign[standing]
    both = contested(items, signs)
    sign, agreement = soft_labels(signs, items, trust * columns.size[standing])
    agreement = np.where(both, agreement, 1.0)
    # The first of those who are right stands for all: later events do not change which one it is, only the weights may.
    right = np.flatnonzero(signs == sign[items])
    stands_for = np.zeros(len(agreement), dtype=np.int64)
    stands_for[items[right][::-1]] = right[::-1]
    own = np.arange(len(standing))
    of = np.where(both[items], stands_for[items], own)
    return Labels(agreement[items], of == own, of, both[items] & (agreement[items] < least - 1e-12))


def conflicts(labels: Labels) -> dict[str, Any]:
    """What the report tells of answers that were judged both ways."""
    answers = labels.stands & (labels.agreement < 1)
    kept = answers & ~labels.disputed
    return {
        "answers": int(answers.sum()),
        "set_aside": int((answers & labels.disputed).sum()),
        "agreement": float(labels.agreement[kept].mean()) if kept.any() else None,
    }


def judges_of(
    columns: Columns, standing: np.ndarray, labels: Labels, raters: Sequence[str]
) -> dict[int, tuple[str, ...]]:
    """Who judged each answer that was judged both ways, by the event that stands for it."""
    found: dict[int, list[str]] = {}
    for place in np.flatnonzero(labels.agreement < 1):
        judges = found.setdefault(int(standing[labels.of[place]]), [])
        rater = columns.rater[standing[place]]
        judges += [raters[rater]] if rater >= 0 else []
    return {event: tuple(judges) for event, judges in found.items()}
