"""The models that a run stands on, and whether they fit together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from instructkit.errors import InputError
from instructkit.models import load, source

SCORES = ("ForSequenceClassification", "RewardModel")


@dataclass(frozen=True)
class Parent:
    """
    One model of a run, beside the one that is trained.

    Attributes:
        role: `model`, or what it is for.
        base: the folder or hub id that it stands on; `adapter` the folder of the adapter on it.
        family: the model's type; None where its config cannot be read.
        vocabulary: rows of its embedding; `tokens` of its tokenizer.
        same_base, same_vocabulary, same_template: as the trained model's; None for that model itself, and where nothing is known.
        warnings: what does not fit.
    """

    role: str
    name: str
    base: str
    adapter: str | None
    family: str | None
    vocabulary: int | None
    tokens: int | None
    same_base: bool | None = None
    same_vocabulary: bool | None = None
    same_template: bool | None = None
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def fit(self) -> str:
        """Whether it fits the trained model, in words."""
        if self.same_base is None:
            return f"{self.family or 'of a type unknown'}, {self.tokens or 'unknown'} tokens"
        if self.same_vocabulary is None:
            return "same base" if self.same_base else "another base"
        words = {
            "base": self.same_base,
            "tokenizer": self.same_vocabulary,
            "template": self.same_template,
        }
        told = ", ".join(f"{'same' if same else 'another'} {what}" for what, same in words.items())
        if self.same_base or self.same_vocabulary and self.same_template:
            return told
        return f"{told}: it reads answers with its own tokenizer and template"


def parents(recipe: Any, found: dict[str, source.Source]) -> list[Parent]:
    """
    Every model of a run against the one that is trained; a reward model of another family is allowed, and said.

    Raises:
        InputError: when a tokenizer or a config cannot be read.
    """
    own = found["model"]
    tokenizer = load.load_tokenizer(own, recipe.model)
    told = []
    for role, parent in found.items():
        config = _config(parent, recipe) if role != "critic" else None
        theirs = (
            tokenizer
            if role == "model"
            else load.load_tokenizer(parent, recipe.model)
            if role != "critic"
            else None
        )
        vocabulary = getattr(config.get_text_config(), "vocab_size", None) if config else None
        other = role != "model"
        told.append(
            Parent(
                role,
                parent.name,
                parent.base,
                str(parent.adapter) if parent.adapter else None,
                getattr(config, "model_type", None),
                vocabulary,
                len(theirs) if theirs is not None else None,
                same_base=parent.base == own.base if other else None,
                same_vocabulary=theirs.get_vocab() == tokenizer.get_vocab() if other and theirs else None,
                same_template=theirs.chat_template == tokenizer.chat_template if other and theirs else None,
                warnings=_odd(role, parent, config, theirs, vocabulary),
            )
        )
    return told


def _odd(role: str, source: source.Source, config: Any, tokenizer: Any, vocabulary: int | None) -> list[str]:
    told = []
    if tokenizer is not None and vocabulary is not None and len(tokenizer) > vocabulary:
        told.append(
            f"{role} {source.name}: its tokenizer has {len(tokenizer)} tokens, and the model knows {vocabulary}"
        )
    if role not in ("model", "critic") and config is not None and not has_trained_head(source, config):
        told.append(
            f"{role} {source.name} has no trained head: its scores are random; name a run of `instructkit reward`, or a "
            "model whose architecture ends in ForSequenceClassification"
        )
    return told


def has_trained_head(source: source.Source, config: Any) -> bool:
    """Whether a model can score: a reward run can, and what was saved with a head for scores."""
    import json

    if source.run is not None:
        return True  # another stage's run has been refused already
    if source.adapter is not None:
        saved = json.loads((source.adapter / "adapter_config.json").read_text(encoding="utf-8"))
        return bool({"score", "classifier"} & set(saved.get("modules_to_save") or ()))
    return any(name.endswith(SCORES) for name in getattr(config, "architectures", None) or ())


def _config(source: source.Source, recipe: Any) -> Any:
    from transformers import AutoConfig

    try:
        return load.from_pretrained(AutoConfig, source, recipe.model)
    except InputError:
        if source.run is not None:
            return None
        raise
