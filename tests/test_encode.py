"""One encoding for training, evaluation and scores, equal to what TRL's trainers make of the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from instructkit.encode import common_prefix, encode_answered, encode_prompt, encode_with_labels

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
