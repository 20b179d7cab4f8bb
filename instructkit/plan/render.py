"""A plan in words and figures."""

from __future__ import annotations

from pathlib import Path

from instructkit.plan.plan import Plan, gib

GIB = 2**30


def lines(plan: Plan) -> list[str]:
    """What a person reads, a line each."""
    found = plan.rehearsal
    return [
        *_parents(plan),
        *_data(plan),
        *plan.machine.reasons,
        *found.notes,
        *plan.inputs.notes(),
        *(f"cannot be decided: {each}" for each in plan.undecidable),
        _steps(plan),
        *_memory(plan),
        _disk(plan),
        _time(plan),
        *_changes(plan),
        _output(plan),
    ]


def _parents(plan: Plan) -> list[str]:
    told = []
    for parent in plan.parents:
        adapter = f" with the adapter {parent.adapter}" if parent.adapter else ""
        base = parent.base.replace(str(Path.home()), "~", 1)
        told.append(f"{parent.role}: {parent.name} = {base}{adapter}; {parent.fit()}")
    told += [f"warning: {warning}" for warning in plan.warnings]
    trained, every = plan.rehearsal.trained
    return [*told, f"parameters: {every:,}, of which {trained:,} are trained"]


def _data(plan: Plan) -> list[str]:
    from instructkit.stages.base import left_out

    told = []
    for role, rows in plan.inputs.data.items():
        label = " (synthetic)" if rows.synthetic else ""
        told.append(
            f"data {role}: {rows.source}, {len(rows.rows)} rows{label}, sha256 {rows.fingerprint[:12]}"
        )
    return [*told, *left_out(plan.inputs), *_rows(plan)]


def _rows(plan: Plan) -> list[str]:
    rows = plan.rehearsal.rows
    told = [
        f"tokens of a training row: p50 {rows.p50}, p95 {rows.p95}, longest {rows.longest}; {rows.tokens:,} in all"
    ]
    told.append(f"  {rows.shortest} {rows.bars()} {rows.longest}")
    if rows.learned is not None:
        told.append(f"  {rows.learned:.0%} of them are learned, the rest is read")
    if rows.cut is not None:
        told.append(f"  {rows.cut.told()}")
    elif rows.at_limit and plan.recipe.stage != "sft":  # which tells its own rows
        told.append(f"  {rows.at_limit} rows reach max_length, and what is behind it is cut off")
    if rows.exact or rows.near:
        told.append(f"doubles among {rows.compared} rows: {rows.exact} exact, {rows.near} near")
    told.append("writing: " + _shares(rows.scripts))
    if rows.languages:
        told.append(
            f"languages of {rows.spoken} rows that are long enough to tell: {_shares(rows.languages)}"
        )
    return told


def _shares(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in found.items())


def _steps(plan: Plan) -> str:
    s = plan.rehearsal.steps
    each = f"{s['per_device']} per device x {s['accumulation']} accumulation x {s['processes']} processes = {s['batch']}"
    told = f"steps: {s['steps']}, of {each} rows; {s['steps_per_epoch']} steps an epoch, {s['rows']} rows"
    if "rollout" not in s:
        return told
    whole, over = divmod(s["rows"], s["rollout"])
    left = f", {over} prompts of each epoch left over" if over else ""
    return f"{told}: {whole} rollouts of {s['rollout']} prompts x {s['steps_a_rollout']} steps{left}"


def _memory(plan: Plan) -> list[str]:
    need, (rows, tokens) = plan.memory, plan.rehearsal.batch
    told = [f"memory at the longest batch, {rows} rows of {tokens} tokens (GiB):"]
    told += [f"  {what:<31} {size / GIB:8.2f}" for what, size in need.components.items()]
    told += [f"  ({_phase(phase, size, plan)})" for phase, size in need.phases.items()]
    verdict = "it fits" if need.fits else "IT WILL NOT FIT"
    if need.mapped:
        verdict += f", of which the mapped file ({need.mapped / GIB:.2f}) goes where there is no room for it"
    told.append(
        f"  predicted peak, in {need.peak:<12} {need.predicted / GIB:8.2f} of {need.available / GIB:.2f} free: {verdict}"
    )
    return told


def _phase(phase: str, size: int, plan: Plan) -> str:
    """The most that a phase holds, and the most of each kind in it, which need not be at the same moment."""
    kinds = ", ".join(f"{kind} {most / GIB:.2f}" for kind, most in plan.memory.most[phase].items() if most)
    told = f"{phase}: {size / GIB:.2f} beside weights and optimizer"
    return f"{told}; each at its own most: {kinds}" if kinds else told


def _disk(plan: Plan) -> str:
    needed, free = (plan.disk[name] / GIB for name in ("needed", "free"))
    return f"disk: {needed:.2f} GiB with checkpoints, of {free:.1f} GiB free"


def _time(plan: Plan) -> str:
    full = plan.recipe.stage == "ppo" and plan.probe is None
    of = "the steps if every response has its full length" if full else "the steps"
    told = f"time: about {_duration(plan.seconds)} for {of}, "
    if plan.probe is None:
        return told + "worked out from this machine's matrix product; --probe measures"
    steps, each = plan.probe.steps, plan.probe.seconds_a_step
    return (
        told
        + f"measured on {steps} of them ({each:.2g} s each), after {_duration(plan.probe.seconds_before)} to begin"
    )


def _output(plan: Plan) -> str:
    reason = f"{plan.against.message.splitlines()[0].rstrip(':')}; " if plan.against else ""
    return f"output: {plan.recipe.run.output}; {reason}nothing was trained"


def _changes(plan: Plan) -> list[str]:
    told = [
        f"would help: {' '.join(change.overrides)} (saves {gib(change.saves)}, then {gib(change.needed)}"
        f"{': it fits)' if change.fits else ': not enough alone)'}"
        for change in plan.changes
    ]
    if plan.together is not None:
        fits = "it fits" if plan.together.fits else "still too much"
        told.append(
            f"together: {' '.join(plan.together.overrides)} (saves {gib(plan.together.saves)}, "
            f"then {gib(plan.together.needed)}: {fits})"
        )
    return [*told, *(f"not suggested: {each}" for each in plan.untried)]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
