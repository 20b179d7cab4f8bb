"""What the rows of a run are like: lengths, what is learned of them, doubles, writing systems."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from instructkit.data import near_duplicates, split
from instructkit.data.sources import Rows
from instructkit.models.tokens import IGNORED, encode_prompt

Part = tuple[str, list[int], list[int]]  # title, token ids, labels


def parts_of_rows(stage: str, trainer: Any, tokenizer: Any) -> Iterator[list[Part]]:
    """Each training row as its parts; a prompt alone has nothing to learn, and where a loss has no labels all tokens count."""
    if stage == "ppo":
        for prompt in trainer.train_dataset["prompt"]:
            ids = encode_prompt(tokenizer, prompt)
            yield [(", a prompt", ids, [IGNORED] * len(ids))]
        return
    for row in trainer.train_dataset:
        if "chosen_ids" in row:
            yield [(f", {side}", *_answered(row, f"{side}_ids")) for side in ("chosen", "rejected")]
        else:
            yield [("", *_with_labels(row))]


def oddities(
    stage: str, tokenizer: Any, rows: Sequence[tuple[list[int], list[int]]], limit: int | None = None
) -> list[str]:
    """
    What a template or a length does to rows that nobody would want, in words.

    Args:
        rows: token ids and labels.
        limit: rows of that length are known to be cut, and nobody wonders at their ends.
    """
    bos, eos, count = tokenizer.bos_token_id, tokenizer.eos_token_id, len(rows)
    told = []
    if twice := sum(bos is not None and ids[:2] == [bos, bos] for ids, _ in rows):
        told.append(
            f"{twice} of {count} rows begin with {tokenizer.bos_token} twice: the template adds one too many"
        )
    if stage == "ppo":
        return told
    if masked := sum(all(label == IGNORED for label in labels) for _, labels in rows):
        told.append(
            f"{masked} of {count} rows have no token that is learned: cut off by max_length, or the template marks none"
        )
    whole = [ids for ids, _ in rows if limit is None or len(ids) < limit]
    if endless := sum(eos is not None and eos not in ids[-3:] for ids in whole):
        what = "the model will not learn to stop there" if stage != "reward" else "no score is about an end"
        told.append(f"{endless} of {count} rows do not end with {tokenizer.eos_token}: {what}")
    return told


def _with_labels(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    if "input_ids" in row:
        ids = row["input_ids"]
        return ids, row.get("labels", ids)
    return _answered(row, "completion_ids")


def _answered(row: dict[str, Any], name: str) -> tuple[list[int], list[int]]:
    """An answer behind its prompt, where the row has one apart."""
    prompt, answer = row.get("prompt_ids", []), row.get(name, [])
    return [*prompt, *answer], [IGNORED] * len(prompt) + list(answer)


MOST_COMPARED = 20_000  # rows that are compared for doubles; what is left out is said
LOOKED_AT = 1000  # rows whose letters and languages are counted
FEWEST_LETTERS = 40  # of a text whose language is told: of shorter ones most guesses are wrong
BINS = 12
SHOWN_PAIRS = 3
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Cut:
    """Rows that are cut at `max_length`, and the tokens behind it: their share of all, of prompts and of answers."""

    rows: int
    share: float
    prompt_tokens: int
    answer_tokens: int

    def told(self) -> str:
        """In words."""
        every = self.prompt_tokens + self.answer_tokens
        answers = self.answer_tokens / every
        return (
            f"max_length cuts {self.share:.1%} of all tokens, in {self.rows} rows: {every:,} tokens, {1 - answers:.0%} of them "
            f"of prompts and {answers:.0%} of answers"
        )


@dataclass(frozen=True)
class Statistics:
    """
    Of the training rows, in tokens as the trainer reads them; of a comparison both answers.

    Attributes:
        at_limit: rows that reach `max_length`, where what is behind it is cut off.
        cut: how many tokens that is, of prompts and of answers; None where rows are not cut, or it cannot be told.
        learned: share of tokens that the loss looks at; None where it looks at scores.
        exact, near: rows with such a double before them, among `compared` rows.
        held_out_near: held-out rows with a near double among the training rows.
        near_pairs: the first few of these, each with the row that it is near to, by their places.
        begun: held-out demonstrations with an earlier answer that is trained on, and where the first of them is, in words.
        odd: what a template does to rows that nobody would want, in words.
        histogram: rows by length, in bins of equal width from the shortest to the longest.
        scripts: share of letters by writing system.
        languages: shares of languages, by ISO 639-1 code, of the `spoken` rows that are long enough to tell.
    """

    rows: int
    tokens: int
    shortest: int
    p50: int
    p95: int
    longest: int
    at_limit: int
    cut: Cut | None
    learned: float | None
    exact: int
    near: int
    compared: int
    held_out_near: int | None
    near_pairs: list[str]
    begun: str | None
    odd: list[str]
    histogram: list[int]
    scripts: dict[str, float]
    languages: dict[str, float]
    spoken: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def bars(self) -> str:
        """The histogram as one line of bars; a bin that is not empty shows."""
        most = max(self.histogram)
        return "".join(" " if not n else _BARS[min(7, (8 * n - 1) // most)] for n in self.histogram)


def of_rows(stage: str, trainer: Any, tokenizer: Any, data: dict[str, Rows]) -> Statistics:
    """The statistics of a run's training rows, and how near the held-out rows are to them."""
    parts = [part for row in parts_of_rows(stage, trainer, tokenizer) for part in row]
    lengths = sorted(len(ids) for _, ids, _ in parts)
    limit = None if getattr(trainer.args, "packing", False) else getattr(trainer.args, "max_length", None)
    learned = sum(label != IGNORED for _, _, labels in parts for label in labels)
    trained = data.get("train", data.get("events"))
    held_out = data.get("eval", data.get("test"))
    texts = [near_duplicates.text_of(row) for row in trained.rows[:MOST_COMPARED]]
    exact, near = near_duplicates.doubles(texts)
    held_out_near, near_pairs = _near_held_out(held_out, trained, texts)
    by_language, spoken = languages(texts[:LOOKED_AT])
    # Such packs end within a row.
    wrapped = getattr(trainer.args, "packing", False) and trainer.args.packing_strategy == "wrapped"
    encoded = [] if wrapped else [(ids, labels) for _, ids, labels in parts]
    return Statistics(
        rows=len(trainer.train_dataset),
        tokens=sum(lengths),
        shortest=lengths[0],
        p50=quantile(lengths, 0.5),
        p95=quantile(lengths, 0.95),
        longest=lengths[-1],
        cut=_cut(trainer, tokenizer, trained, sum(lengths)) if stage == "sft" else None,
        at_limit=sum(limit is not None and length >= limit for length in lengths),
        learned=learned / sum(lengths) if stage in ("sft", "lora-update") else None,
        exact=exact,
        near=near,
        compared=len(texts),
        held_out_near=held_out_near,
        near_pairs=near_pairs,
        begun=_begun(trained, held_out) if stage == "sft" and held_out is not None else None,
        odd=[
            *oddities(stage, tokenizer, encoded, getattr(trainer.args, "max_length", None)),
            *_beyond_positions(trainer, lengths),
            *_forged(tokenizer, texts),
        ],
        histogram=histogram(lengths),
        scripts=scripts(texts[:LOOKED_AT]),
        languages=by_language,
        spoken=spoken,
    )


