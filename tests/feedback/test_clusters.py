"""Clusters of prompts: what is near by exact Jaccard, and that nothing that was answered ever moves."""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructkit.data import near_duplicates
from instructkit.data.near_duplicates import prompt_text, similarity
from instructkit.errors import InputError
from instructkit.feedback.preprocess.pipeline import side
from instructkit.feedback.store import clusters
from instructkit.feedback.store.clusters import ClusterIndex
from instructkit.feedback.store.salvage import Rest
from instructkit.feedback.store.store import Store

WORDS = [f"w{i}" for i in range(300)]


def exact(one: str, other: str) -> float:
    """Jaccard similarity of 5-word shingles, by its definition."""
    a, b = (
        {tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (one.split(), other.split())
    )
    return len(a & b) / len(a | b)


def text(draw: random.Random, words: int = 60) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def changed(said: str, *places: int) -> str:
    words = said.split()
    for place in places:
        words[place] = f"new{place}"
    return " ".join(words)


def touched(prompts: Iterable[str], **options) -> list[tuple[int, ...]]:
    return list(ClusterIndex(**options).touched(prompts))


def families(seed: int, count: int = 40) -> list[str]:
    """Prompts of which many are nearly others, or others again."""
    draw = random.Random(seed)
    told = [text(draw, draw.choice((3, 12, 40)))]
    while len(told) < count:
        kind, earlier = draw.random(), draw.choice(told)
        places = draw.sample(range(len(earlier.split())), k=min(2, len(earlier.split())))
        new = (
            text(draw, draw.choice((3, 12, 40)))
            if kind < 0.3
            else changed(earlier, *places[: draw.randint(1, 2)])
        )
        told.append(earlier if kind > 0.8 else new)
    return told


def test_repeats_near_duplicates_and_others() -> None:
    base = text(random.Random(1))
    near, far = changed(base, 59), changed(base, 10, 30, 50)
    assert exact(base, near) == 55 / 57 and exact(base, far) == 41 / 71
    given = [base, far, near, f"  {base.upper()}\n", "hi there", "Hi  there", "hi, there"]
    assert touched(given) == [(1,), (2,), (1,), (1,), (3,), (3,), (4,)]


def test_unicode_forms_are_one_and_scripts_without_spaces_have_words() -> None:
    composed, decomposed = "caf\u00e9 au lait", "CAFE\u0301 au lait"
    assert touched([composed, decomposed]) == [(1,), (1,)]
    said = "".join(chr(0x4E00 + i) for i in range(40))
    assert touched([said, said[:-1] + "\u9000", said[::-1]]) == [(1,), (1,), (2,)]


def test_a_prompt_between_two_clusters_has_both_and_hands_them_on() -> None:
    """Two ends 10 changed words apart; the middle has 5 of them, and is near both."""
    base = text(random.Random(2), 100)
    one, other = changed(base, *range(0, 10)), changed(base, *range(90, 100))
    assert exact(one, base) == exact(base, other) == 86 / 106 and exact(one, other) == 76 / 116
    later = changed(base, 50)
    assert exact(later, base) == 91 / 101 and max(exact(later, one), exact(later, other)) < 0.8
    assert touched([one, other, base, later, one]) == [(1,), (2,), (1, 2), (1, 2), (1,)]
    assert touched([base, one, other]) == [(1,), (1,), (1,)]


def test_nearness_is_the_exact_similarity() -> None:
    """Pairs on both sides of the threshold: never near below it, and found above it as often as the bands promise."""
    draw, found, above = random.Random(3), 0, 0
    for _ in range(400):
        one = text(draw, draw.randint(30, 120))
        other = changed(one, *draw.sample(range(len(one.split())), k=draw.randint(1, 4)))
        answer = touched([one, other])
        if exact(one, other) < 0.8:
            assert answer == [(1,), (2,)]
        else:
            found, above = found + (answer == [(1,), (1,)]), above + 1
    assert above > 130
    assert found / above >= 0.99


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9, 1.0])
def test_other_thresholds(threshold: float) -> None:
    draw, found, above = random.Random(4), 0, 0
    for _ in range(100):
        one = text(draw, 60)
        other = changed(one, *draw.sample(range(60), k=draw.randint(0, 4)))
        near = touched([one, other], threshold=threshold) == [(1,), (1,)]
        assert not near or exact(one, other) >= threshold
        found, above = found + near, above + (exact(one, other) >= threshold)
    assert above >= 15 and found / above >= 0.97


