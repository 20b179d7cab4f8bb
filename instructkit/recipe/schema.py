"""What may stand in a recipe. Validation decides and never edits: every value is the user's or a default shown here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0, lt=1)]
MOST = 2**31  # no count in a recipe reaches it
Positive = Annotated[int, Field(gt=0, lt=MOST)]
Name = Annotated[str, Field(pattern=r"\S")]  # what names a thing is not empty


class Section(BaseModel):
    """A mapping of a recipe; keys it does not know are faults."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


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


STAGES = ("sft", "reward", "ppo", "lora-update")
_FORMAT = (
    "chat: prompts and answers are rendered by the chat template; text: they are joined as they are; auto: as the parent run was "
    "trained, else chat where the model has a template"
)


class ModelSection(Section):
    """The model that a stage starts from."""

    name: Name = Field(description="hub id, folder, run folder, .gguf file, or `tiny`")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="number format")
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="of the frozen base (bitsandbytes)"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    attn_implementation: str | None = Field(None, description="attention kernel, as transformers names it")

    def of_another(self) -> ModelSection:
        """The same for another model of the run, such as a reward model: a revision is that of `name` alone."""
        return self.model_copy(update={"revision": None})


class Weighted(Section):
    """One source of a mixture."""

    source: Name = Field(description="file, glob, folder, hub id, or demo/NAME")
    weight: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="share of the mixture, relative to the others; null: 1, and where no source has one, all rows are kept",
    )
    split: str = Field("train", description="of a hub id or a saved dataset")
    config: str | None = Field(None, description="of a hub id that has several")


class Sources(Section):
    """What is trained on, and what is held out."""

    train: Name | Annotated[list[Name | Weighted], Field(min_length=1)] = Field(
        description="demo/NAME, file, glob, hub id, or a list with weights"
    )
    eval: Share | Name | None = Field(
        0.05, description="a share of train, a source of its own, or null for none"
    )
    columns: dict[str, str] = Field({}, description="names of fields, `found: wanted`")
    format: Literal["auto", "chat", "text"] = Field("auto", description=_FORMAT)
    on_fault: Literal["stop", "skip"] = Field(
        "stop", description="stop: rows with faults are refused; skip: left out and kept in skipped.jsonl"
    )
    on_overlap: Literal["stop", "skip"] = Field(
        "stop",
        description="stop: held-out rows that are also trained on are refused; skip: left out and kept",
    )
    shuffle: bool = Field(False, description="bring training rows into an order of chance before `limit`")
    limit: Positive | None = Field(
        None, description="use only the first so many rows, before a share of them is held out"
    )
    eval_limit: Positive | None = Field(None, description="use only the first so many held-out rows")


class DataSection(Sources):
    """Prompts with answers."""

    overlap_by: Literal["prompt", "row"] = Field(
        "prompt",
        description="prompt: what training asks too is no held-out row, whatever its answer; row: another answer makes it one",
    )


class PromptSection(Sources):
    """Prompts to learn from and to hold out, and text that must not be forgotten meanwhile."""

    ptx: Name | None = Field(None, description="demonstrations or text for trainer.ptx_coef (PPO-ptx)")


class LoraSection(Section):
    """A low-rank adapter; left out, all weights are trained."""

    r: Positive = Field(16, description="rank")
    alpha: Positive = Field(32, description="scale: alpha / r")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout before the adapter")
    target_modules: Name | Annotated[list[Name], Field(min_length=1)] = Field(
        "all-linear", description="which layers"
    )
    use_rslora: bool = Field(False, description="scale by the root of r")
    use_dora: bool = Field(False, description="DoRA; not with a parent that is an adapter")


class RewardItem(Section):
    """One source of scores: a learned reward model or a Python function."""

    model: Name | None = Field(None, description="run folder, folder or hub id of a reward model")
    function: Name | None = Field(None, description="module:function or path/to/file.py:function")
    weight: float = Field(1.0, description="factor of its scores")

    @model_validator(mode="after")
    def _one_of_two(self) -> RewardItem:
        if (self.model is None) == (self.function is None):
            raise ValueError("wanted exactly one of `model` and `function`")
        return self


class CriticSection(Section):
    """PPO's critic."""

    kind: Literal["auto", "adapter", "head", "separate"] = Field(
        "auto", description="auto: an adapter on the policy's backbone under LoRA, else separate"
    )
    init: str = Field("auto", description="auto, reward, zero, or the run folder of an earlier ppo")
    detach: bool = Field(False, description="keep the value loss of a head away from the policy")


