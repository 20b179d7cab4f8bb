"""A conversation with a model: every turn continues the key-value cache, nothing that was said is encoded again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from instructkit.models.tokens import common_prefix, encode_prompt


class Session:
    """
    A chat with one model.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer, with a chat template or without.
        max_new_tokens: longest answer, in tokens.
        temperature: 0 answers greedily.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, max_new_tokens: int = 256, temperature: float = 0.0
    ) -> None:
        from transformers import DynamicCache

        from instructkit.models.generate import end_ids

        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.messages: list[dict[str, str]] = []
        self.cache = DynamicCache()
        self.cached: list[int] = []
        self.stops = set(end_ids(model, tokenizer))
        self.encoded_tokens = 0

    def ask(self, text: str) -> Iterator[str]:
        """Say something and stream the answer, piece by piece; the turn is remembered when the stream ends."""
        self.messages.append({"role": "user", "content": text})
        has_template = self.tokenizer.chat_template is not None
        said = encode_prompt(self.tokenizer, self.messages if has_template else text)
        answer = ""
        for piece in self._stream(said):
            answer += piece
            yield piece
        self.messages.append({"role": "assistant", "content": answer})

    def _stream(self, said: list[int]) -> Iterator[str]:
        """Feed only what the cache does not hold, then sample token by token."""
        import torch

        kept = min(common_prefix(self.cached, said), len(said) - 1)
        surplus = len(self.cached) - kept
        if surplus:
            self.cache.crop(-surplus)
        new, told, shown = said[kept:], [], ""
        self.cached = said[:kept]
        for _ in range(self.max_new_tokens):
            with torch.no_grad():
                ids = torch.tensor([new], device=self.model.device)
                logits = (
                    self.model(input_ids=ids, past_key_values=self.cache, use_cache=True)
                    .logits[0, -1]
                    .float()
                )
            self.cached += new
            self.encoded_tokens += len(new)
            token = self._pick(logits)
            if token in self.stops:
                break
            told.append(token)
            text = self.tokenizer.decode(told, skip_special_tokens=True)
            # A character of several bytes may be split over tokens: wait until it is whole.
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
            new = [token]
        # An answer cut inside a character ends in the replacement character, as decoding it whole would.
        if rest := self.tokenizer.decode(told, skip_special_tokens=True)[len(shown) :]:
            yield rest

    def _pick(self, logits: Any) -> int:
        import torch

        if self.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(torch.softmax(logits / self.temperature, dim=-1), 1))