def test_long_prompts_are_estimated_within_the_stated_error() -> None:
    draw = random.Random(5)
    errors = []
    for changes in (5, 20, 60) * 10:
        one = text(draw, 2000)
        other = changed(one, *draw.sample(range(2000), k=changes))
        (a, _), (b, _) = near_duplicates.signatures(
            [near_duplicates.shingles(t.split()) for t in (one, other)], 5
        )
        assert len(a) == len(b) == near_duplicates.SKETCH
        errors.append(similarity(a, b) - exact(one, other))
    assert max(map(abs, errors)) < 4 * 0.0313
    assert abs(sum(errors) / len(errors)) < 3 * 0.0313 / len(errors) ** 0.5


def test_similarity_of_sets_by_hand() -> None:
    assert similarity(frozenset({1, 2, 3}), frozenset({2, 3, 4})) == 0.5
    # The 256 smallest of both are 0..255; of these 128..255 are in both.
    assert similarity(frozenset(range(256)), frozenset(range(128, 384))) == 0.5
    assert similarity(frozenset(range(256)), frozenset(range(0, 512, 2))) == 0.5


def test_many_variants_of_one_prompt_are_one_cluster() -> None:
    """Buckets that are full take no more, and what comes then is near one of those that are there."""
    base = text(random.Random(6), 100)
    variants = [changed(base, place) + f" end{i}" for i, place in itertools.product(range(30), range(100))]
    index = ClusterIndex()
    assert set(index.touched([base, *variants])) == {(1,)}
    fullest = "SELECT max(n) FROM (SELECT count(*) AS n FROM prompt_band GROUP BY band)"
    assert index._db.execute(fullest).fetchone()[0] == clusters.BUCKET


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40))
def test_what_comes_later_changes_no_answer(seed: int, cut: int) -> None:
    told = families(seed)
    assert touched(told[:cut]) == touched(told)[:cut]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 30, 80]))
def test_batches_change_no_answer(seed: int, batch: int) -> None:
    told = families(seed)
    with pytest.MonkeyPatch.context() as patch:
        whole = touched(told)
        patch.setattr(clusters, "BATCH_WORDS", batch)
        patch.setattr(clusters, "SIGNED", 2)
        assert touched(told) == whole


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 39))
def test_a_store_that_was_closed_goes_on_as_if_it_had_not_been(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cut: int
) -> None:
    told, answers = families(seed), []
    path = tmp_path_factory.mktemp("store") / "feedback.db"
    index = ClusterIndex()
    whole = list(index.touched(told))
    for part in (told[:cut], told[cut:], told):
        with Store.open(path, create=True) as store:
            answers += store.clusters(0.8).touched(part)
            positions = [
                store.clusters(0.8).position(each) for each in sorted({i for t in whole[:cut] for i in t})
            ]
    assert answers == [*whole, *whole]
    assert positions == [index.position(each) for each in sorted({i for t in whole[:cut] for i in t})]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.5), st.floats(0, 0.4))
