"""Tokens that another engine has drawn: how likely it found them, and under which law (3.9)."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from ppo.small import PROMPTS, build
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import rloo_trainer


def test_vllm_says_how_likely_it_found_its_tokens(tiny_folder, tmp_path) -> None:
    """The engine's log-probabilities become weights; without the switch nothing is kept."""

    class Engine:
        logprobs = None

        def sync_weights(self):
            pass

        def generate(self, prompts, images, num_generations, profiler):
            ids = [[20 + i % 3, 21] for i in range(len(prompts))]
            return prompts, ids, [[[-4.0], [-4.0]] for _ in ids], None

    for switch in (True, False):
        trainer = build(
            tiny_folder,
            tmp_path,
            per_device_train_batch_size=2,
            steps_per_generation=4,
            vllm_importance_sampling_correction=switch,
        )
        trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, Engine(), 0
        trainer.model.train()
        found = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS])
        assert ("sampler_weights" in found) is switch
        if switch:
            wanted = (found["old_logprobs"] + 4.0).exp().clamp(max=2.0)
            torch.testing.assert_close(
                found["sampler_weights"][found["response_mask"]], wanted[found["response_mask"]]
            )


class Server:
    """TRL's view of a vLLM server, as far as it is asked before the first token."""

    mode = "processed_logprobs"

    def __init__(self, **_):
        self.vllm_client = SimpleNamespace(
            get_server_info=lambda: {"model_config": {"logprobs_mode": self.mode}}
        )


@pytest.mark.parametrize(
    ("mode", "temperature", "settings", "refused"),
    [
        ("raw_logprobs", 0.7, {}, True),
        ("raw_logprobs", 1.0, {}, False),  # without filters the two are one
        ("processed_logprobs", 0.7, {}, False),
        ("raw_logits", 1.0, {}, True),
        ("processed_logits", 1.0, {}, True),
        ("raw_logprobs", 0.7, {"vllm_importance_sampling_correction": False}, False),
        ("raw_logprobs", 0.7, {"vllm_mode": "colocate"}, False),  # TRL builds the engine, see below
    ],
)
def test_a_server_that_tells_logprobs_of_another_law_is_refused(
    tiny_folder, tmp_path, monkeypatch, mode, temperature, settings, refused
) -> None:
    """3.9: a weight is policy over sampler at one temperature; vLLM's default are log-probabilities at temperature 1."""
    monkeypatch.setattr(rloo_trainer, "VLLMGeneration", Server)
    monkeypatch.setattr(Server, "mode", mode)
    options = {"use_vllm": True, "vllm_mode": "server", "temperature": temperature, **settings}
    if not refused:
        assert build(tiny_folder, tmp_path, **options).use_vllm
        return
    with pytest.raises(ValueError, match=f"--logprobs-mode {mode}.*--logprobs-mode processed_logprobs"):
        build(tiny_folder, tmp_path, **options)


def test_trl_builds_its_own_engine_with_the_right_logprobs() -> None:
    """What makes the check needless where vLLM shares the process."""
    assert 'logprobs_mode="processed_logprobs"' in inspect.getsource(VLLMGeneration)