class FeedbackSection(Section):
    """What users said, how it is prepared, and what guards the rest."""

    events: Name = Field(description="feedback rows, or a feedback store (.db)")
    eval: Share | Name = Field(
        0.3, description="test events: a share of prompt clusters, or a source of its own"
    )
    tune: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="share of prompt clusters that a rescue may look at; the test events never"
    )
    since: Literal["last", "all"] = Field(
        "last", description="of a store: events since the chain's last promotion (last), or all of them again"
    )
    limit: Positive | None = Field(None, description="use only the first so many events")
    columns: dict[str, str] = Field({}, description="names of fields, `found: wanted`")
    format: Literal["auto", "chat", "text"] = Field("auto", description=_FORMAT)
    on_fault: Literal["stop", "skip"] = Field(
        "stop",
        description="stop: events with faults are refused; skip: left out and kept in skipped.jsonl; so are rows of "
        "`replay` and `general`, and those of the SFT run are read as it read them",
    )
    # Preprocessing
    personal_data: Literal["redact", "keep"] = Field(
        "redact", description="redact: addresses, numbers and keys become placeholders by kind"
    )
    near_duplicates: Share = Field(0.8, description="prompts as alike as this (Jaccard) are one cluster")
    max_share_per_cluster: Share = Field(
        0.05, description="of the weight, at most, by one cluster of prompts"
    )
    max_share_per_rater: Share | None = Field(
        None, description="of the weight, at most, by one rater; null: max(0.05, 2 / raters)"
    )
    agreement_min: Annotated[float, Field(ge=0.5, le=1)] = Field(
        0.6, description="answers whose judges agree less are set aside"
    )
    reliability: bool = Field(True, description="weight raters by their agreement with others, 0.2 to 1")
    position_bias: Literal["report", "correct"] = Field(
        "report", description="of choices between two answers: correct weighs both positions alike"
    )
    max_characters: Positive = Field(100_000, description="longest event, in characters")
    languages: Annotated[list[Name], Field(min_length=1)] | None = Field(
        None, description="writing systems to keep, by Unicode's names, such as Latin; null: all"
    )
    filter: Name | None = Field(
        None,
        description="module:function or file.py:function that is given an event's row and says whether to keep it",
    )
    half_life_days: Annotated[float, Field(gt=0)] | None = Field(
        None, description="an event this much older than the newest counts half"
    )
    balance: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="wanted shares of weight, `group:NAME: share` or `tag:NAME: share`"
    )
    # Learning
    objective: Literal["auto", "sft", "dpo", "kto", "mixture"] = Field(
        "auto", description="auto: by what the events hold; mixture: SFT, then DPO, then KTO"
    )
    mode: Literal["auto", "new", "continue", "merge"] = Field(
        "auto",
        description="new: a fresh adapter; continue: the chain's current one goes on; merge: a fresh one above merged weights; "
        "auto: continue when there is one",
    )
    chain: Name = Field("default", description="the chain of updates that this one belongs to")
    replay: Name | None = Field(
        None, description="demonstrations to replay; default: those of the parent's SFT run"
    )
    replay_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.25, description="weight of replay in the loss"
    )
    self_replay: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of replayed rows with the parent's own answer in place of the given one"
    )
    anchor: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the KL to the parent on replayed rows, added to the loss"
    )
    # Measuring
    general: Name | None = Field(None, description="held-out rows of everything else; default: the SFT run's")
    tasks: list[Name] = Field(
        [], description="files of questions with choices, for the gate `general accuracy`"
    )
    bias_pairs: Name | None = Field(None, description="file of minimal pairs; default: a small built-in set")
    counterfactuals: Name | None = Field(
        None,
        description="file of questions about two members of each of two groups; default: a small built-in set",
    )
    canaries: list[Name] = Field([], description="secrets that must not be learned, beside those found")


class RunSection(Section):
    """Where the run goes."""

    output: Name = Field(description="the run folder")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(42, description="of everything random")
    max_minutes: Annotated[float, Field(gt=0, lt=1e6)] | None = Field(
        None,
        description="stop after so many minutes with a checkpoint to resume from; leave a scheduler's limit some time beyond",
    )
    samples: Annotated[int, Field(ge=0, lt=MOST)] = Field(
        8, description="answers kept in samples.jsonl, and of each evaluation of ppo"
    )
    compare: Positive = Field(64, description="held-out prompts answered before and after PPO")


class Recipe(Section):
    """What every recipe has."""

    stage: str
    model: ModelSection
    trainer: dict[str, Any] = {}
    run: RunSection
    source: str = Field("", exclude=True)


class SftRecipe(Recipe):
    """Supervised fine-tuning."""

    stage: Literal["sft"]
    data: DataSection
    lora: LoraSection | None = None
    gates: SftGates = SftGates()


class RewardRecipe(Recipe):
    """A reward model."""

    stage: Literal["reward"]
    data: DataSection
    lora: LoraSection | None = None
    gates: RewardGates = RewardGates()


class PpoRecipe(Recipe):
    """PPO."""

    stage: Literal["ppo"]
    data: PromptSection
    reward: Annotated[list[RewardItem], Field(min_length=1)]
    critic: CriticSection = CriticSection()
    lora: LoraSection | None = None
    gates: PpoGates = PpoGates()


class LoraUpdateRecipe(Recipe):
    """A LoRA update from feedback."""

    stage: Literal["lora-update"]
    feedback: FeedbackSection
    lora: LoraSection = LoraSection()
    gates: UpdateGates = UpdateGates()


RECIPES: dict[str, type[Recipe]] = {
    "sft": SftRecipe,
    "reward": RewardRecipe,
    "ppo": PpoRecipe,
    "lora-update": LoraUpdateRecipe,
}


def sections(recipe: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The sections of a recipe class by name, those that are mappings of known keys."""
    found: dict[str, type[BaseModel]] = {}
    for name, field in recipe.model_fields.items():
        candidates = getattr(field.annotation, "__args__", (field.annotation,))
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is not None:
            found[name] = model
    return found