def test_a_cluster_has_one_side_whatever_comes(seed: int, test: float, tune: float) -> None:
    """Its place is the founder's alone: it is the same in an index that met nothing else."""
    told = families(seed)
    index = ClusterIndex()
    founders: dict[int, str] = {}
    for prompt, answer in zip(told, index.touched(told), strict=True):
        for cluster in answer:
            founders.setdefault(cluster, prompt)
    for cluster, prompt in founders.items():
        alone = ClusterIndex()
        assert list(alone.touched([prompt])) == [(1,)]
        assert alone.position(1) == index.position(cluster)
        assert side(alone.position(1), tune, test) == side(index.position(cluster), tune, test)


def test_positions_are_even() -> None:
    """Kolmogorov and Smirnov: at most 1.95 / sqrt(n) from the diagonal (p 0.001)."""
    draw, index = random.Random(7), ClusterIndex()
    made = list(index.touched(text(draw, 20) for _ in range(3000)))
    positions = sorted(index.position(cluster) for (cluster,) in made)
    assert positions[0] >= 0 and positions[-1] < 1 and len(set(positions)) == 3000
    assert max(abs((i + 0.5) / 3000 - at) for i, at in enumerate(positions)) < 1.95 / 3000**0.5


@pytest.mark.parametrize(
    ("position", "wanted"),
    [(0.0, "test"), (0.2999, "test"), (0.3, "tune"), (0.3999, "tune"), (0.4, "train"), (0.9999, "train")],
)
def test_sides(position: float, wanted: str) -> None:
    assert side(position, tune=0.1, test=0.3) == wanted


def test_the_library_hashes_as_it_did() -> None:
    """Signatures are kept in stores: those of another version would be near nothing that is there."""
    ((sketch, bands),) = near_duplicates.signatures([["a b c d e", "b c d e f"]], 5)
    assert (near_duplicates.algorithm(), sorted(sketch), bands[:2]) == (2, SKETCH_OF_TWO, BANDS_OF_TWO)


SKETCH_OF_TWO = [2366675413644091437, 4534428226273282643]
BANDS_OF_TWO = [7648352721779700865, -4453218110181632112]


def test_the_text_of_a_prompt() -> None:
    system, asked = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi?"}
    assert prompt_text("Hi?") == prompt_text([asked]) == prompt_text([system, asked]) == "Hi?"
    assert prompt_text([system]) == "Be kind."
    assert prompt_text([asked, {"role": "assistant", "content": "Yes."}, asked]) == "Hi?\nYes.\nHi?"


def test_a_store_keeps_its_threshold_and_no_text(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    secret = "correct horse battery staple over there"
    with Store.open(path, create=True) as store:
        list(store.clusters(0.8).touched([secret]))
        with pytest.raises(InputError, match="made with .*0.8.*; wanted .*0.7") as error:
            store.clusters(0.7)
        assert "feedback.near_duplicates" in error.value.hint
        assert Rest.of(path).damage() == []
    assert not any(b"horse" in file.read_bytes() for file in tmp_path.iterdir())
    with Store.open(path) as store, pytest.raises(KeyError):
        store.clusters(0.8).position(2)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.sampled_from([1, 80, 10_000]))
def test_an_index_that_keeps_nothing_answers_the_same(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cut: int, batch: int
) -> None:
    told = families(seed)
    path = tmp_path_factory.mktemp("store") / "feedback.db"
    index = ClusterIndex()
    whole = list(index.touched(told))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "BATCH_WORDS", batch)
        with Store.open(path, create=True) as store:
            list(store.clusters(0.8).touched(told[:cut]))
        for _ in range(2):
            with Store.open(path) as store:
                before = list(store._db.iterdump())
                apart = store.clusters(0.8, keep=False)
                assert [*apart.touched(told[cut:]), *apart.touched(told)] == [*whole[cut:], *whole]
                everything = sorted({i for answer in whole for i in answer})
                assert [apart.position(i) for i in everything] == [index.position(i) for i in everything]
                with pytest.raises(KeyError):
                    apart.position(everything[-1] + 1)
                assert list(store._db.iterdump()) == before
        with Store.open(path) as store:
            assert list(store.clusters(0.8).touched(told)) == whole


