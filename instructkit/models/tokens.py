"""
From words to token ids, once for every room: what a model reads as a prompt and what it is trained on as an answer.

Reward models are trained, evaluated and asked for scores through `encode_answered`, so the template and the end of turn that they
see are the same in all three places.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

Prompt = str | list[dict[str, str]]
IGNORED = -100  # the label of a token that is not learned


def is_chat(prompt: Prompt) -> bool:
    """True for a list of messages, False for plain text."""
    return not isinstance(prompt, str)


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, ending where the answer begins."""
    if is_chat(prompt):
        encoded = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(encoded["input_ids"])
    return list(tokenizer(prompt)["input_ids"])


def encode_answered(tokenizer: Any, prompt: Prompt, answer: str) -> list[int]:
    """
    Token ids of a prompt with its finished answer, as TRL's `RewardTrainer` and `SFTTrainer` encode them.

    A conversation ends as its chat template ends it; plain text gets the end-of-sequence token. An answer that was
    cut off is encoded as if it were finished: a missing end is penalised by PPO, not read from the reward model.
    """
    if is_chat(prompt):
        messages = [*prompt, {"role": "assistant", "content": answer}]
        return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])
    text = prompt + answer
    return list(
        tokenizer(text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token)["input_ids"]
    )


def encode_sampled(tokenizer: Any, prompt: Prompt, ids: list[int], ends: Collection[int]) -> list[int] | None:
    """
    Token ids of a prompt with an answer that was sampled, and the end that `encode_answered` gives it.

    The answer's own ids are kept: encoding its words again may cut them into other tokens (ppo.md, S-2).

    Args:
        ids: sampled token ids, the end token included where there is one; an answer that was cut off keeps its last token.
        ends: the tokens that end an answer.

    Returns:
        None where a template renders a prompt otherwise once it is answered, so that ids cannot be put between.
    """
    end = _end_of_answer(tokenizer, prompt)
    if end is None:
        return None
    ended = bool(ids) and ids[-1] in ends
    return encode_prompt(tokenizer, prompt) + list(ids[:-1] if ended else ids) + end


def _end_of_answer(tokenizer: Any, prompt: Prompt) -> list[int] | None:
    """The tokens behind an answer, found with a one-letter answer."""
    if not is_chat(prompt):
        return [tokenizer.eos_token_id]
    start = encode_prompt(tokenizer, prompt) + tokenizer("x", add_special_tokens=False)["input_ids"]
    whole = encode_answered(tokenizer, prompt, "x")
    return whole[len(start) :] if whole[: len(start)] == start else None


def same_tokens(first: Any, second: Any) -> bool:
    """Whether two tokenizers cut words alike and render conversations alike."""
    return first.get_vocab() == second.get_vocab() and first.chat_template == second.chat_template


def encode_with_labels(tokenizer: Any, prompt: Prompt, answer: str) -> dict[str, list[int]]:
    """Token ids of prompt and answer, with the label `IGNORED` where the prompt stands."""
    ids = encode_answered(tokenizer, prompt, answer)
    start = common_prefix(encode_prompt(tokenizer, prompt), ids)
    return {"input_ids": ids, "labels": [IGNORED] * start + ids[start:]}


def encode_text(tokenizer: Any, text: str) -> dict[str, list[int]]:
    """Token ids of a whole text that ends, every token its own label."""
    ids = encode_answered(tokenizer, "", text)
    return {"input_ids": ids, "labels": list(ids)}


def common_prefix(first: list[int], second: list[int]) -> int:
    """Length of the longest common beginning of two lists."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length


def answer_text(answer: str | list[dict[str, str]]) -> str:
    """The words of an answer given as text or as one assistant message."""
    return answer if isinstance(answer, str) else answer[-1]["content"]
