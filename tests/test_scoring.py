"""Scores: read at the last token whatever follows, centred by the offset that was kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from instructkit.models.reward import Offset, RewardScorer, score_rows
from instructkit.models.tokens import encode_answered

PROMPT = [{"role": "user", "content": "Hello"}]


def classifier(folder: Path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    torch.nn.init.normal_(model.score.weight)
    return model


def test_padding_changes_no_score(tiny_folder: Path) -> None:
    model, rows = classifier(tiny_folder), [[5, 6, 7], [8, 9, 10, 11, 12, 13]]
    together = score_rows(model, rows, pad_id=0)
    alone = [score_rows(model, [row], pad_id=0)[0] for row in rows]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), atol=1e-5, rtol=1e-5)


def test_scores_equal_transformers_own_forward(tiny_folder: Path) -> None:
    model, tokenizer = classifier(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)
    row = encode_answered(tokenizer, PROMPT, "Good day.")
    with torch.no_grad():
        theirs = model(torch.tensor([row])).logits[0, 0].item()
    assert score_rows(model, [row], pad_id=tokenizer.pad_token_id)[0] == pytest.approx(
        theirs, rel=1e-5, abs=1e-5
    )


def test_the_offset_is_subtracted(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "score_offset.json").write_text(json.dumps({"mean": 2.0, "std": 4.0}), encoding="utf-8")
    model, tokenizer = classifier(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)
    plain = RewardScorer(model, tokenizer, Offset())
    centred = RewardScorer(model, tokenizer, Offset.read(tmp_path))
    completions = [[{"role": "assistant", "content": "Good day."}]]
    raw = plain(prompts=[PROMPT], completions=completions)[0]
    assert abs(centred(prompts=[PROMPT], completions=completions)[0] - (raw - 2.0) / 4.0) < 1e-5


def test_a_model_from_elsewhere_has_no_offset(tmp_path: Path) -> None:
    assert Offset.read(tmp_path) == Offset.read(None) == Offset(0.0, 1.0)
