"""
What PPO's settings may be, as checks of plain values.

They import nothing, so that a recipe is refused by them before anything is loaded; `PPOConfig` refuses by the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MISSING_EOS_MODES = ("subtract", "replace", "scale", "mask", "overlong", "none")
AGGREGATIONS = ("token", "sequence")
_ABOVE_0 = (
    "length_adaptive_alpha",
    "target_kl_per_sequence",
    "target_kl",
    "kl_horizon",
    "score_clip",
    "reading_batch_size",
    "tokens_per_pass",
    "ptx_rows_per_episode",
    "vllm_importance_sampling_cap",
    "epsilon",
    "epsilon_high",
    "cliprange_value",
    "max_grad_norm",
    "temperature",
)
_NOT_BELOW_0 = ("beta", "vf_coef", "missing_eos_penalty", "ptx_coef", "value_warmup_steps")

Faults = list[tuple[str, str]]


def faults(settings: Mapping[str, Any]) -> Faults:
    """
    Every setting that contradicts another or lies outside its range: its name, and what is wrong in words.

    Args:
        settings: all fields of `PPOConfig` by name, of the right types.
    """
    checks = (_names, _batches, _ranges, _pairs, _filters, _not_for_ppo)
    return [found for check in checks for found in check(settings)]


def _names(given: Mapping[str, Any]) -> Faults:
    allowed = {"missing_eos_mode": MISSING_EOS_MODES, "loss_aggregation": AGGREGATIONS}
    found = [
        (name, f"{name} is {given[name]!r}; one of {', '.join(values)}")
        for name, values in allowed.items()
        if given[name] not in values
    ]
    if given["kl_estimator"] != "k1":
        told = (
            f"kl_estimator is {given['kl_estimator']!r}; inside the reward only k1 has the gradient of the KL: that of k2 "
            "is off by its whole size, and that of k3 vanishes near the reference, where the penalty has to hold "
            "(Tang and Munos 2025, 2506.09477); leave kl_estimator out"
        )
        found.append(("kl_estimator", told))
    return found


def _batches(given: Mapping[str, Any]) -> Faults:
    accumulation = given["gradient_accumulation_steps"]
    pieces = given["steps_per_generation"] or accumulation
    if accumulation < 1 or pieces % accumulation == 0:
        return []
    told = (
        f"steps_per_generation ({pieces}) must be a multiple of gradient_accumulation_steps ({accumulation}), so that no "
        "optimizer step mixes two rollouts"
    )
    return [("steps_per_generation", told)]


def _ranges(given: Mapping[str, Any]) -> Faults:
    found = [
        (name, f"{name} ({given[name]}) must lie in [0, 1]")
        for name in ("lam", "lam_value")
        if given[name] is not None and not 0 <= given[name] <= 1
    ]
    if not 0 < given["gamma"] <= 1:
        found.append(("gamma", f"gamma ({given['gamma']}) must lie in (0, 1]"))
    found += [
        (name, f"{name} ({given[name]}) must be above 0")
        for name in _ABOVE_0
        if given[name] is not None and given[name] <= 0
    ]
    found += [
        (name, f"{name} ({given[name]}) must not be below 0") for name in _NOT_BELOW_0 if given[name] < 0
    ]
    if given["dual_clip"] is not None and given["dual_clip"] <= 1:
        told = f"dual_clip ({given['dual_clip']}) must be above 1, or it would cut the plain loss"
        found.append(("dual_clip", told))
    return found


def _pairs(given: Mapping[str, Any]) -> Faults:
    found = []
    penalty = given["missing_eos_penalty"]
    if given["missing_eos_mode"] == "scale" and not 0 <= penalty < 1:
        told = (
            f"missing_eos_penalty ({penalty}) is the factor of missing_eos_mode scale; it must lie in [0, 1)"
        )
        found.append(("missing_eos_penalty", told))
    buffer, longest = given["overlong_buffer"], given["max_completion_length"]
    if (given["missing_eos_mode"] == "overlong") != (buffer is not None):
        told = "missing_eos_mode overlong and overlong_buffer need each other: set both or neither"
        found.append(("overlong_buffer", told))
    elif buffer is not None and not 1 <= buffer <= longest:
        told = f"overlong_buffer ({buffer}) must lie in 1 to max_completion_length ({longest})"
        found.append(("overlong_buffer", told))
    if given["score_norm"] and not given["score_scaling"]:
        found.append(("score_norm", "score_norm needs score_scaling: true"))
    if given["target_kl_per_sequence"] and not given["beta"]:
        told = "target_kl_per_sequence steers beta, and beta is 0; give it a start, such as 0.05"
        found.append(("target_kl_per_sequence", told))
    return found


def _filters(given: Mapping[str, Any]) -> Faults:
    """Filters that make the sampled law another than the scored one (R-3)."""
    extra = given["generation_kwargs"] or {}
    filters = {
        "top_p": given["top_p"] != 1.0,
        "top_k": given["top_k"] not in (0, None),
        "min_p": given["min_p"] is not None,
        "repetition_penalty": given["repetition_penalty"] != 1.0,
        "generation_kwargs": isinstance(extra, str) or bool(set(extra) - {"cache_implementation"}),
    }
    return [
        (
            name,
            f"{name} is set; PPO scores the whole distribution, so it must sample from all of it: leave {name} out",
        )
        for name, is_on in filters.items()
        if is_on
    ]


def fault_of_sampler(logprobs_mode: str, temperature: float) -> str | None:
    """
    What is wrong with the log-probabilities that a vLLM server tells, in words; None when they are of the law it drew from.

    An importance weight is policy over sampler, both at the temperature of the run (3.9). vLLM's own default, raw ones, are
    those of temperature 1.
    """
    if logprobs_mode == "processed_logprobs" or (logprobs_mode == "raw_logprobs" and temperature == 1.0):
        return None
    return (
        f"the vLLM server runs with --logprobs-mode {logprobs_mode}, and at temperature {temperature:g} the importance weights "
        "would not be policy over sampler; restart it with --logprobs-mode processed_logprobs, or set "
        "vllm_importance_sampling_correction: false"
    )


def _not_for_ppo(given: Mapping[str, Any]) -> Faults:
    """Fields of TRL that PPO would ignore."""
    instead = {
        "fp16": (given["fp16"], "use bfloat16 or float32: float16 has no loss scale for two clipped groups"),
        "log_completions": (given["log_completions"], "samples are kept by the stage; leave it out"),
        "vllm_structured_outputs_regex": (
            given["vllm_structured_outputs_regex"] is not None,
            "it would sample from another law than the scored one; leave it out",
        ),
        "mask_truncated_completions": (given["mask_truncated_completions"], "use missing_eos_penalty"),
        "reward_clip_range": (given["reward_clip_range"] is not None, "use score_clip"),
        "sync_ref_model": (given["sync_ref_model"], "the reference of PPO stays where it is; leave it out"),
    }
    return [(name, f"{name} is not for PPO: {remedy}") for name, (is_on, remedy) in instead.items() if is_on]
