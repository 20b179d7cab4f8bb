"""One encoding for training, evaluation and scores, equal to what TRL's trainers make of the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from instructkit.models.tokens import (
    common_prefix,
    encode_answered,
    encode_prompt,
    encode_sampled,
    encode_with_labels,
    same_tokens,
)

CHAT = [{"role": "user", "content": "What is the opposite of hot?"}]


@pytest.mark.parametrize("prompt", [CHAT, "Once upon "])
def test_answers_are_encoded_as_the_reward_trainer_encodes_them(
    tiny_folder: Path, tmp_path: Path, prompt
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    chat = isinstance(prompt, list)
    side = [{"role": "assistant", "content": "Cold."}] if chat else "a time"
    row = {"prompt": prompt, "chosen": side, "rejected": side}
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1),
        args=RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list([row]),
        processing_class=tokenizer,
    )
    text = side[0]["content"] if chat else side
    assert trainer.train_dataset[0]["chosen_ids"] == encode_answered(tokenizer, prompt, text)


def test_labels_cover_the_answer_and_its_end(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    row = encode_with_labels(tokenizer, CHAT, "Cold.")
    answer = [label for label in row["labels"] if label != -100]
    assert "Cold." in tokenizer.decode(answer)
    assert tokenizer.eos_token_id in answer
    assert row["input_ids"][: len(encode_prompt(tokenizer, CHAT))] == encode_prompt(tokenizer, CHAT)


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([], [1]) == 0


@pytest.mark.parametrize("prompt", [CHAT, "Once upon"])
def test_sampled_ids_stand_where_their_words_would(tiny_folder: Path, prompt) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    words = "cold day" if isinstance(prompt, list) else " cold day"
    wanted = encode_answered(tokenizer, prompt, words)
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    end, other = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("end", "system"))
    assert encode_sampled(tokenizer, prompt, ids, [end]) == wanted
    assert encode_sampled(tokenizer, prompt, [*ids, end], [end]) == wanted
    assert encode_sampled(tokenizer, prompt, [*ids, other], [end, other]) == wanted


def test_an_answer_that_was_cut_off_at_a_special_token_keeps_it(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    end, system = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("end", "system"))
    start = len(encode_prompt(tokenizer, CHAT))
    assert encode_sampled(tokenizer, CHAT, [5, system], [end])[start : start + 3] == [5, system, end]


def test_sampled_ids_are_not_cut_anew(tiny_folder: Path) -> None:
    """S-2: a policy may spell a word by letters; its words encoded again would be other tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    letters = [i for c in "cold" for i in tokenizer(c, add_special_tokens=False)["input_ids"]]
    start = encode_prompt(tokenizer, CHAT)
    assert encode_sampled(tokenizer, CHAT, letters, [])[len(start) : len(start) + len(letters)] == letters
    assert encode_sampled(tokenizer, CHAT, [], [])[: len(start)] == start


def test_a_template_that_renders_answered_prompts_otherwise_is_told_apart(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    other = AutoTokenizer.from_pretrained(tiny_folder)
    assert same_tokens(tokenizer, other)
    other.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}?{% endif %}"
    )
    assert encode_sampled(other, CHAT, [5, 6], []) is None
    assert not same_tokens(tokenizer, other)
