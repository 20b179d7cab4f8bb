"""
Counting tensors that have shapes and no numbers.

On torch's meta device every operation works out the shape of its result and nothing else. A trainer built there takes its
real step, through its real collator, loss and backward pass, in a second, and a ledger of the storages that are
alive tells what that step would hold.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_ATEN = torch.ops.aten
GRADIENTS, CACHE = "gradients", "KV cache"
KINDS = ("activations", "logits", GRADIENTS, CACHE)


class Held(NamedTuple):
    """What a phase holds beside the weights, in bytes by kind: at its peak, and of each kind the most at any time."""

    at_peak: dict[str, int]
    most: dict[str, int]


class Ledger(TorchDispatchMode):
    """
    The bytes of all tensors of one device that operations make, while they live.

    Where a program asks a tensor for its numbers, it is told that a mask has gaps and that every row counts, which is the
    case that takes the most memory.

    Args:
        device: the type of device whose tensors count.

    Attributes:
        now, peak: bytes alive, and the most that there were since `forget_peak`.
        vocabulary: the last dimension of tensors that count as logits; None where nothing does.
        gradient_shapes: shapes of trained weights: what a backward pass makes in one of them counts as gradient.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.now = self.peak = 0
        self.vocabulary: int | None = None
        self.gradient_shapes: frozenset[tuple[int, ...]] = frozenset()
        self._known: dict[int, str] = {}
        self._by_kind: Counter[str] = Counter()
        self._at_peak: Counter[str] = Counter()
        self._most: Counter[str] = Counter()

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that are there already; their bytes."""
        before = self.now
        for tensor in tensors:
            self._enter(tensor)
        return self.now - before

    def forget_peak(self) -> None:
        """Measure the peak from here on."""
        self.peak, self._at_peak = self.now, self._by_kind.copy()
        self._most = self._by_kind.copy()

    def begin(self) -> dict[str, int]:
        """Forget the peak; the bytes alive by kind, for `held`."""
        self.forget_peak()
        return dict(self._by_kind)

    def held(self, before: dict[str, int]) -> dict[str, int]:
        """What the peak held above `before`, by kind: activations, logits, gradients, KV cache; they add up to the peak."""
        found = {kind: self._at_peak[kind] - before.get(kind, 0) for kind in KINDS}
        for kind in KINDS[1:]:
            if found[kind] < 0:  # what was there before has gone
                found[KINDS[0]] += found[kind]
                found[kind] = 0
        return found

    def most(self, before: dict[str, int]) -> dict[str, int]:
        """The most that there was of each kind above `before`, whenever that was; together they may be more than the peak."""
        return {kind: max(0, self._most[kind] - before.get(kind, 0)) for kind in KINDS}

    def mark(self, tensor: Tensor, kind: str) -> None:
        """Count the storage of this tensor as another kind from here on."""
        key, size = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()
        if key in self._known:
            self._by_kind[self._known[key]] -= size
            self._add(kind, size)
            self._known[key] = kind

    def _add(self, kind: str, size: int) -> None:
        self._by_kind[kind] += size
        self._most[kind] = max(self._most[kind], self._by_kind[kind])

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _answer(operation, args)
        if result is None:
            result = operation(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._enter(tensor)
        return result

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = kind = self._kind(tensor)
        self.now += size
        self._add(kind, size)
        if self.now > self.peak:
            self.peak, self._at_peak = self.now, self._by_kind.copy()
        weakref.finalize(storage, self._leave, key, size)

    def _kind(self, tensor: Tensor) -> str:
        if not torch.is_grad_enabled() and tuple(tensor.shape) in self.gradient_shapes:
            return GRADIENTS
        if tensor.dim() > 1 and tensor.size(-1) == self.vocabulary:
            return "logits"
        return KINDS[0]

    def _leave(self, key: int, size: int) -> None:
        self._by_kind[self._known.pop(key)] -= size
        self.now -= size


def _answer(operation: Any, args: Any) -> Any:
    """What depends on numbers that are not there; None for everything else."""
    if operation is _ATEN.copy_.default and args[1].is_meta and not args[0].is_meta:
        return args[0]  # into a tensor that has numbers there is nothing to copy
    first = args[0] if args and isinstance(args[0], Tensor) and args[0].is_meta else None
    if first is None:
        return None
    if operation is _ATEN._local_scalar_dense.default:
        return False if first.dtype == torch.bool else 1.0 if first.dtype.is_floating_point else 1
    if operation is _ATEN.nonzero.default:
        return first.new_empty((first.numel(), first.dim()), dtype=torch.long)
    if operation is _ATEN.masked_select.default:
        return first.new_empty((first.numel(),))
    if operation is _ATEN.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
        mask = args[1][0]
        return first.new_empty((mask.numel(), *first.shape[mask.dim() :]))
    return None


@contextlib.contextmanager
def rehearsing() -> Iterator[Ledger]:
    """Within this context libraries take the meta device for the one that trains, and the ledger counts."""
    import accelerate
    import transformers

    # Where libraries ask torch for the autocast of a tensor's device, or move a model there.
    stand_ins = (
        (torch, "is_autocast_enabled", _unless_meta(torch.is_autocast_enabled, False)),
        (torch, "autocast", _unless_meta(torch.autocast, contextlib.nullcontext())),
        (transformers.Trainer, "_move_model_to_device", lambda self, model, device: model),
        (transformers.Trainer, "init_hf_repo", lambda self, *args, **kwargs: None),  # it would make one
        (accelerate.Accelerator, "device", property(lambda self: torch.device("meta"))),
    )
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in stand_ins]
    for owner, name, stand_in in stand_ins:
        setattr(owner, name, stand_in)
    ledger = Ledger()
    try:
        with ledger:
            yield ledger
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _unless_meta(original: Any, instead: Any) -> Any:
    def stand_in(device_type: str | None = None, *args: Any, **kwargs: Any) -> Any:
        if device_type == "meta":
            return instead
        return original(*args, **kwargs) if device_type is None else original(device_type, *args, **kwargs)

    return stand_in
