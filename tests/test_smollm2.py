"""The data preparation of recipes/smollm2, on a made-up archive and offline."""

from __future__ import annotations

import importlib
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from instructkit.data.near_duplicates import prompt_text
from instructkit.feedback.store.clusters import ClusterIndex

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "smollm2"
NOUNS = ["film", "movie", "story", "script", "cast", "plot", "score", "camera", "hero", "villain"]
GOOD = ["a joy", "wonderful", "a small triumph", "moving and wise", "great fun", "better than it had to be"]
BAD = ["a bore", "dreadful", "a long nap", "hollow and loud", "no fun", "worse than it had to be"]


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in ("sentences", "prepare", "judge")}
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("sentences", "prepare", "judge"):
            sys.modules.pop(name, None)


@pytest.fixture
def sentences(modules):
    return modules["sentences"]


@pytest.fixture
def rated(sentences):
    """1,200 sentences of two signs, all different, beginning with 20 openings."""
    made = []
    for first in ("The", "This"):
        for noun in NOUNS:
            for i, (words, mean) in enumerate([(w, 2.0) for w in GOOD] + [(w, -2.0) for w in BAD]):
                for year in range(5):
                    made.append(
                        sentences.Sentence(f"{first} {noun} of {1990 + year} is {words}.", mean + i / 10)
                    )
    return made


def archive(tmp_path: Path, text: bytes, ratings: bytes) -> Path:
    """A source package with the archive in it, as the real one is nested."""

    def packed(files: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    inner = packed(
        {
            "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": text,
            "hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt": ratings,
        }
    )
    path = tmp_path / "package.tar.gz"
    root = "vaderSentiment-3.3.2"
    path.write_bytes(
        packed(
            {
                f"{root}/additional_resources/hutto_ICWSM_2014.tar.gz": inner,
                f"{root}/vaderSentiment/vader_lexicon.txt": b"good\t1.9\n",
                f"{root}/setup.py": b"",
            }
        )
    )
    return path


TEXT = "1\t2.5\tA fine    if slow    film &amp; a \u2019treat\u2019.\r\n2\t-1\t''Dull''  throughout.\r\n".encode()
RATINGS = b"1\t2.5\t0.5\t[2, 3]\r\n2\t-1\t0.0\t[-1, -1]\r\n"


def test_archive_is_read_and_mended(sentences, tmp_path):
    first, second = sentences.read_archive(archive(tmp_path, TEXT, RATINGS))
    assert first == sentences.Sentence("A fine \u2013 if slow \u2013 film & a 'treat'.", 2.5)
    assert second == sentences.Sentence('"Dull" throughout.', -1.0)


def test_scorer_alone_is_unpacked(modules, tmp_path):
    out = tmp_path / "vader"
    out.mkdir()
    modules["prepare"].unpack_scorer(archive(tmp_path, TEXT, RATINGS), out)
    files = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    assert files == ["vaderSentiment/vader_lexicon.txt"]


def test_bytes_that_are_not_utf8_are_read_as_windows_1252(sentences):
    found = sentences.parse("1\t2.5\tA clich\u00e9.\n".encode("cp1252"), RATINGS)
    assert [s.text for s in found] == ["A clich\u00e9."]


def test_a_byte_order_mark_and_an_odd_line_break_inside_a_sentence(sentences):
    (only,) = sentences.parse("\ufeff1\t2.5\tOne\u2028sentence.\r\n".encode(), b"\xef\xbb\xbf" + RATINGS)
    assert only.text == "One sentence."


def test_a_sentence_that_differs_only_in_marks_is_kept_once(sentences):
    found = sentences.parse(b"1\t2.5\tA fine film.\n2\t-1\ta fine film!\n", RATINGS)
    assert [s.text for s in found] == ["A fine film."]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"1\t2.5\n", "line 1 has 2 fields, not 3"),
        (b"1\t2.0\tA fine film.\n", "sentence 1: mean 2.0, its ratings say 2.5"),
        (b"7\t2.0\tA fine film.\n", "sentence 7: mean 2.0, its ratings say nan"),
    ],
)
def test_another_archive_is_refused(sentences, text, said):
    with pytest.raises(sentences.PreparationError, match=said):
        sentences.parse(text, RATINGS)


def texts_of(rows: list[dict]) -> list[str]:
    """Every sentence that rows of any kind hold."""
    found = []
    for row in rows:
        for field in ("completion", "chosen", "rejected", "response", "other"):
            if field in row:
                found.append(row[field] if isinstance(row[field], str) else row[field][0]["content"])
    return found


def test_no_two_files_share_a_sentence_and_none_is_used_twice(sentences, rated):
    files = sentences.build(rated)
    assert sorted(files) == sorted([*sentences.ROLES, "prompts", "prompts-held-out"])
    assert all(files.values())
    used = [text for rows in files.values() for text in texts_of(rows)]
    assert len(used) == len(set(used)) > 1000


