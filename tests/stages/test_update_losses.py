"""What an update's trainers minimise: the parent as reference, replay beside the feedback, what users wrote as demonstrations."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from instructkit.feedback.preprocess import objectives
from instructkit.feedback.preprocess.items import Item, Phase
from instructkit.models import adapters
from instructkit.stages.lora_update import trainers

SETTINGS = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
EDIT = Item("e", "Say one.", " one it is", " no", edit=True)
CHOICE = Item("c", "Say two.", " two of them", " never", rating=1.0)
RATED = [Item("u", "Say two.", " two", rating=1.0), Item("d", "Say one.", " no", rating=-1.0)]


def shaken(model, name: str):
    torch.manual_seed(len(name))
    for key, parameter in model.named_parameters():
        if f"lora_B.{name}" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def parent(tiny_folder, tmp_path_factory):
    """A folder with an adapter that stands on the embedded model."""
    folder = tmp_path_factory.mktemp("parent")
    torch.manual_seed(0)  # half of a fresh adapter is random
    model = adapters.add_lora(AutoModelForCausalLM.from_pretrained(tiny_folder), SETTINGS, None)
    adapters.save_update(shaken(model, "default"), folder, base=str(tiny_folder))
    return folder


def trainer_of(objective: str, items: list[Item], tiny_folder, parent, tmp_path, **settings):
    """A trainer above the parent whose own adapter has moved already, as one that goes on has."""
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    torch.manual_seed(1)
    model = shaken(adapters.add_lora(base, SETTINGS, parent), "default")
    rows = objectives.rows(Phase(objective, items), 0)
    config, trainer_class, defaults = trainers.for_objective(objective, rows)
    options = {"use_cpu": True, "report_to": "none", "per_device_train_batch_size": 2, "bf16": False}
    args = config(output_dir=str(tmp_path / "out"), **options | defaults | settings)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    trainer = trainer_class(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainers.settle(trainer)
    return trainer


def logprob(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + answer])
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.log_softmax(-1)[0, :-1]
    return found.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum()


def test_the_reference_is_the_parent_and_neither_the_base_nor_what_goes_on(
    tiny_folder, parent, tmp_path
) -> None:
    trainer = trainer_of("dpo", [EDIT, CHOICE], tiny_folder, parent, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    alone = PeftModel.from_pretrained(base, parent).eval()
    for row in trainer.train_dataset:
        for side in ("chosen", "rejected"):
            with torch.no_grad():
                theirs = logprob(alone, row["prompt_ids"], row[f"{side}_ids"]).item()
                with alone.disable_adapter():
                    bare = logprob(alone, row["prompt_ids"], row[f"{side}_ids"]).item()
            assert row[f"ref_{side}_logps"] == pytest.approx(theirs, abs=1e-3)
            assert (
                abs(bare - theirs) > 0.01
            )  # ten times the tolerance: the base would be told from the parent


def test_ktos_reference_is_the_parent_too(tiny_folder, parent, tmp_path) -> None:
    trainer = trainer_of("kto", RATED, tiny_folder, parent, tmp_path)
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), parent).eval()
    for row in trainer.train_dataset:
        with torch.no_grad():
            theirs = logprob(alone, row["prompt_ids"], row["completion_ids"]).item()
        assert row["ref_logps"] == pytest.approx(theirs, abs=1e-3)


def dpo_loss(trainer) -> float:
    trainer.model.train()
    return trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).item()


def test_only_what_a_user_wrote_is_a_demonstration_too(tiny_folder, parent, tmp_path) -> None:
    """DPO's own loss by its equation, and the NLL per token of the edit's better answer alone, over two rows."""
    trainer = trainer_of("dpo", [EDIT, CHOICE], tiny_folder, parent, tmp_path)
    found, model = dpo_loss(trainer), trainer.model
    wanted = 0.0
    with torch.no_grad():
        for row in trainer.train_dataset:
            chosen, rejected = (
                logprob(model, row["prompt_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected")
            )
            margin = (chosen - row["ref_chosen_logps"]) - (rejected - row["ref_rejected_logps"])
            wanted -= torch.nn.functional.logsigmoid(0.1 * margin).item() / 2
            if row["written"]:
                wanted -= chosen.item() / len(row["chosen_ids"]) / 2
    assert found == pytest.approx(wanted, rel=1e-4)
    assert [row["written"] for row in trainer.train_dataset] == [True, False]
    without = trainer_of("dpo", [CHOICE, CHOICE], tiny_folder, parent, tmp_path / "b")
    theirs = trainer_of(
        "dpo", [CHOICE, CHOICE], tiny_folder, parent, tmp_path / "c", loss_type=["sigmoid", "sft"]
    )
    assert dpo_loss(theirs) - dpo_loss(without) > 1  # a recipe's own list is TRL's, for every row


class Own:
    """A trainer whose loss is 2."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return (torch.tensor(2.0), "said") if return_outputs else torch.tensor(2.0)


class Mixed(trainers.Replay, Own):
    """A replay above it, without the rest of a trainer."""

    loss_is_scaled_for_ga = None

    def __init__(self, model, steps: int) -> None:
        self.model = model
        self.state = SimpleNamespace(global_step=0)
        self.args = SimpleNamespace(seed=1, per_device_train_batch_size=2, gradient_accumulation_steps=steps)
        self.processing_class = SimpleNamespace(pad_token_id=0)
        self.accelerator = SimpleNamespace(device="cpu", unwrap_model=lambda m: m)


@pytest.mark.parametrize(("counted", "scale"), [(None, 1), (7, 4)])
def test_replay_stands_beside_the_feedback_with_its_share(tiny_folder, counted, scale) -> None:
    """`0.75 x 2 + 0.25 NLL`; a loss counted over the whole step gets a quarter of the NLL in each of four micro-batches."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = list(range(5, 15))
    mixed = Mixed(model, steps=4)
    mixed.replay([{"input_ids": ids, "labels": [-100, -100, *ids[2:]]}], [], share=0.25, own_share=0.0)
    model.forward = _plain(model)
    found, said = mixed.compute_loss(model.train(), {}, True, counted)
    logits = model.eval()(input_ids=torch.tensor([ids])).logits.log_softmax(-1)[0, 1:-1]
    nll = torch.nn.functional.nll_loss(logits, torch.tensor(ids[2:])).item()
    assert nll > 0.1 and said == "said"
    assert found.item() == pytest.approx(0.75 * 2 + 0.25 * nll / scale, rel=1e-5)
    model.eval()
    assert mixed.compute_loss(model, {}).item() == 2.0  # what is measured is the feedback alone


def _plain(model):
    """The forward pass, for which the head that a trainer puts over it is one like any other."""
    forward = type(model).forward.__get__(model)
    return lambda *args, fused_lm_head=False, **kwargs: forward(*args, **kwargs)
