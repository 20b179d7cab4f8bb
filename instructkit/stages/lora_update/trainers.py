"""TRL's SFT, DPO and KTO trainers as an update uses them: the parent is the reference, general rows are replayed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from instructkit.models import adapters
from instructkit.models.generate import pad_labelled
from instructkit.models.tokens import IGNORED

WRITTEN = "written"  # of a row of pairs: whether the user wrote the better answer
OF_PAIRS = ["sigmoid"]  # TRL's default, to which the NLL of written answers is added


class Replay:
    """
    Adds replayed demonstrations to a trainer's loss, one micro-batch of them to each of its own.

    `L = (1 - share) * L_feedback + share * NLL(replay) + anchor * KL(parent || model)(replay)`: experience replay against
    forgetting (Scialom et al. 2022, 2205.12393, section 3). One mechanism serves the three trainers, whose rows differ.
    """

    _given: list[dict[str, list[int]]] = []
    _own: list[dict[str, list[int]]] = []
    _share = _own_share = _anchor = 0.0

    def replay(
        self, given: list[dict], own: list[dict], *, share: float, own_share: float, anchor: float = 0.0
    ) -> None:
        """
        Replay rows (`input_ids`, `labels`) in an order drawn from the run's seed.

        Args:
            given: demonstrations.
            own: the parent's own answers (Huang et al. 2024, 2403.01244, self-synthesized rehearsal): what it has learned
                since its demonstrations, by rewards say, is in these alone.
            share: weight in the loss.
            own_share: share of the rows drawn that are of the second kind.
            anchor: weight of the KL from the parent on the same rows, nats per token.
        """
        self._given, self._own = given, own
        self._share, self._own_share, self._anchor = share, own_share if own else 0.0, anchor
        self._drawn = (-1, 0)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ):
        """The trainer's own loss and, in training, the replayed one."""
        own = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not (self._given and self.model.training):
            return own
        loss = own[0] if return_outputs else own
        # Trainer divides the loss it gets here by the accumulation steps unless it was already counted over them.
        scale = self.args.gradient_accumulation_steps if self._counts_whole_step(num_items_in_batch) else 1
        mixed = (1 - self._share) * loss + self._replayed(model) / scale
        return (mixed, own[1]) if return_outputs else mixed

    def _counts_whole_step(self, num_items_in_batch: Any) -> bool:
        scaled = self.loss_is_scaled_for_ga
        return num_items_in_batch is not None if scaled is None else scaled

    def _draw(self) -> list[dict[str, list[int]]]:
        """Rows that depend on seed, step and micro-batch alone, so that a resumed run draws what an unbroken one does."""
        step = self.state.global_step
        self._drawn = (step, self._drawn[1] + 1 if self._drawn[0] == step else 0)
        order = random.Random(f"{self.args.seed} {self._drawn}")
        count = self.args.per_device_train_batch_size
        own = sum(order.random() < self._own_share for _ in range(count))
        return order.choices(self._own or self._given, k=own) + order.choices(self._given, k=count - own)

    def _replayed(self, model: Any) -> torch.Tensor:
        """`share * NLL + anchor * KL(parent || model)` of one micro-batch of replayed rows."""
        rows = self._draw()
        pad_id, device = self.processing_class.pad_token_id, self.accelerator.device
        ids, labels, mask = pad_labelled(rows, pad_id, device)
        if not self._anchor:
            read = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
            return self._share * read.loss
        asked = labels[:, 1:] != IGNORED
        # The parent reads first: with gradient checkpointing the last reading must be the one that is learned from.
        with torch.no_grad(), adapters.as_parent(self.accelerator.unwrap_model(self.model)):
            theirs = self._logprobs(model, ids, mask)[asked]
        ours = self._logprobs(model, ids, mask)[asked]
        nll = -ours.gather(1, labels[:, 1:][asked].unsqueeze(1)).mean()
        kl = (theirs.exp() * (theirs - ours)).sum(1).mean()
        return self._share * nll + self._anchor * kl

    @staticmethod
    def _logprobs(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`(B, T - 1, V)`, float32."""
        return model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)


class ParentReference:
    """The reference of DPO and KTO is the parent, whose log-probabilities are computed once, before training."""

    _told: tuple[str, ...] = ()  # the columns of a row that hold what the reference says of it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """On paper the parent has no numbers to compute with: zeros stand for what it would say, so a step reads as much."""
        config = kwargs["args"]
        on_paper = config.precompute_ref_log_probs and any(p.is_meta for p in kwargs["model"].parameters())
        if on_paper:
            config.precompute_ref_log_probs = False  # TRL would take a hash of the weights
        super().__init__(*args, **kwargs)
        if on_paper:
            config.precompute_ref_log_probs = self.precompute_ref_logps = True
            for name in self._told:
                self.train_dataset = self.train_dataset.add_column(name, [0.0] * len(self.train_dataset))

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        """TRL's own computation, under the parent's adapters instead of the copy that TRL makes."""
        with adapters.as_parent(self.accelerator.unwrap_model(self.model)):
            self.ref_model = model  # tells TRL that the model it is given already is the reference
            try:
                return super().compute_ref_log_probs(model, inputs)
            finally:
                self.ref_model = None


class SFTUpdater(Replay, SFTTrainer):
    """Better answers and good ratings as demonstrations."""


class DPOUpdater(Replay, ParentReference, DPOTrainer):
    """
    Preferences and edits as pairs.

    `L = mean(-log sigmoid(beta * margin) + w * NLL per token of the better answer)` over the rows, with `w = 1` where the user
    wrote the better answer and 0 elsewhere: the term keeps it likely in itself, while DPO alone only widens the gap (Pang et
    al. 2404.19733, equation 1). A `loss_type` of the recipe's own takes the place of all of it.
    """

    _told = ("ref_chosen_logps", "ref_rejected_logps")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        collate = self.data_collator  # the log-probabilities of the reference were computed without the mark
        self.data_collator = lambda rows: {
            **collate(rows), WRITTEN: torch.tensor([bool(row.get(WRITTEN)) for row in rows])
        }  # fmt: skip

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, WRITTEN]))

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """TRL's own loss and, of rows with the mark, the NLL, from the same pass."""
        inputs, passes = dict(inputs), []
        written = inputs.pop(WRITTEN)

        def read(**given: Any) -> Any:
            passes.append(model(**given))
            return passes[-1]

        own = super()._compute_loss(read, inputs, return_outputs)
        if self.loss_types != OF_PAIRS:
            return own
        mask = inputs["completion_mask"][:, 1:].chunk(2)[0]
        logprobs = passes[0].log_probs[:, -mask.shape[1] :].chunk(2)[0]
        nll = -(logprobs * mask).sum(1) / mask.sum(1).clamp(min=1)
        term = (nll * written).mean()
        return (own[0] + term, own[1]) if return_outputs else own + term


class KTOUpdater(Replay, ParentReference, KTOTrainer):
    """Ratings of both signs."""

    _told = ("ref_logps", "ref_KL_logps")  # a loss without a KL passes the second by


def for_objective(objective: str, rows: list[dict[str, Any]]) -> tuple[type, type, dict[str, Any]]:
    """Config class, trainer class and defaults of an objective for these training rows."""
    return {
        "sft": (SFTConfig, SFTUpdater, {}),
        "dpo": (DPOConfig, DPOUpdater, {"precompute_ref_log_probs": True}),
        "kto": (KTOConfig, KTOUpdater, {"precompute_ref_log_probs": True, **class_weights(rows)}),
    }[objective]


def class_weights(rows: list[dict[str, Any]]) -> dict[str, float]:
    """
    KTO's weights of its two classes, so that desirable and undesirable rows weigh between 1:1 and 4:3 (2402.01306, eq. 8).

    The scarcer class is raised to a ratio of 1:1; within the range both stay 1.
    """
    good = sum(row.get("label") is True for row in rows)
    bad = len(rows) - good
    if not (good and bad) or bad <= good <= 4 / 3 * bad:
        return {}
    return {"desirable_weight": bad / good} if good < bad else {"undesirable_weight": good / bad}


@contextlib.contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """Afterwards the model's forward pass is its own again: a trainer puts a head over it, and the next one its own head."""
    base = model.get_base_model()
    before = base.__dict__.get("forward")
    try:
        yield
    finally:
        if before is None:
            base.__dict__.pop("forward", None)
        else:
            base.forward = before


def settle(trainer: Any) -> None:
    """Drop the reference adapter that TRL added and activate parent and new one."""
    adapters.settle(trainer.model)
