"""`instructkit chat`: read a line, stream an answer, until the input ends."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TextIO

from instructkit.chat.session import Session
from instructkit.data.rows import HALF_CHARACTER
from instructkit.models import load, machine
from instructkit.models.source import lacks_format, locate, refuse_wrong_role, trained_format


def open_session(name: str, *, max_new_tokens: int = 256, temperature: float = 0.0) -> Session:
    """A session with any model name that a recipe takes."""
    source = locate(name)
    refuse_wrong_role(source, as_reward=False)
    section = SimpleNamespace(
        name=name, revision=None, trust_remote_code=False, quantization="none", attn_implementation=None
    )
    model = load.load_for_use(source, section, machine.choose())
    tokenizer = load.load_tokenizer(source, section, data_format=trained_format(source))
    if tokenizer.chat_template and lacks_format(source):
        print(
            f"warning: {name} is a run of version 0.1.0 and records no data format. `chat` uses its chat template; "
            "if it was trained on text prompts, train it again with data.format: text",
            file=sys.stderr,
        )
    return Session(model, tokenizer, max_new_tokens=max_new_tokens, temperature=temperature)


def talk(session: Session, name: str, *, read: TextIO = sys.stdin, out: TextIO = sys.stdout) -> None:
    """Talk until the input ends; a prompt is shown only to a person at a terminal."""
    person = read.isatty()
    if person:
        chats = session.tokenizer.chat_template is not None
        doing = f"talking to {name}" if chats else f"{name} has no chat format and completes text"
        print(f"{doing}; end with Ctrl-D", file=sys.stderr)
    while True:
        if person:
            print("you> ", end="", file=out, flush=True)
        line = read.readline()
        if not line:
            break
        if not line.strip():
            continue
        if HALF_CHARACTER.search(line):  # what Python makes of a byte that is not UTF-8
            print("that line is not UTF-8 and was not asked; say it again", file=sys.stderr)
            continue
        for piece in session.ask(line.strip()):
            print(piece, end="", file=out, flush=True)
        print(file=out, flush=True)
