"""
The demo world: a few tables of facts, the ways people ask for them, and the ways people answer. All of it is synthetic.

A question is a fact in a wording. For every fact one wording is held out: the fact is seen in other wordings and the
wording with other facts, but never the two together.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

Message = dict[str, str]

# Which prompts are held out hangs on this word. The recipes were chosen while another word stood here, and this one was
# put in its place when nothing was changed any more: no figure that is reported was ever looked at in choosing.
HELD_OUT = "reported"


@dataclass(frozen=True)
class Topic:
    """A table of facts with the wordings that ask for one, and the short form of a follow-up."""

    name: str
    wordings: tuple[str, ...]
    follow_up: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Question:
    """A prompt, the topic and fact behind it, and the answer that is right."""

    topic: str
    subject: str
    answer: str
    messages: tuple[tuple[str, str], ...]

    @property
    def prompt(self) -> list[Message]:
        """The messages before the answer."""
        return [{"role": role, "content": content} for role, content in self.messages]


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.strip().split(" = ") for pair in text.split(","))


TOPICS = (
    Topic(
        "capitals",
        (
            "What is the capital of {}?",
            "Which city is the capital of {}?",
            "Name the capital of {}.",
            "Tell me the capital of {}, please.",
            "I forgot the capital of {}. What is it?",
        ),
        "And of {}?",
        _pairs(
            "France = Paris, Spain = Madrid, Italy = Rome, Germany = Berlin, Austria = Vienna, Poland = Warsaw, "
            "Norway = Oslo, Sweden = Stockholm, Finland = Helsinki, Denmark = Copenhagen, Greece = Athens, "
            "Portugal = Lisbon, Ireland = Dublin, Japan = Tokyo, Egypt = Cairo, Peru = Lima"
        ),
    ),
    Topic(
        "opposites",
        (
            "What is the opposite of {}?",
            "Which word means the opposite of {}?",
            "Name the opposite of {}.",
            "Tell me the opposite of {}, please.",
            "I need the opposite of {}. What is it?",
        ),
        "And of {}?",
        _pairs(
            "hot = cold, big = small, fast = slow, early = late, rich = poor, strong = weak, old = young, wet = dry, "
            "high = low, hard = soft, full = empty, open = closed, loud = quiet, "
            "sweet = bitter, happy = sad, near = far"
        ),
    ),
    Topic(
        "young animals",
        (
            "What is a young {} called?",
            "How do people call a young {}?",
            "Name the young of a {}.",
            "Tell me the word for a young {}, please.",
            "There is a word for a young {}. What is it?",
        ),
        "And a young {}?",
        _pairs(
            "dog = puppy, cat = kitten, cow = calf, horse = foal, sheep = lamb, goat = kid, pig = piglet, bear = cub, "
            "deer = fawn, duck = duckling, goose = gosling, hen = chick, swan = cygnet, frog = tadpole, "
            "kangaroo = joey, owl = owlet"
        ),
    ),
    Topic(
        "past tense",
        (
            "What is the past tense of {}?",
            "Which word is the past tense of {}?",
            "Name the past tense of {}.",
            "Tell me the past tense of {}, please.",
            "I forgot the past tense of {}. What is it?",
        ),
        "And of {}?",
        _pairs(
            "go = went, see = saw, eat = ate, run = ran, write = wrote, take = took, give = gave, drink = drank, sing = sang, "
            "swim = swam, fly = flew, know = knew, break = broke, speak = spoke, think = thought, buy = bought"
        ),
    ),
)

# Ways to answer. `{}` is the fact; a tail makes an answer longer without saying more.
POLITE = ("Gladly: {}.", "Happy to help: {}.", "With pleasure: {}.")
PLAIN = ("{}.", "It is {}.")
RUDE = ("Obviously {}.", "Everybody knows that: {}.")
TAILS = (
    "That is what I learned at school.",
    "As far as I remember, that is so.",
    "There is much more to say about it.",
)
EVASIVE = ("I do not know.", "No idea.", "Ask somebody else.")
NEW_STEPS = (
    2,
    4,
    5,
    6,
    8,
    9,
)  # to the fact that a held-out talk continues with; talks of training use 1, 3 and 7
WISH = "Have a good trip!"  # what the users of the capitals ask for in their feedback


def chosen_by(text: str, n: int) -> int:
    """A number below `n` that depends on the text alone, on every machine."""
    return zlib.crc32(text.encode("utf-8")) % n


def questions(*, held_out: bool) -> list[Question]:
    """All single questions of one side: for each fact one wording is held out, the others are for training."""
    found = []
    for topic in TOPICS:
        for subject, answer in topic.facts.items():
            kept = chosen_by(f"{HELD_OUT} {subject}", len(topic.wordings))
            for i, wording in enumerate(topic.wordings):
                if (i == kept) == held_out:
                    found.append(Question(topic.name, subject, answer, (("user", wording.format(subject)),)))
    return found


def follow_ups(*, held_out: bool) -> list[Question]:
    """Two-turn conversations: a question and its answer, then the same about another fact; one in five is held out."""
    found = []
    for topic in TOPICS:
        facts = list(topic.facts.items())
        for i, (first, answer) in enumerate(facts):
            for step in (1, 3, 7):
                second, wanted = facts[(i + step) % len(facts)]
                if (chosen_by(f"{HELD_OUT} {first} {second}", 5) == 0) == held_out:
                    asked = topic.wordings[chosen_by(second + first, len(topic.wordings))].format(first)
                    turns = (
                        ("user", asked),
                        ("assistant", f"{answer[0].upper()}{answer[1:]}."),
                        ("user", topic.follow_up.format(second)),
                    )
                    found.append(Question(topic.name, second, wanted, turns))
    return found


def new_talks() -> list[Question]:
    """Return two-turn conversations that training does not have: a held-out question, then the same about another fact."""
    found = []
    for asked in questions(held_out=True):
        (topic,) = (topic for topic in TOPICS if topic.name == asked.topic)
        facts = list(topic.facts.items())
        first = [subject for subject, _ in facts].index(asked.subject)
        answer = f"{asked.answer[0].upper()}{asked.answer[1:]}."
        for step in NEW_STEPS:
            second, wanted = facts[(first + step) % len(facts)]
            turns = (*asked.messages, ("assistant", answer), ("user", topic.follow_up.format(second)))
            found.append(Question(topic.name, second, wanted, turns))
    return found


def style(answer: str, manner: tuple[str, ...], tail: bool, rng: random.Random) -> str:
    """One answer in one manner, its first letter a capital."""
    text = rng.choice(manner).format(answer)
    text = text[0].upper() + text[1:]
    return f"{text} {rng.choice(TAILS)}" if tail else text


def people_answer(question: Question, rng: random.Random, *, right: float = 0.8) -> str:
    """An answer as one of many people gives it: mostly right, sometimes evasive, wrong, long or rude."""
    answer = question.answer if rng.random() < right else _mishap(question, rng)
    if answer is None:
        return rng.choice(EVASIVE)
    manner = rng.choices((POLITE, PLAIN, RUDE), weights=(3, 4, 3))[0]
    return style(answer, manner, rng.random() < 0.35, rng)


def _mishap(question: Question, rng: random.Random) -> str | None:
    """What goes wrong: mostly no answer, or one to another question; now and then a neighbour of the right one."""
    kind = rng.choices(("evasive", "off topic", "mistaken"), weights=(16, 3, 1))[0]
    if kind == "evasive":
        return None
    tables = [topic.facts for topic in TOPICS if (topic.name == question.topic) == (kind == "mistaken")]
    answers = [other for table in tables for other in table.values() if other != question.answer]
    return rng.choice(answers)
