"""
The independent judge of the recipes in this folder: how favourable a lexicon finds a text. No stage trains on it.

VADER (Hutto and Gilbert 2014, ICWSM) adds up word ratings with rules for negation and emphasis. It reads neither the
sentence ratings that the reward model learns from nor any model's numbers, so a policy that only found a weakness of
the reward model gains nothing here. Recipes name it `recipes/smollm2/judge.py:judge`, and only under `gates:`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCORER = Path(__file__).resolve().parents[2] / "data" / "smollm2" / "vader"


def judge(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """
    VADER's compound score of each completion, from -1 (most unfavourable) to 1; an empty text scores 0.

    Args:
        prompts: what was asked; the lexicon reads only answers.
        completions: answers, as text.
    """
    analyzer = _analyzer()
    return [analyzer.polarity_scores(text)["compound"] for _, text in zip(prompts, completions, strict=True)]


@functools.cache
def _analyzer() -> Any:
    """The scorer that `prepare.py` unpacked, else an installed one; it is deterministic and loads in milliseconds."""
    if SCORER.is_dir() and str(SCORER) not in sys.path:
        sys.path.insert(0, str(SCORER))
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ImportError(
            "the lexicon scorer is not there; run `python recipes/smollm2/prepare.py` first"
        ) from error
    return SentimentIntensityAnalyzer()