def test_held_out_prompts_ask_for_openings_that_training_never_asks_for(sentences, rated):
    files = sentences.build(rated)
    asked = {
        side: {json.dumps(row["prompt"]) for row in files[side]} for side in ("prompts", "prompts-held-out")
    }
    quoted = {side: {text.split('\\"')[1].casefold() for text in found} for side, found in asked.items()}
    assert not quoted["prompts"] & quoted["prompts-held-out"]


def test_the_same_rows_whatever_the_order_of_the_sentences(sentences, rated):
    assert sentences.build(rated) == sentences.build(rated[::-1])


def test_pairs_have_clear_sides_and_one_opening(sentences, rated):
    rating = {s.text: s.rating for s in rated}
    rows = sentences.build(rated)["comparisons"]
    for row in rows:
        chosen, rejected = texts_of([row])
        assert rating[chosen] >= 0.5
        assert rating[rejected] <= -0.5
        asked = row["prompt"][-1]["content"]
        if '"' in asked:
            begin = asked.split('"')[1]
            assert chosen.startswith(begin)
            assert rejected.startswith(begin)
    assert any('"' in row["prompt"][-1]["content"] for row in rows)


def test_unclear_ratings_make_no_pair(sentences):
    assert sentences.pairs([sentences.Sentence("Good.", 0.4), sentences.Sentence("Bad.", -0.4)]) == []


def test_feedback_prefers_the_favourable_sentence_on_either_side(sentences, rated):
    rating = {s.text: s.rating for s in rated}
    rows = sentences.build(rated)["feedback"]
    assert {row["preferred"] for row in rows} == {"response", "other"}
    for row in rows:
        other = {"response": "other", "other": "response"}[row["preferred"]]
        assert rating[row[row["preferred"]]] > rating[row[other]]


def test_both_sentences_of_feedback_hold_the_word_that_is_asked_for(sentences, rated):
    files = sentences.build(rated)
    for row in files["feedback"] + files["feedback-held-out"]:
        word = row["prompt"][-1]["content"].split('"')[1]
        assert word in row["response"].casefold() and word in row["other"].casefold()


def test_no_event_of_training_asks_nearly_what_a_held_out_one_asks(sentences, rated):
    """Preprocessing would set it aside: of the first set of these events nearly all were."""
    files, index = sentences.build(rated), ClusterIndex(threshold=0.8)
    held, train = (
        {
            cluster
            for found in index.touched(prompt_text(row["prompt"]) for row in files[name])
            for cluster in found
        }
        for name in ("feedback-held-out", "feedback")
    )
    assert held and train and not held & train


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("The film is long.", 2, "The film"),
        ("It's a bore.", 1, "It's"),
        ("A dull, long film.", 2, None),
        ("... but why?", 1, None),
        ("Dull", 2, None),
    ],
)
def test_openings_are_plain_words(sentences, text, words, expected):
    assert sentences.opening(text, words) == expected


def test_data_are_written_once_and_again_when_touched(modules, rated, tmp_path):
    prepare = modules["prepare"]
    prepare.write_data(tmp_path, rated, "version one")
    assert prepare.data_ready(tmp_path, "version one")
    assert not prepare.data_ready(tmp_path, "version two")
    (tmp_path / "sft.jsonl").write_text("", encoding="utf-8")
    assert not prepare.data_ready(tmp_path, "version one")


def test_a_part_that_fails_leaves_nothing_behind(modules, tmp_path):
    def fails(package, folder):
        (folder / "half").write_text("", encoding="utf-8")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        modules["prepare"].part(tmp_path / "model", lambda: tmp_path, fails)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_package_is_refused(modules, tmp_path):
    prepare = modules["prepare"]
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / prepare.RATINGS_SDIST).write_bytes(b"something else")
    with pytest.raises(prepare.PreparationError, match="has the digest"):
        prepare.fetch(tmp_path, prepare.RATINGS_SDIST)


def test_judge_tells_praise_from_blame_and_reads_no_prompt(modules):
    judge = modules["judge"]
    if not judge.SCORER.is_dir():
        pytest.importorskip("vaderSentiment")
    praise, blame, empty = judge.judge(["a", "b", "c"], ["A wonderful film.", "A dreadful film.", ""])
    assert praise > 0.3
    assert blame < -0.3
    assert empty == 0.0


def test_the_rows_pass_the_checks_of_the_stages(sentences, rated, tmp_path):
    from instructkit.data.sources import load_rows
    from instructkit.data.split import check_leak

    kinds = {"sft": "sft", "comparisons": "preference", "feedback": "feedback", "prompts": "prompt"}
    files = sentences.build(rated)
    for name, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    for name, kind in kinds.items():
        train, held = (load_rows(str(tmp_path / f"{n}.jsonl"), kind=kind) for n in (name, f"{name}-held-out"))
        check_leak(train, held)
        assert (len(train.rows), len(held.rows)) == (len(files[name]), len(files[f"{name}-held-out"]))
