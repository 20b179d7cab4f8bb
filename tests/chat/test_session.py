"""A chat continues its cache: the same answers as encoding everything anew, for fewer tokens."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from instructkit.chat.session import Session
from instructkit.chat.terminal import talk
from instructkit.models.tokens import encode_prompt


def session(folder: Path) -> Session:
    # In float64, so that rounding, which differs between machines and batch shapes, decides no near tie.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    return Session(model, AutoTokenizer.from_pretrained(folder), max_new_tokens=8)


def anew(chat: Session) -> list[int]:
    """The last answer's tokens, greedily, from a full encoding of what was said before it."""
    said = encode_prompt(chat.tokenizer, chat.messages[:-1])
    with torch.no_grad():
        out = chat.model.generate(
            torch.tensor([said]), max_new_tokens=8, do_sample=False, eos_token_id=sorted(chat.stops)
        )
    return out[0, len(said) :].tolist()


def test_later_turns_answer_as_if_everything_were_encoded_anew(tiny_folder: Path) -> None:
    chat = session(tiny_folder)
    for text in ("Hello", "What is the opposite of hot?", "And of big?"):
        told = "".join(chat.ask(text))
        ids = [token for token in anew(chat) if token not in chat.stops]
        assert told == chat.tokenizer.decode(ids, skip_special_tokens=True)


def test_what_was_said_is_not_encoded_again(tiny_folder: Path) -> None:
    chat = session(tiny_folder)
    list(chat.ask("Hello there, how are you doing today?"))
    before = chat.encoded_tokens
    list(chat.ask("Why?"))
    whole = len(encode_prompt(chat.tokenizer, chat.messages[:-1]))
    assert chat.encoded_tokens - before < whole


def test_an_answer_cut_inside_a_character_is_shown_whole(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = session(tiny_folder)
    chat.max_new_tokens = 2
    letter, *rest = chat.tokenizer("a\N{SNOWMAN}", add_special_tokens=False)["input_ids"]
    assert rest, "the snowman takes several tokens"
    picks = iter([letter, rest[0]])
    monkeypatch.setattr(chat, "_pick", lambda logits: next(picks))
    assert "".join(chat.ask("Hello")) == chat.tokenizer.decode([letter, rest[0]])
    assert chat.messages[-1]["content"].startswith("a")


def test_the_terminal_answers_line_by_line(tiny_folder: Path) -> None:
    out = io.StringIO()
    talk(session(tiny_folder), "tiny", read=io.StringIO("Hello\n\nAnd you?\n"), out=out)
    assert out.getvalue().count("\n") >= 2


def test_a_line_that_is_not_utf8_is_told_and_not_asked(tiny_folder: Path, capsys) -> None:
    out, chat = io.StringIO(), session(tiny_folder)
    talk(chat, "tiny", read=io.StringIO("caf\udce9?\nAnd you?\n"), out=out)
    assert [message["content"] for message in chat.messages[::2]] == ["And you?"]
    assert "not UTF-8" in capsys.readouterr().err
