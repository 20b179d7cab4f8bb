"""The embedded model: the same from the same seed, of the stated size, with a template that teaches where to stop."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.chat_template_utils import has_generation_markers, is_chat_template_stop_token_trained

from instructkit.data.demo.sets import load
from instructkit.models.tiny import build_tiny, tiny_key
from instructkit.models.tokens import encode_answered, encode_prompt


def test_size_and_tokens(tiny_folder: Path) -> None:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_folder),
        AutoTokenizer.from_pretrained(tiny_folder),
    )
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 2e6
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_same_seed_gives_the_same_model(tiny_folder: Path, tmp_path: Path) -> None:
    first = load_file(tiny_folder / "model.safetensors")
    second = load_file(build_tiny(tmp_path / "again") / "model.safetensors")
    other = load_file(build_tiny(tmp_path / "other", seed=1) / "model.safetensors")
    assert all((first[name] == second[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)
    assert (tiny_folder / "tokenizer.json").read_bytes() == (
        tmp_path / "again" / "tokenizer.json"
    ).read_bytes()
    assert tiny_key() == tiny_key()


def test_the_template_marks_answers_with_their_end(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert has_generation_markers(tokenizer.chat_template)
    assert is_chat_template_stop_token_trained(tokenizer, chat_template=None)


def test_a_prompt_is_a_prefix_of_its_answered_form(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    for row in load("demo/conversations-held-out"):
        *prompt, answer = row["messages"]
        before, whole = (
            encode_prompt(tokenizer, prompt),
            encode_answered(tokenizer, prompt, answer["content"]),
        )
        assert whole[: len(before)] == before
        assert tokenizer.decode(whole[len(before) : -1]) == answer["content"]


def test_any_text_survives_the_tokenizer(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    text = "Grüße, 你好 \U0001f600 \t x"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
