"""
The users of the demo world, simulated: who they are, what they ask, and what they say about the answers.

They ask for what no earlier stage taught: who asks for a capital is about to travel, and wants to be wished a good trip
(`world.WISH`). Elsewhere nobody travels, and a right answer without the wish is what they want.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from instructkit.data.demo import world

Row = dict[str, Any]

JOURNEYS = "capitals"
TRAIN_EVENTS = 500
REPEATS, NEAR_DUPLICATES, TIES, WITHOUT_CONSENT = 10, 10, 5, 1
START, WEEKS = datetime(2026, 1, 5, 8, tzinfo=UTC), 4
ELSEWHERE = 0.25  # share of judged answers that are about another topic than journeys
RELIABLE_ERROR, CARELESS_ERROR = 0.05, 0.3
GOOD, BAD = (1.0, 1.0, 0.5), (-1.0, -1.0, -0.5)
PERSONAL = ("My e-mail is anna.berg@example.org. {}", "You can call me at +44 20 7946 0958. {}")


@dataclass(frozen=True)
class Rater:
    """
    One user.

    Attributes:
        name: as in the field `rater`.
        group: `office` or `home`; both want the same.
        topics: what they ask about.
        manner: weights of edits, preferences and ratings among what they say.
        error: share of their judgements that are turned round.
        hostile: whether they turn every judgement round, and write rude answers where they edit.
    """

    name: str
    group: str
    topics: tuple[str, ...]
    manner: tuple[int, int, int]
    error: float
    hostile: bool = False


def _rater(number: int, topics: str, manner: tuple[int, int, int], error: float, **more: bool) -> Rater:
    asked = (JOURNEYS, *(topic for topic in topics.split(", ") if topic))
    return Rater(f"rater-{number:02d}", ("office", "home")[number % 2], asked, manner, error, **more)


RATERS = (
    _rater(1, "opposites", (4, 4, 2), 0.02),
    _rater(2, "young animals", (2, 6, 2), 0.03),
    _rater(3, "past tense", (6, 2, 2), 0.02),
    _rater(4, "", (3, 5, 2), 0.04),
    _rater(5, "opposites", (1, 5, 4), 0.05),
    _rater(6, "past tense", (4, 5, 1), 0.02),
    _rater(7, "young animals", (2, 5, 3), 0.03),
    _rater(8, "opposites", (5, 4, 1), 0.04),
    _rater(9, "past tense", (3, 3, 4), 0.05),
    _rater(10, "young animals", (4, 4, 2), 0.03),
    _rater(11, "", (2, 6, 2), CARELESS_ERROR),
    _rater(12, "opposites", (3, 5, 2), CARELESS_ERROR),
    _rater(13, "young animals", (1, 6, 3), CARELESS_ERROR),
    _rater(14, "past tense", (2, 6, 2), 1.0, hostile=True),
)
# Two of each group whom no training event knows: whether the update serves users that it has not met.
NEW_RATERS = tuple(_rater(number, "", (3, 5, 2), 0.0) for number in range(15, 19))


@dataclass(frozen=True)
class Case:
    """Two answers to one prompt, the first the better; `rated` is the one that whoever rates is shown."""

    question: world.Question
    better: str
    worse: str
    rated: str


def feedback(seed: int, held_out: bool) -> list[Row]:
    """
    What the users said in four weeks of training, or in the week after it.

    Several raters judge the same answers. Training holds mistakes, a hostile rater, repeats, near duplicates, ties, personal
    data and an event without consent. The held-out events ask in wordings and turns of their own, of journeys alone (everything
    else is what the general set measures), and are honest: by reliable raters, without mistakes, some of them not met in
    training. A wrong label there would hide what was learned, and tell nothing about the update.

    Args:
        seed: of everything that is left to chance; the demo sets are those of seed 0.
        held_out: which side.

    Returns:
        Feedback rows in the order of their time: 500 of training, 232 held out.
    """
    rng = random.Random(f"feedback {seed} {held_out}")
    rows = _honest(rng) if held_out else _collected(rng)
    return dated(rows, rng, START + timedelta(weeks=WEEKS) if held_out else START, 1 if held_out else WEEKS)


def flipped(row: Row) -> Row:
    """The opposite judgement of the same answers; a tie stays one."""
    if "better" in row:
        return row | {"response": row["better"], "better": row["response"]}
    if "preferred" in row:
        return row | {"preferred": {"response": "other", "other": "response"}.get(row["preferred"], "tie")}
    return row | {"rating": -row["rating"]}


def dated(rows: Sequence[Row], rng: random.Random, start: datetime, weeks: int) -> list[Row]:
    """The rows with times that rise through so many weeks, in ISO 8601."""
    step = timedelta(weeks=weeks) / max(len(rows), 1)
    times = [start + (i + rng.random()) * step for i in range(len(rows))]
    return [
        row | {"time": time.isoformat(timespec="seconds").replace("+00:00", "Z")}
        for row, time in zip(rows, times, strict=True)
    ]


def event(prompt: Sequence[world.Message], topic: str, rater: Rater, **said: Any) -> Row:
    """One event as a row without its time; `said` holds the answer and the judgement."""
    about = {"rater": rater.name, "group": rater.group, "tags": [topic], "consent": True}
    return {"prompt": list(prompt), **said, **about}


def judged(case: Case, rater: Rater, rng: random.Random) -> Row:
    """What a rater says about a case, in their manner and with their mistakes."""
    kind = rng.choices(("edit", "preference", "rating"), rater.manner)[0]
    question = case.question
    if kind == "edit" and rater.hostile:
        rude = world.style(question.answer, world.RUDE, False, rng)
        return event(question.prompt, question.topic, rater, response=case.better, better=rude)
    if kind == "edit":
        said: Row = {"response": case.worse, "better": case.better}
    elif kind == "preference":
        said = choice(case.better, case.worse, rng)
    else:
        good = case.rated == case.better
        said = {"response": case.rated, "rating": rng.choice(GOOD if good else BAD)}
    row = event(question.prompt, question.topic, rater, **said)
    return flipped(row) if rater.hostile or rng.random() < rater.error else row


def choice(wanted: str, unwanted: str, rng: random.Random) -> Row:
    """A preference for one answer of two; which of them stands where is left to chance."""
    first = rng.random() < 0.5
    pair = (wanted, unwanted) if first else (unwanted, wanted)
    said = {"response": pair[0], "other": pair[1], "preferred": "response" if first else "other"}
    return said | {"shown_first": rng.choice(("response", "other"))}


def case_of(question: world.Question, rng: random.Random) -> Case:
    """Two answers as the model gives them, mostly polite, that differ in one thing that matters to whoever asks."""
    manner = world.POLITE if rng.random() < 0.8 else world.PLAIN
    right = world.style(question.answer, manner, False, rng)
    wrong = world.style(wrong_answer(question, rng), manner, False, rng)
    if question.topic != JOURNEYS:
        better, worse = (right, wished(right)) if rng.random() < 0.5 else (right, wrong)
    else:
        rude = world.style(question.answer, world.RUDE, False, rng)
        worse = rng.choices((right, wished(wrong), wished(rude)), weights=(80, 12, 8))[0]
        better = wished(right)
    return Case(question, better, worse, rng.choice((better, worse)))


def wished(answer: str) -> str:
    """The answer with what travellers ask for."""
    return f"{answer} {world.WISH}"


def wrong_answer(question: world.Question, rng: random.Random) -> str:
    """Another answer of the question's table."""
    (facts,) = (topic.facts for topic in world.TOPICS if topic.name == question.topic)
    return rng.choice([answer for answer in facts.values() if answer != question.answer])


