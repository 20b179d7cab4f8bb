"""What a PPO run has to remember beyond weights, optimizer and random states, to go on as if it had never stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from instructkit.ppo.scores import RunningMoments


@dataclass
class State:
    """
    Counters and coefficients of a run; saved on rollout borders, so that no half-used rollout need be kept.

    Attributes:
        beta: the KL coefficient in force.
        rollouts, episodes: done so far, episodes over all processes.
        scores: moments of all raw scores seen in training.
    """

    beta: float
    rollouts: int = 0
    episodes: int = 0
    scores: RunningMoments = field(default_factory=RunningMoments)

    def saved(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> State:
        """The state that `saved` wrote down."""
        return cls(**{**saved, "scores": RunningMoments(**saved["scores"])})
