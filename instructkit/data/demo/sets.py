"""The data sets of the demo world, by name; made when asked for, the same on every machine, no file shipped."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from instructkit.data.demo import bias, harms, users, world
from instructkit.data.demo.judge import judge

Row = dict[str, Any]
FEEDBACK_TOPIC = users.JOURNEYS
LABEL_NOISE = 0.1
CLEAR_DIFFERENCE = 1.2


def conversations(held_out: bool) -> list[Row]:
    """Demonstrations by people of mixed quality, single questions and two-turn conversations."""
    rng = random.Random(11 + held_out)
    singles, pairs = world.questions(held_out=held_out), world.follow_ups(held_out=held_out)
    asked = singles + pairs + world.new_talks() if held_out else singles * 12 + pairs * 6
    rng.shuffle(asked)
    rows = [{"messages": [*q.prompt, _message(world.people_answer(q, rng))]} for q in asked]
    return _not_begun(rows) if held_out else rows


def comparisons(held_out: bool) -> list[Row]:
    """Two answers to one prompt, the better first; in training one label in ten is wrong."""
    rng = random.Random(23 + held_out)
    rows = []
    for question in _asked(held_out, rng, times=2 if held_out else 12, talks=held_out):
        first, second = (world.people_answer(question, rng, right=0.6) for _ in range(2))
        difference = judge(question.prompt, first) - judge(question.prompt, second)
        if abs(difference) < CLEAR_DIFFERENCE:
            continue
        mistaken = not held_out and rng.random() < LABEL_NOISE
        better, worse = (first, second) if (difference > 0) != mistaken else (second, first)
        rows.append({"prompt": question.prompt, "chosen": [_message(better)], "rejected": [_message(worse)]})
    return rows


def prompts(held_out: bool) -> list[Row]:
    """Prompts alone."""
    rng = random.Random(37 + held_out)
    return [{"prompt": question.prompt} for question in _asked(held_out, rng, times=1)]


def wishes() -> Iterator[str]:
    """
    Answers about capitals with the travellers' wish, for the tokenizer alone.

    The embedded model hangs on every byte of them, so they are drawn as the demo's first feedback was, which named one of
    eight raters for each; the feedback of today has its own generator.
    """
    rng = random.Random(41)
    for question in _asked(False, rng, times=1, topics=[FEEDBACK_TOPIC]):
        yield users.wished(world.style(question.answer, world.POLITE, False, rng))
        rng.randrange(8)


def general_held_out() -> list[Row]:
    """Held-out demonstrations of every topic but the one that the feedback is about."""
    rng = random.Random(53)
    every = [*world.questions(held_out=True), *world.follow_ups(held_out=True), *world.new_talks()]
    asked = [question for question in every if question.topic != FEEDBACK_TOPIC] * 2
    rng.shuffle(asked)
    rows = [
        {"messages": [*question.prompt, _message(world.people_answer(question, rng))]} for question in asked
    ]
    return _not_begun(rows)


def _not_begun(rows: list[Row]) -> list[Row]:
    """Those of held-out demonstrations that share no question, or first answer, with the beginning of a trained one."""
    trained = [row["messages"] for row in conversations(False)]
    asked = {talk[0]["content"] for talk in trained if len(talk) > 2}
    answered = {(talk[0]["content"], talk[1]["content"]) for talk in trained}

    def is_new(talk: list[Row]) -> bool:
        first = talk[0]["content"]
        return (first, talk[1]["content"]) not in answered if len(talk) > 2 else first not in asked

    return [row for row in rows if is_new(row["messages"])]


DEMO_SETS: dict[str, Callable[[], list[Row]]] = {
    "demo/conversations": lambda: conversations(False),
    "demo/conversations-held-out": lambda: conversations(True),
    "demo/comparisons": lambda: comparisons(False),
    "demo/comparisons-held-out": lambda: comparisons(True),
    "demo/prompts": lambda: prompts(False),
    "demo/prompts-held-out": lambda: prompts(True),
    "demo/feedback": lambda: users.feedback(0, held_out=False),
    "demo/feedback-held-out": lambda: users.feedback(0, held_out=True),
    "demo/feedback-poisoned": lambda: harms.poisoned(0),
    "demo/bias-pairs": bias.bias_pairs,
    "demo/general-held-out": general_held_out,
}


def load(name: str) -> list[Row]:
    """
    The rows of a demo set.

    Raises:
        KeyError: when there is no set of that name.
    """
    return DEMO_SETS[name]()


def corpus() -> Iterator[str]:
    """Every text that may be trained on, for the tokenizer; the held-out ones are as new to it as to the model."""
    for row in conversations(False):
        yield from (message["content"] for message in row["messages"])
    yield from wishes()


def _asked(
    held_out: bool, rng: random.Random, *, times: int, topics: list[str] | None = None, talks: bool = False
) -> list[world.Question]:
    """Return questions in random order; with `talks` also two-turn conversations that training does not have."""
    found = [*world.questions(held_out=held_out), *world.follow_ups(held_out=held_out)]
    found = [*found, *(world.new_talks() if talks else [])] * times
    found = [question for question in found if topics is None or question.topic in topics]
    rng.shuffle(found)
    return found


def _message(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
