"""What a run really holds: its own trainer takes a few steps on its longest rows, and the process is asked for its peak."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from instructkit.models import machine as machines
from instructkit.recipe.load import load_recipe
from instructkit.stages import stage_of
from instructkit.stages.base import Frame, choose_machine, quiet_libraries

STEPS = 4


def main() -> None:
    """Print `{"measured": bytes}`, above the interpreter's own after all imports; on a GPU what torch had allocated."""
    stage, *overrides = sys.argv[1:]
    quiet_libraries()
    recipe = load_recipe(f"{Path(__file__).parents[2]}/recipes/{stage}.yaml", stage, overrides)
    import torch
    import trl  # noqa: F401 - as every run has it
    from trl import RewardTrainer, SFTTrainer  # noqa: F401

    import instructkit.plan.rehearsal  # noqa: F401 - the trainers' modules
    import instructkit.ppo.trainer  # noqa: F401

    inputs, machine = stage_of(recipe).collect(recipe, {}), choose_machine(recipe)
    own = resident()
    if machine.on_cpu:
        machines.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        frame = Frame(recipe, inputs, machine, Path(folder), Silent(), resume=False)
        trainer = stage_of(recipe).prepare(frame).trainer
        heaviest(trainer, stage)
        trainer.args.max_steps, trainer.args.save_strategy = STEPS, "no"
        trainer.train()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else largest() - own
    print(json.dumps({"measured": peak, "device": machine.device}))


def heaviest(trainer: Any, stage: str) -> None:
    """Only the rows with the most tokens, and responses that do not end early."""
    rows = trainer.train_dataset
    if stage == "ppo":
        lengths = [len(str(prompt)) for prompt in rows["prompt"]]
        trainer.args.value_warmup_steps = 0  # the policy learns from the first step
        never = trainer.model.config.vocab_size - 1
        trainer.eos_token_ids = [never]
        trainer.generation_config.eos_token_id = [never]
        trainer.generation_kwargs["eos_token_id"] = [never]
    else:
        lengths = [max(len(v) for v in row.values() if isinstance(v, list)) for row in rows]
    size = trainer.args.generation_batch_size if stage == "ppo" else trainer.args.per_device_train_batch_size
    longest = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)[:size]
    trainer.train_dataset = rows.select(longest * STEPS)


class Silent:
    """A reporter that says nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def resident() -> int:
    """Resident memory now, in bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()


def largest() -> int:
    """The largest resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
