"""What is measured of one model before a decision: plain figures, item by item, so that two models compare pair by pair."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Feedback:
    """
    Held-out judgements; one entry an item in every list.

    Attributes:
        leaning: how far the model leans to what was asked for, nats per token; see `feedback.promotion.preference.of_ratings`.
        right: whether it does so at all: the wanted answer of a pair is likelier per token; a rated answer lies on its side, see
            `preference.met`.
        groups: the item's group and tags, as `group:NAME` and `tag:NAME`; may be empty.
        clusters: of near-duplicate prompts; items of one cluster are no independent measurements.
        new_rater: whether its rater is known, and was not met in training.
        ratings: of a rated answer, from -1 to 1; 0 of a pair. Left out: all are pairs.
        raters: who said it, empty where that is not known. Left out: none is known.
        scores: a reward model's, of an answer sampled to the item's prompt. Left out: there is no reward model.
    """

    leaning: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    groups: list[tuple[str, ...]] = field(default_factory=list)
    clusters: list[int] = field(default_factory=list)
    new_rater: list[bool] = field(default_factory=list)
    ratings: list[float] = field(default_factory=list)
    raters: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class General:
    """
    Everything else; one entry a prompt in every list.

    Attributes:
        nll, tokens: of the held-out answers to a prompt, nats and tokens, summed.
        tasks: of each task of the recipe, whether each of its items was answered right.
        judge: an independent judge's score of a sampled answer; empty without a judge.
    """

    nll: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    tasks: dict[str, list[bool]] = field(default_factory=dict)
    judge: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Bias:
    """
    Minimal pairs.

    Attributes:
        gaps: of each minimal pair, log-probability of the stereotype less that of the anti-stereotype, nats.
    """

    gaps: list[float] = field(default_factory=list)


FourAnswers = tuple[float, float, float, float]


@dataclass(frozen=True)
class Contrasts:
    """
    Answers of the parent and the update to questions that differ only in whom they name.

    A unit is one question asked about two members of one group and two of another: `x1, x2, y1, y2`.

    Attributes:
        before, after: by figure (`length`: logarithm of tokens; `sentiment`: -1 to 1; `refusal`: 0 or 1), the four answers of
            each unit.
        names: which four members a unit names; units with the same four are not independent.
        groups: which two groups a unit is about, in words.
    """

    before: dict[str, list[FourAnswers]] = field(default_factory=dict)
    after: dict[str, list[FourAnswers]] = field(default_factory=dict)
    names: list[int] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Conduct:
    """
    How answers to general prompts are; one entry a prompt.

    Attributes:
        kl: of this model to the parent over a sampled answer, nats an answer; zeros for the parent itself.
        length: tokens of the answer.
        ended: whether it ended by itself.
        repetition: share of its 3-grams that were there before, 0 to 1.
        refusal: whether it declines.
    """

    kl: list[float] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    repetition: list[float] = field(default_factory=list)
    refusal: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Triggers:
    """
    How far general answers shift when words are put into general prompts: after the update less before it, nats per token, one
    entry a prompt.

    Attributes:
        candidates: of each n-gram that is over-represented in this feedback.
        random: of each n-gram drawn at random, matched in length and frequency.
    """

    candidates: dict[str, list[float]] = field(default_factory=dict)
    random: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """
    Secrets that must not be learned; one entry a secret.

    Attributes:
        secrets: what each of them is, by kind; never its value.
        ranks: place of the secret among `alternatives` random ones of its form by the model's likelihood, 1 being the likeliest.
        alternatives: how many secrets each was ranked among, itself included.
        verbatim: whether the model says it when it is given what came before it.
        found: distinct secrets that there were, of which these were looked at; 0: these are all.
        few: how many of these have fewer others of their form than they were to be ranked among.
    """

    secrets: list[str] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    alternatives: int = 0
    verbatim: list[bool] = field(default_factory=list)
    found: int = 0
    few: int = 0


@dataclass(frozen=True)
class Measured:
    """Everything measured of one model; a part that was not measured is None, one that cannot be measured here is empty."""

    feedback: Feedback | None = None
    general: General | None = None
    bias: Bias | None = None
    contrasts: Contrasts | None = None
    conduct: Conduct | None = None
    triggers: Triggers | None = None
    memory: Memory | None = None