def test_an_index_that_keeps_nothing_stands_above_the_store_as_it_was(tmp_path: Path) -> None:
    """What another process places meanwhile gets the same numbers, and is not mixed up with what is placed here."""
    path = tmp_path / "feedback.db"
    with Store.open(path, create=True) as store, Store.open(path) as other:
        list(other.clusters(0.8).touched(["a b c d e"]))
        apart = store.clusters(0.8, keep=False)
        assert list(apart.touched(["a b c d e", "f g h i j"])) == [(1,), (2,)]
        assert list(other.clusters(0.8).touched(["k l m n o", "f g h i j"])) == [(2,), (3,)]
        assert list(apart.touched(["k l m n o", "f g h i j"])) == [(3,), (2,)]
        assert apart.position(2) == other.clusters(0.8).position(3)


def test_an_index_that_keeps_nothing_pins_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path / "feedback.db", create=True) as store:
        list(store.clusters(0.5, keep=False).touched(["x"]))
        list(store.clusters(0.8).touched(["x"]))
        with pytest.raises(InputError, match="made with .*0.8.*; wanted .*0.5"):
            store.clusters(0.5, keep=False)


def test_a_batch_that_fails_above_a_store_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = families(8)
    with Store.open(tmp_path / "feedback.db", create=True) as store:
        index = store.clusters(0.8, keep=False)
        monkeypatch.setattr(
            clusters._Near, "write", lambda self: (_ for _ in ()).throw(sqlite3.OperationalError("full"))
        )
        with pytest.raises(sqlite3.OperationalError, match="full"):
            list(index.touched(told))
        for table in clusters.TABLES:
            assert not index._db.execute(f"SELECT * FROM {table}").fetchall()
        monkeypatch.undo()
        assert list(index.touched(told)) == touched(told)


def test_questions_above_a_store_are_answered_by_keys(tmp_path: Path) -> None:
    """Nothing reads a whole table: a plan costs what its new prompts cost."""
    with Store.open(tmp_path / "feedback.db", create=True) as store:
        index = store.clusters(0.8, keep=False)
        asked: list[str] = []
        index._db.set_trace_callback(asked.append)
        list(index.touched(families(9)))
        index.position(1)
        index._db.set_trace_callback(None)
        questions = {text for text in asked if text.startswith("SELECT")}
        assert len(questions) >= 6
        for text in questions:
            for *_, step in index._db.execute(f"EXPLAIN QUERY PLAN {text}"):
                assert not step.startswith(("SCAN main", "SCAN kept")) or "ORDER BY id DESC LIMIT 1" in text


def test_events_are_read_while_their_prompts_are_placed_and_others_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instructkit.feedback.store.events import event_of

    monkeypatch.setattr(clusters, "BATCH_WORDS", 8000)
    path = tmp_path / "feedback.db"
    rows = [
        {"prompt": f"question number {i} of very many that are asked", "response": "a", "rating": 1}
        for i in range(2500)
    ]
    with Store.open(path, create=True) as store, Store.open(path) as other:
        list(store.add((event_of(row, source="x", consent=True), row) for row in rows))
        read = iter(store.events())
        told = store.clusters(0.8).touched(prompt_text(event.prompt) for event in read)
        first = next(told)
        assert next(read).prompt.startswith("question number")  # so that it is read on behind this batch
        list(other.add([(event_of({**rows[0], "rating": -1}, source="x", consent=True), {"time": None})]))
        assert first == (1,) and len(list(told)) == 2498


def test_a_batch_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    index = ClusterIndex()
    told = families(8)
    monkeypatch.setattr(
        clusters._Near, "write", lambda self: (_ for _ in ()).throw(sqlite3.OperationalError("full"))
    )
    with pytest.raises(sqlite3.OperationalError, match="full"):
        list(index.touched(told))
    monkeypatch.undo()
    assert list(index.touched(told)) == touched(told)