def _cut(trainer: Any, tokenizer: Any, rows: Rows, kept: int) -> Cut | None:
    """Rows encoded whole where they are long enough to be cut; a token is at least one byte."""
    args = trainer.args
    if args.max_length is None or (args.packing and args.packing_strategy != "bfd"):
        return None
    cuts = [_behind(args.max_length, *_whole(tokenizer, row)) for row in rows.rows if _may_exceed(row, args)]
    cuts = [each for each in cuts if any(each)]
    prompt, answer = (sum(side) for side in zip(*cuts, strict=True)) if cuts else (0, 0)
    if not prompt + answer:
        return None
    left_out = 0 if args.packing else max(0, len(rows.rows) - len(trainer.train_dataset))
    every = kept + prompt + answer + left_out * args.max_length
    return Cut(len(cuts), (prompt + answer) / every, prompt, answer)


def _may_exceed(row: dict[str, Any], args: Any) -> bool:
    turns = len(row.get("messages", ())) + 2
    return len(near_duplicates.text_of(row).encode("utf-8", "replace")) + 64 * turns > args.max_length


def _whole(tokenizer: Any, row: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt, and of the whole row."""
    if "messages" in row:
        whole = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"]
        return len(encode_prompt(tokenizer, row["messages"][:-1])) if len(row["messages"]) > 1 else 0, len(
            whole
        )
    if "text" in row:
        return 0, len(tokenizer(row["text"])["input_ids"]) + 1
    prompt, answer = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        return len(encode_prompt(tokenizer, prompt)), len(tokenizer(prompt + answer)["input_ids"]) + 1
    whole = tokenizer.apply_chat_template([*prompt, *answer], tokenize=True, return_dict=True)["input_ids"]
    return len(encode_prompt(tokenizer, prompt)), len(whole)


def _behind(limit: int, prompt: int, whole: int) -> tuple[int, int]:
    """Tokens of the prompt and of the answer that lie behind a limit."""
    cut, of_prompt = max(0, whole - limit), max(0, min(prompt, whole) - limit)
    return of_prompt, cut - of_prompt


def _forged(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Texts with special tokens in them, which end a turn or begin another one where nobody meant it."""
    marks = [token for token in tokenizer.all_special_tokens if len(token) > 2]
    found = [mark for mark in marks if any(mark in text for text in texts)]
    if not found:
        return []
    count = sum(any(mark in text for mark in found) for text in texts)
    return [
        f"{count} of {len(texts)} rows hold {', '.join(found)} in their texts, of which the tokenizer makes special tokens: "
        "they end turns or begin others"
    ]


def _beyond_positions(trainer: Any, lengths: Sequence[int]) -> list[str]:
    """Rows that are longer than what the model was made for; PPO leaves such prompts out, or refuses them."""
    positions = getattr(trainer.model.config.get_text_config(), "max_position_embeddings", None)
    count = sum(length > positions for length in lengths) if positions else 0
    if not count:
        return []
    return [
        f"{count} of {len(lengths)} rows are longer than the model's {positions} positions, behind which it knows nothing, and "
        f"some models fail: set trainer.max_length to {positions} or lower"
    ]


def _begun(trained: Rows, held_out: Rows) -> str | None:
    """Held-out conversations that go on from trained ones; the loss on them counts what is known already."""
    found = split.begun(trained, held_out)
    if not found:
        return None
    (first, there), *_ = found.items()
    return (
        f"{len(found)} held-out conversations begin with answers that are trained on, the first {first}, as {there}: "
        "the held-out loss counts these answers too"
    )


def _near_held_out(held_out: Rows | None, trained: Rows, texts: list[str]) -> tuple[int | None, list[str]]:
    """How many held-out rows are near to a training row, and the places of the first few pairs."""
    if held_out is None:
        return None, []
    found = near_duplicates.pairs(
        [near_duplicates.text_of(row) for row in held_out.rows[:MOST_COMPARED]], texts
    )
    first = sorted(found.items())[:SHOWN_PAIRS]
    return len(found), [f"{held_out.places[i]} and {trained.places[j]}" for i, j in first]


def quantile(ordered: Sequence[int], share: float) -> int:
    """The least of the values that this share of all does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def histogram(lengths: Sequence[int]) -> list[int]:
    """How many lengths lie in each of the bins from the shortest to the longest."""
    low, width = min(lengths), max(1, max(lengths) - min(lengths) + 1)
    counts = Counter((length - low) * BINS // width for length in lengths)
    return [counts[i] for i in range(BINS)]


def scripts(texts: Sequence[str]) -> dict[str, float]:
    """Shares of writing systems among letters, the most frequent first: the first word of each letter's Unicode name."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(_script(letter) for letter in text if letter.isalpha())
    whole = sum(found.values())
    return {name: round(count / whole, 4) for name, count in found.most_common(4)} if whole else {}


def _script(letter: str) -> str:
    if letter.isascii():
        return "Latin"
    return unicodedata.name(letter, "other").split()[0].capitalize()


def languages(texts: Sequence[str]) -> tuple[dict[str, float], int]:
    """Shares of languages among texts that are long enough to tell, the most frequent first, and how many texts these are."""
    import py3langid

    long = [text for text in texts if sum(map(str.isalpha, text[:400])) >= FEWEST_LETTERS]
    found = Counter(py3langid.classify(text[:2000])[0] for text in long)
    return {name: round(count / len(long), 4) for name, count in found.most_common(4)}, len(long)
