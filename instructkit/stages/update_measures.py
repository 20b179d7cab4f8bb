"""What an update is measured by: held-out feedback, everything else, and a judge, before and after; and its gates."""

from __future__ import annotations

from typing import Any

from instructkit.data.prepare import key_of, prompt_key
from instructkit.evaluate import metrics
from instructkit.feedback import gates, preprocess
from instructkit.stages.base import Frame, measurement, prompt_of
from instructkit.stages.functions import load_function
from instructkit.stages.replay import encoded_demonstrations


def measure(frame: Frame, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Likelihoods of the test events' answers and of the general rows, and greedy answers to a few test prompts."""
    from instructkit.evaluate.generate import answer, likelihoods, row_likelihoods

    data = frame.inputs.data
    judged = preprocess.judged(data["test"].rows)
    prompts = [event.prompt for event in judged]
    first = likelihoods(model, tokenizer, prompts, [event.wanted for event in judged])
    paired = [event for event in judged if event.unwanted is not None]
    second = likelihoods(model, tokenizer, [e.prompt for e in paired], [e.unwanted for e in paired])
    general = encoded_demonstrations(tokenizer, data["general"].rows) if "general" in data else []
    kept = row_likelihoods(model, general, pad_id=tokenizer.pad_token_id)
    shown = prompts[: frame.recipe.run.samples]
    told = answer(model, tokenizer, shown, max_new_tokens=64, seed=frame.seed, temperature=0)
    found = {"judged": judged, "wanted": first, "unwanted": second, "general": kept, "answers": told}
    return found | {"judge": judge_scores(frame, model, tokenizer)}


def judge_scores(frame: Frame, model: Any, tokenizer: Any) -> list[float]:
    """The judge's scores of one sampled answer to each prompt of the general rows; empty without a judge."""
    from instructkit.evaluate.generate import answer

    place, data = frame.recipe.gates.judge, frame.inputs.data
    rows = [row for row in data["general"].rows if "text" not in row] if "general" in data else []
    if not (place and rows):
        return []
    prompts = list({key_of(prompt_of(row)): prompt_of(row) for row in rows}.values())
    answers = answer(model, tokenizer, prompts, max_new_tokens=64, seed=frame.seed)
    return list(load_function(place)(prompts, [a.text for a in answers]))


def compare(frame: Frame, before: dict[str, Any], after: dict[str, Any]) -> tuple[list[dict], list[Any]]:
    """Held-out feedback and general loss before and after, with the two gates that decide."""
    limits, seed = frame.recipe.gates, frame.seed
    scores = [satisfaction(before), satisfaction(after)]
    gain = metrics.paired_difference(*scores, seed=seed)
    lines = [
        measurement(
            "held-out feedback",
            unit="nats/token",
            n=len(scores[1]),
            before=sum(scores[0]) / len(scores[0]),
            after=sum(scores[1]) / len(scores[1]),
            change=list(gain),
            better="higher",
            note="log-probability of what users wanted, above what they did not",
        )
    ]
    if after["unwanted"]:
        lines.append(pair_accuracy(before, after))
    ratio = None
    if after["general"]:
        nll = [by_prompt(frame, [row.nll for row in part["general"]]) for part in (before, after)]
        tokens = sum(row.tokens for row in after["general"])
        ratio = metrics.ratio_interval(*nll, seed=seed)
        lines.append(
            measurement(
                "general held-out loss",
                unit="nats/token",
                n=len(nll[1]),  # prompts
                before=sum(nll[0]) / tokens,
                after=sum(nll[1]) / tokens,
                change=[bound - 1 for bound in ratio],
                better="lower",
                note="change is relative: after / before - 1",
            )
        )
    checks = [
        gates.improved("held-out feedback", gain, limits.feedback_gain_min),
        gates.not_worse("general held-out loss", ratio, limits.general_loss_ratio_max),
    ]
    if limits.judge:
        checks.append(compare_judged(before["judge"], after["judge"], limits.judge_gain_min, seed, lines))
    return lines, checks


def compare_judged(
    before: list[float], after: list[float], minimum: float, seed: int, lines: list[dict]
) -> Any:
    """The judge's line in the table, and its gate: what the parent had learned from rewards must not be lost."""
    change = metrics.paired_difference(before, after, seed=seed) if after else None
    if change:
        lines.append(
            measurement(
                "judge's score of answers to everything else",
                unit="score",
                n=len(after),
                before=sum(before) / len(before),
                after=sum(after) / len(after),
                change=list(change),
                better="higher",
                note="no training stage sees it",
            )
        )
    return gates.improved("judge's score of answers to everything else", change, minimum)


def by_prompt(frame: Frame, figures: list[float]) -> list[float]:
    """Sums over the general rows of one prompt: several answers to it are no independent measurements."""
    sums: dict[str, float] = {}
    for row, figure in zip(frame.inputs.data["general"].rows, figures, strict=True):
        key = prompt_key(row)
        sums[key] = sums.get(key, 0.0) + figure
    return list(sums.values())


def satisfaction(measured: dict[str, Any]) -> list[float]:
    """
    How far the model leans to what each event asks for, in nats per token.

    A pair: mean log-probability of a token of the wanted answer minus that of the unwanted one. A rating: that of the
    rated answer times its sign and size.
    """
    unwanted = iter(measured["unwanted"])
    return [
        wanted.per_token - next(unwanted).per_token
        if event.unwanted is not None
        else event.weight * wanted.per_token
        for event, wanted in zip(measured["judged"], measured["wanted"], strict=True)
    ]


def pair_accuracy(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Share of test pairs in which the wanted answer is the likelier one, per token."""
    shares = []
    for part in (before, after):
        wanted = [w for e, w in zip(part["judged"], part["wanted"], strict=True) if e.unwanted is not None]
        pairs = list(zip(wanted, part["unwanted"], strict=True))
        shares.append(sum(w.per_token > u.per_token for w, u in pairs) / len(pairs))
    n = len(after["unwanted"])
    _, low, high = metrics.accuracy_interval(round(shares[1] * n), n)
    note = f"95 % interval {low:.3f} to {high:.3f}"
    return measurement(
        "wanted answer likelier",
        unit="share",
        n=n,
        before=shares[0],
        after=shares[1],
        better="higher",
        note=note,
    )


def samples(frame: Frame, before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """A few test prompts with the answers of parent and update, and what the user wanted."""
    rows = zip(before["judged"], before["answers"], after["answers"], strict=False)
    return [
        {"prompt": event.prompt, "before": first.text, "after": second.text, "wanted": event.wanted}
        for event, first, second in rows
    ]
