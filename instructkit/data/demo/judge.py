"""
The judge of the demo world: a program that scores any answer. It stands in for what people would say if they had no noise.

It labels the comparisons (some labels are then flipped) and measures at the end. No training stage sees its numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from instructkit.data.demo import world

RIGHT, WRONG = 2.0, -2.0
COURTESY, RUDENESS = 0.7, -1.0
FREE_WORDS, PER_WORD, LONGEST_PENALTY = 5, 0.15, 1.5
RUBBISH = 2.0
_WORD = re.compile(r"[a-z]+")


def judge(prompt: str | list[dict[str, str]], response: str) -> float:
    """
    Score one answer: `fact + manner - length - rubbish`.

    Fact: +2 for the right answer and no other of its table, else -2. Manner: +0.7 for courtesy, -1 for rudeness.
    Length: 0.15 for each word beyond five, at most 1.5. Rubbish: 2 times the share of words that nobody in this world uses.

    Returns:
        A score between -6.5 and 2.7; -2 for a prompt that the world does not know, before manner and length.
    """
    words = _WORD.findall(response.lower())
    extra = max(0, len(words) - FREE_WORDS)
    strange = sum(word not in _vocabulary() for word in words) / len(words) if words else 1.0
    return (
        _fact(prompt, words) + _manner(response) - min(PER_WORD * extra, LONGEST_PENALTY) - RUBBISH * strange
    )


def judge_batch(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """The judge on many answers, in the form of every judge that a recipe may name."""
    return [judge(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]


def _fact(prompt: str | list[dict[str, str]], words: list[str]) -> float:
    known = _answers().get(_key(prompt))
    if known is None:
        return WRONG
    right, others = known
    return RIGHT if right in words and not others & set(words) else WRONG


def _manner(response: str) -> float:
    def opens(manner: tuple[str, ...]) -> bool:
        return any(response.strip().startswith(form.split("{}")[0].strip()) for form in manner)

    return COURTESY if opens(world.POLITE) else RUDENESS if opens(world.RUDE) else 0.0


def _key(prompt: str | list[dict[str, str]]) -> tuple[str, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    return tuple(message["content"] for message in prompt)


@cache
def _answers() -> dict[tuple[str, ...], tuple[str, frozenset[str]]]:
    """Right answer and the wrong ones of its table, by the messages of a prompt."""
    tables = {topic.name: {answer.lower() for answer in topic.facts.values()} for topic in world.TOPICS}
    asked = [
        question
        for held_out in (False, True)
        for question in (*world.questions(held_out=held_out), *world.follow_ups(held_out=held_out))
    ]
    found = {}
    for question in [*asked, *world.new_talks()]:
        right = question.answer.lower()
        found[_key(question.prompt)] = right, frozenset(tables[question.topic] - {right})
    return found


@cache
def _vocabulary() -> frozenset[str]:
    texts = [*world.POLITE, *world.PLAIN, *world.RUDE, *world.TAILS, *world.EVASIVE, world.WISH]
    texts += [text for topic in world.TOPICS for pair in topic.facts.items() for text in pair]
    return frozenset(word for text in texts for word in _WORD.findall(text.lower()))