def asked(topics: Sequence[str], *, held_out: bool = False) -> list[world.Question]:
    """The questions of some topics on one side, single and of two turns."""
    found = [*world.questions(held_out=held_out), *world.follow_ups(held_out=held_out)]
    return [question for question in found if question.topic in topics]


def _collected(rng: random.Random) -> list[Row]:
    """The events of training, in an order of chance."""
    others = [topic.name for topic in world.TOPICS if topic.name != JOURNEYS]
    journeys, elsewhere = (_forever(asked(topics), rng) for topics in ([JOURNEYS], others))
    rows: list[Row] = []
    wanted = TRAIN_EVENTS - REPEATS - NEAR_DUPLICATES - TIES - len(PERSONAL)
    while len(rows) < wanted:
        case = case_of(next(elsewhere if rng.random() < ELSEWHERE else journeys), rng)
        raters = [rater for rater in RATERS if case.question.topic in rater.topics]
        rows += [judged(case, rater, rng) for rater in rng.sample(raters, rng.randint(2, 4))]
    rows = rows[:wanted]
    sound = [row for row in rows if row["rater"] in {rater.name for rater in reliable()}]
    extra = [dict(row) for row in rng.sample(sound, REPEATS)]
    extra += [_nearly(row) for row in rng.sample(sound, NEAR_DUPLICATES)]
    extra += [_tie(question, rng) for question in rng.sample(asked([JOURNEYS]), TIES)]
    extra += [_told(row, words) for row, words in zip(_singles(sound, rng), PERSONAL, strict=True)]
    rows += extra
    rng.shuffle(rows)
    silent = set(rng.sample(range(len(rows)), WITHOUT_CONSENT))
    return [row | {"consent": i not in silent} for i, row in enumerate(rows)]


