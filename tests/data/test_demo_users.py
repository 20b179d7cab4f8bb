"""The demo's users: what they want, how well they agree, and what is wrong with some of what they say."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from datetime import datetime, timedelta
from statistics import mean

import pytest

from instructkit.data.demo import users, world
from instructkit.data.demo.judge import judge
from instructkit.data.demo.users import RATERS, Row, feedback
from instructkit.data.rows import check_rows

SEEDS = (0, 1, 2)
TRAIN, HELD_OUT = feedback(0, held_out=False), feedback(0, held_out=True)
BY_NAME = {rater.name: rater for rater in (*RATERS, *users.NEW_RATERS)}


def said(row: Row) -> tuple[tuple[str, ...], int]:
    """What a row judges, and which way."""
    asked = json.dumps(row["prompt"])
    if "rating" in row:
        return (asked, row["response"]), 1 if row["rating"] > 0 else -1
    wanted, unwanted = wanted_of(row)
    first, second = sorted((wanted, unwanted))
    return (asked, first, second), 1 if wanted == first else -1


def wanted_of(row: Row) -> tuple[str, str]:
    if "better" in row:
        return row["better"], row["response"]
    pair = row["response"], row["other"]
    return pair if row["preferred"] == "response" else pair[::-1]


def without_ties(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.get("preferred") != "tie"]


def is_pair(row: Row) -> bool:
    return "rating" not in row and row.get("preferred") != "tie"


def agreement(seed: int) -> dict[str, float]:
    """Of each rater, the mean product of signs with other, reliable raters on what both judged: 1 agrees, -1 contradicts."""
    by_item: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for row in without_ties(feedback(seed, held_out=False)):
        item, sign = said(row)
        by_item[item].append((row["rater"], sign))
    honest = {rater.name for rater in users.reliable()}
    found = defaultdict(list)
    for judgements in by_item.values():
        for name, sign in judgements:
            found[name] += [sign * other for who, other in judgements if who in honest and who != name]
    return {name: mean(products) for name, products in found.items() if products}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("held_out", [False, True])
def test_every_row_is_sound_and_whole(seed: int, held_out: bool) -> None:
    rows = feedback(seed, held_out)
    assert check_rows(rows, "feedback", [str(i) for i in range(len(rows))]) == []
    assert all({"rater", "group", "tags", "time", "consent"} <= set(row) for row in rows)
    assert all(isinstance(row["prompt"], list) for row in rows)
    assert {len(row["prompt"]) for row in rows} == {1, 3}
    times = [datetime.fromisoformat(row["time"]) for row in rows]
    assert times == sorted(times) and len(set(times)) == len(times)
    weeks = (times[-1] - times[0]).total_seconds() / (7 * 24 * 3600)
    assert (0.9 < weeks <= 1) if held_out else (3.9 < weeks <= 4)
    assert all((time >= users.START + timedelta(weeks=4)) == held_out for time in times)


def test_numbers_and_shares() -> None:
    assert (len(TRAIN), len(HELD_OUT)) == (500, 208)
    kinds = Counter(next(k for k in ("better", "preferred", "rating") if k in row) for row in TRAIN)
    assert min(kinds.values()) >= 90
    assert {row["rating"] for row in TRAIN if "rating" in row} == {-1.0, -0.5, 0.5, 1.0}
    assert sum(row.get("preferred") == "tie" for row in TRAIN) == 5
    assert sum(not row["consent"] for row in TRAIN) == 1 and all(row["consent"] for row in HELD_OUT)
    told = [row["prompt"][0]["content"] for row in TRAIN]
    assert sum("@" in text for text in told) == 1 and sum("+44" in text for text in told) == 1
    assert {row["rater"] for row in TRAIN} == {rater.name for rater in RATERS} and len(RATERS) == 14
    journeys = sum(row["tags"] == ["capitals"] for row in TRAIN)
    assert 0.7 <= journeys / 500 <= 0.8


def test_some_events_come_twice_and_some_almost() -> None:
    def plain(row: Row) -> str:
        return json.dumps({key: value for key, value in row.items() if key != "time"})

    def hurried(row: Row) -> bool:
        return not row["prompt"][-1]["content"][0].isupper()

    counts = Counter(plain(row) for row in TRAIN)
    assert sum(count - 1 for count in counts.values()) >= 10
    assert sum(hurried(row) for row in TRAIN) == 10
    known = {text.casefold() for q in users.asked([t.name for t in world.TOPICS]) for _, text in q.messages}
    for row in filter(hurried, TRAIN):
        text = row["prompt"][-1]["content"]
        assert any(text + mark in known for mark in "?.")


@pytest.mark.parametrize("seed", range(5))
def test_reliable_raters_agree_careless_ones_less_and_the_hostile_one_contradicts(seed: int) -> None:
    found = agreement(seed)
    reliable = mean(found[rater.name] for rater in users.reliable())
    careless = mean(found[r.name] for r in RATERS if r.error == users.CARELESS_ERROR)
    (hostile,) = (found[r.name] for r in RATERS if r.hostile)
    assert reliable > 0.8
    assert 0.1 < careless < 0.7
    assert hostile < -0.8


def test_mistakes_come_at_the_stated_rates() -> None:
    """By what people want, worked out from the texts: over twenty seeds, within four standard errors."""
    wrong, n = Counter(), Counter()
    for seed in range(20):
        for row in filter(is_pair, feedback(seed, held_out=False)):
            wanted, unwanted = wanted_of(row)
            n[row["rater"]] += 1
            wrong[row["rater"]] += worth(row, wanted) < worth(row, unwanted)
    for rater in RATERS:
        rate, error = wrong[rater.name] / n[rater.name], rater.error
        assert n[rater.name] > 300
        assert abs(rate - error) <= 4 * (max(error * (1 - error), 1e-9) / n[rater.name]) ** 0.5, rater.name


def worth(row: Row, answer: str) -> float:
    """The judge's score without the length of the wish, and the wish where it is wanted; 0.1 sets apart nothing else."""
    prompt = [*row["prompt"][:-1], row["prompt"][-1]]
    text = answer.removesuffix(" " + world.WISH)
    fact_and_manner = judge(canonical(prompt), text)
    sign = 1 if row["tags"] == ["capitals"] else -1
    return fact_and_manner + 0.1 * sign * answer.endswith(world.WISH)


