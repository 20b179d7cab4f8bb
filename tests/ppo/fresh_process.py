"""A run of PPO in a process of its own, from the start or from a checkpoint; run by `test_resume.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppo.small import weights
from ppo.test_resume import run


def main(folder: str, place: str, checkpoint: str) -> None:
    """Train four rollouts in all and write every weight and the state."""
    resume = checkpoint or None
    saving = {} if resume else {"save_strategy": "steps", "save_steps": 8}
    trainer = run(Path(folder), Path(place), steps=16, resume=resume, lora=True, critic="adapter", **saving)
    kept = {"weights": weights(trainer), "state": trainer.state_of_ppo.saved()}
    torch.save(kept, Path(place) / "kept.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