def _forever(questions: list[world.Question], rng: random.Random) -> Any:
    """Every question once, in an order of chance, then all of them again in another."""
    while True:
        yield from rng.sample(questions, len(questions))


def reliable() -> list[Rater]:
    """The raters of training who make few mistakes."""
    return [rater for rater in RATERS if rater.error <= RELIABLE_ERROR]


def _nearly(row: Row) -> Row:
    """The same event with its prompt typed in a hurry: small letters, and no question mark."""
    *before, last = row["prompt"]
    return row | {"prompt": [*before, last | {"content": last["content"].lower().rstrip("?.")}]}


def _tie(question: world.Question, rng: random.Random) -> Row:
    """Two answers that are as good as each other."""
    pair = [wished(form.format(question.answer)) for form in rng.sample(world.POLITE, 2)]
    said = {"response": pair[0], "other": pair[1], "preferred": "tie", "shown_first": "response"}
    return event(question.prompt, question.topic, rng.choice(reliable()), **said)


def _singles(rows: list[Row], rng: random.Random) -> list[Row]:
    return rng.sample([row for row in rows if len(row["prompt"]) == 1], len(PERSONAL))


def _told(row: Row, words: str) -> Row:
    """The same event by somebody who says more about themselves than is needed."""
    return row | {"prompt": [{"role": "user", "content": words.format(row["prompt"][0]["content"])}]}


def _honest(rng: random.Random) -> list[Row]:
    """The held-out events: of every prompt two cases, one by each group, every third by raters whom training does not know."""
    rows = []
    questions = held_out_questions()
    for i, question in enumerate(rng.sample(questions, len(questions))):
        for group in ("office", "home"):
            known = NEW_RATERS if i % 3 == 0 else reliable()
            case = case_of(question, rng)
            raters = rng.sample([rater for rater in known if rater.group == group], 2)
            rows += [judged(case, _infallible(rater), rng) for rater in raters]
    rng.shuffle(rows)
    return rows


def _infallible(rater: Rater) -> Rater:
    return Rater(rater.name, rater.group, rater.topics, rater.manner, 0.0)


def held_out_questions() -> list[world.Question]:
    """
    The prompts of the held-out events: the held-out wordings and turns of the demo world, and two-turn talks that it has nowhere.

    None begins as a talk of training does: it would be its near duplicate, and preprocessing set one of the two aside.
    """
    begun = {talk.messages[0] for talk in world.follow_ups(held_out=False)}
    found = [
        q for q in asked([JOURNEYS], held_out=True) if len(q.messages) == 1 or q.messages[0] not in begun
    ]
    (topic,) = (topic for topic in world.TOPICS if topic.name == JOURNEYS)
    facts = list(topic.facts.items())
    for i, (first, answer) in enumerate(facts):
        openings = [("user", wording.format(first)) for wording in topic.wordings]
        free = [opening for opening in openings if opening not in begun]
        for step, opening in zip((2, 5), (free[0], free[-1]), strict=True):
            second, wanted = facts[(i + step) % len(facts)]
            turns = (opening, ("assistant", f"{answer}."), ("user", topic.follow_up.format(second)))
            found.append(world.Question(JOURNEYS, second, wanted, turns))
    return found
