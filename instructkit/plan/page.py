"""A plan in words and figures."""

from __future__ import annotations

from pathlib import Path

from instructkit.plan.make import Plan, occupied

GIB = 2**30


def lines(plan: Plan) -> list[str]:
    """What a person reads, a line each."""
    found = plan.rehearsal
    return [
        *_parents(plan),
        *_data(plan),
        *plan.machine.reasons,
        *found.notes,
        _steps(plan),
        *_memory(plan),
        _disk(plan),
        _time(plan),
        *_changes(plan),
        _output(plan),
    ]


def _parents(plan: Plan) -> list[str]:
    told = []
    for role, source in plan.inputs.parents.items():
        adapter = f" with the adapter {source.adapter}" if source.adapter else ""
        told.append(f"{role}: {source.name} = {source.base.replace(str(Path.home()), '~', 1)}{adapter}")
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
    if rows.at_limit:
        told.append(f"  {rows.at_limit} rows reach max_length, and what is behind it is cut off")
    if rows.exact or rows.near:
        told.append(f"doubles among {rows.compared} rows: {rows.exact} exact, {rows.near} near")
    if rows.held_out_near:
        told.append(f"warning: {rows.held_out_near} held-out rows have a near double among the training rows")
    return [*told, "writing: " + ", ".join(f"{name} {share:.0%}" for name, share in rows.scripts.items())]


def _steps(plan: Plan) -> str:
    s = plan.rehearsal.steps
    each = f"{s['per_device']} per device x {s['accumulation']} accumulation x {s['processes']} processes = {s['batch']}"
    return f"steps: {s['steps']}, of {each} rows; {s['steps_per_epoch']} steps an epoch, {s['rows']} rows"


def _memory(plan: Plan) -> list[str]:
    need, (rows, tokens) = plan.memory, plan.rehearsal.batch
    told = [f"memory at the longest batch, {rows} rows of {tokens} tokens (GiB):"]
    told += [f"  weights, {role:<22} {size / GIB:8.2f}" for role, size in need.weights.items() if size]
    told.append(f"  optimizer                       {need.optimizer / GIB:8.2f}")
    told += [
        f"  in {phase + ', with gradients':<28} {size / GIB:8.2f}" for phase, size in need.phases.items()
    ]
    verdict = "it fits" if need.fits else "IT WILL NOT FIT"
    told.append(
        f"  predicted peak                  {need.predicted / GIB:8.2f} of {need.available / GIB:.2f} free: {verdict}"
    )
    return told


def _disk(plan: Plan) -> str:
    needed, free = (plan.disk[name] / GIB for name in ("needed", "free"))
    return f"disk: {needed:.2f} GiB with checkpoints, of {free:.1f} GiB free"


def _time(plan: Plan) -> str:
    told = f"time: about {_duration(plan.seconds)} for the steps, "
    if plan.probe is None:
        return told + "worked out from this machine's matrix product; --probe measures"
    steps, each = plan.probe.steps, plan.probe.seconds_a_step
    return (
        told
        + f"measured on {steps} of them ({each:.2g} s each), after {_duration(plan.probe.seconds_before)} to begin"
    )


def _output(plan: Plan) -> str:
    reason = occupied(plan.recipe)
    return f"output: {plan.recipe.run.output}; {reason + '; ' if reason else ''}nothing was trained"


def _changes(plan: Plan) -> list[str]:
    return [
        f"would help: {' '.join(change.overrides)} (saves {change.saves / GIB:.2f} GiB, then {change.predicted / GIB:.2f})"
        for change in plan.changes
    ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
