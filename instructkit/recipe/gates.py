"""The `gates:` sections of recipes: what a run must reach. What becomes of these limits is decided in `feedback.decisions`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from instructkit.recipe.section import Name, Section


class SftGates(Section):
    """What a fine-tuned model must satisfy."""

    loss_ratio_max: Annotated[float, Field(gt=0)] = Field(
        1.0, description="upper bound of held-out loss after / before"
    )


class RewardGates(Section):
    """What a reward model must satisfy."""

    accuracy_min: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="held-out pairs ordered right"
    )


class PpoGates(Section):
    """What a policy must satisfy."""

    judge: Name | None = Field(
        None, description="demo/judge, module:function or file.py:function; measures only"
    )
    judge_gain_min: float = Field(0.0, description="the gain's lower bound must lie above")
    kl_max_nats: Annotated[float, Field(gt=0)] | None = Field(
        None, description="KL to the reference, nats per answer, must lie below"
    )


class UpdateGates(Section):
    """What an adapter must satisfy to be promoted; a null switches a gate off."""

    feedback_gain_min: float = Field(
        0.0, description="lower bound of the gain on held-out feedback, nats per token"
    )
    reward_model: Name | None = Field(
        None,
        description="run folder, folder or hub id; scores fresh answers to the prompts of held-out feedback",
    )
    reward_gain_min: float = Field(0.0, description="lower bound of the gain in its score")
    general_loss_ratio_max: Annotated[float, Field(gt=0)] = Field(
        1.01, description="upper bound of general loss after / before"
    )
    general_accuracy_loss_max: float | None = Field(
        0.01, description="upper bound of the accuracy lost on `feedback.tasks`"
    )
    group_loss_max: float | None = Field(
        0.1, description="upper bound of the accuracy that any group or tag loses on held-out feedback"
    )
    bias_growth_max: float | None = Field(
        0.05, description="upper bound of how much further from a half stereotypes are preferred"
    )
    contrast_growth_max: float | None = Field(
        0.5,
        description="upper bound of how much more answers to two groups differ than those to one, in spreads of an answer",
    )
    kl_max_nats: Annotated[float, Field(gt=0)] | None = Field(
        8.0, description="KL to the parent on general prompts, nats per answer, at most"
    )
    length_ratio_min: Annotated[float, Field(ge=0)] | None = Field(
        0.8, description="mean answer length after / before, at least"
    )
    length_ratio_max: Annotated[float, Field(gt=0)] | None = Field(
        1.25, description="mean answer length after / before, at most"
    )
    conduct_loss_max: float | None = Field(
        0.1, description="upper bound of growth in unended, repetitive and refusing answers, shares"
    )
    trigger: bool = Field(True, description="refuse words of the feedback that move answers to anything")
    memory: bool = Field(True, description="refuse secrets that the model has learned by heart")
    judge: Name | None = Field(
        None, description="as for ppo; scores answers to the prompts of the general rows; measures only"
    )
    judge_gain_min: float = Field(
        -0.25, description="lower bound of the change, in spreads of the scores of the parent's answers"
    )
    on_undecided: Literal["refuse", "pass"] = Field(
        "refuse", description="what a gate with too few figures does"
    )
    rescue: bool = Field(
        True,
        description="when feedback was learned and something else harmed, try smaller scales of the adapter",
    )