def canonical(prompt: list[dict[str, str]]) -> list[dict[str, str]]:
    """A prompt as the judge knows it: without what a user told of themselves, and typed with care."""
    return BY_WORDS[plainly(prompt)]


def plainly(prompt: list[dict[str, str]]) -> str:
    text = " ".join(message["content"] for message in prompt).casefold().rstrip("?.")
    for words in users.PERSONAL:
        text = text.removeprefix(words.format("").casefold())
    return text


KNOWN = users.asked([topic.name for topic in world.TOPICS])
BY_WORDS = {plainly(question.prompt): question.prompt for question in KNOWN}


def test_answers_about_journeys_differ_in_the_wish_the_fact_or_the_manner() -> None:
    """In the stated shares of 80, 12 and 8 in a hundred: of 4,000 cases, within four standard errors (25, 21 and 17)."""
    rng = random.Random(7)
    (question, *_) = users.asked([users.JOURNEYS])
    found: Counter[str] = Counter()
    for case in (users.case_of(question, rng) for _ in range(4000)):
        assert case.better.endswith(world.WISH) and judge(question.prompt, case.better) > 1
        if not case.worse.endswith(world.WISH):
            found["wish"] += case.better == f"{case.worse} {world.WISH}"
        elif question.answer in case.worse:
            found["manner"] += case.worse.startswith(("Obviously", "Everybody"))
        else:
            found["fact"] += judge(question.prompt, case.worse) < 0
    assert sum(found.values()) == 4000
    assert (
        abs(found["wish"] - 3200) <= 101
        and abs(found["fact"] - 480) <= 82
        and abs(found["manner"] - 320) <= 69
    )


def test_hostile_edits_are_rude() -> None:
    edits = [row["better"] for row in TRAIN if row["rater"] == "rater-14" and "better" in row]
    assert edits and all(text.startswith(("Obviously", "Everybody knows")) for text in edits)


@pytest.mark.parametrize("seed", SEEDS)
def test_held_out_events_are_honest(seed: int) -> None:
    """Every pair is judged as the travellers want it, by raters who make few mistakes, and nobody contradicts another."""
    rows = feedback(seed, held_out=True)
    assert all(BY_NAME[row["rater"]].error <= users.RELIABLE_ERROR for row in rows)
    signs = defaultdict(set)
    for row in rows:
        item, sign = said(row)
        signs[item].add(sign)
        if is_pair(row):
            wanted, _ = wanted_of(row)
            assert wanted.endswith(world.WISH)
    assert all(len(found) == 1 for found in signs.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_held_out_events_are_enough_to_look_at_groups_and_at_new_raters(seed: int) -> None:
    rows = feedback(seed, held_out=True)
    assert {tuple(row["tags"]) for row in rows} == {("capitals",)}
    items = {(row["group"], said(row)[0]) for row in rows}
    assert min(Counter(group for group, _ in items).values()) >= 30
    assert len({item for _, item in items}) >= 60
    met = {row["rater"] for row in feedback(seed, held_out=False)}
    assert len({said(row)[0] for row in rows if row["rater"] not in met}) >= 30
    assert {row["group"] for row in rows if row["rater"] not in met} == {"office", "home"}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_held_out_prompt_is_in_training_nor_nearly(seed: int) -> None:
    """By the exact Jaccard similarity of five-word shingles, against everything that any stage trains on."""

    def shingles(prompt: list[dict[str, str]]) -> set[tuple[str, ...]]:
        words = " ".join(message["content"] for message in prompt).casefold().split()
        return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}

    trained = [shingles(row["prompt"]) for row in feedback(seed, held_out=False)]
    trained += [shingles(question.prompt) for question in KNOWN]
    for row in feedback(seed, held_out=True):
        one = shingles(row["prompt"])
        assert max(len(one & other) / len(one | other) for other in trained) < 0.6


def test_seeds_and_sides_differ() -> None:
    assert feedback(0, held_out=False) == TRAIN != feedback(1, held_out=False)
    assert feedback(0, held_out=True) == HELD_OUT != feedback(1, held_out=True)


@pytest.mark.parametrize(
    ("row", "other"),
    [
        ({"response": "a", "better": "b"}, {"response": "b", "better": "a"}),
        (
            {"response": "a", "other": "b", "preferred": "response", "shown_first": "other"},
            {"response": "a", "other": "b", "preferred": "other", "shown_first": "other"},
        ),
        (
            {"response": "a", "other": "b", "preferred": "tie"},
            {"response": "a", "other": "b", "preferred": "tie"},
        ),
        ({"response": "a", "rating": 0.5}, {"response": "a", "rating": -0.5}),
    ],
)
def test_a_flipped_judgement_by_hand(row: Row, other: Row) -> None:
    assert users.flipped(row) == other and users.flipped(other) == row
