"""Recording of the convolutions, resizes and concatenations of one PyTorch forward pass.

A dispatch mode records the calls at operator level and relies on no attributes of modules. The
recording therefore covers functional calls, modules that are called several times, under several
names or with a different dilation each time, and padding that was set after construction. Module
hooks only provide the names for messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segdeploy.onnx_graph.convolutions import IMAGE, ConvGeometry, ResizeGeometry
from segdeploy.proof.operator_calls import ConvCall, Recording, ResizeCall

if TYPE_CHECKING:
    from torch import Tensor, nn


def record(network: nn.Module, run: nn.Module, image: Tensor) -> Recording:
    """Run `image` `(N, C, H, W)` through `run` and record the operator calls.

    `network` is the network inside `run`; module names are relative to it.
    """
    mode = _Recorder()
    output = _watched(network, run, image, mode)
    mode.recording.reached = mode.sources_of([output])
    return mode.recording


def reaches_output(
    network: nn.Module, run: nn.Module, image: Tensor, labels: Collection[str]
) -> bool:
    """Return whether the output of `run` depends on any of the convolution calls `labels`.

    The outputs of these calls are replaced by NaN, which no operator of a network absorbs by
    rounding. If the output of `run` stays bit-identical, it does not depend on the calls.
    """
    plain = _watched(network, run, image, _Recorder())
    poisoned = _watched(network, run, image, _Recorder(poisoned=labels))
    return not torch.equal(plain, poisoned)


def _watched(network: nn.Module, run: nn.Module, image: Tensor, mode: _Recorder) -> Tensor:
    hooks = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: mode.path.append(name)

    def leave(*_: Any) -> None:
        mode.path.pop()

    for name, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(enter(name)))
        hooks.append(module.register_forward_hook(leave))
    image = image.clone()  # a network may modify its input in place
    mode.start(image)
    try:
        with torch.no_grad(), mode:
            output: Tensor = run(image)
    finally:
        for hook in hooks:
            hook.remove()
    return output


_RESIZES = {
    "upsample_nearest2d": "nearest",
    "upsample_bilinear2d": "linear",
    "_upsample_bilinear2d_aa": "linear",
    "upsample_bicubic2d": "cubic",
    "_upsample_bicubic2d_aa": "cubic",
}
# Operators that use only the shape and dtype of a tensor, by prefix.
_SHAPE_ONLY = ("new_", "zeros_like", "ones_like", "full_like", "empty_like", "rand", "normal")
# Operators whose output has the values of their input.
_SAME = ("clone", "alias", "detach", "_to_copy", "contiguous")
# Operators that overwrite all values of their first tensor.
_OVERWRITING = ("copy_", "fill_", "zero_", "lift_fresh")


@dataclass(frozen=True)
class _Padded:
    """A zero-padded tensor: pads (begin..., end...), size before padding, and its memory view."""

    pads: tuple[int, ...]
    source: tuple[int, ...]
    view: tuple[Any, ...]


@dataclass(frozen=True)
class _Call:
    """An operator call: its name without overload, its arguments, and the sources that it reads."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: frozenset[str]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that tracks the sources of values by storage, one entry per storage."""

    supports_higher_order_operators = True

    def __init__(self, poisoned: Collection[str] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        self.path: list[str] = []
        self._poisoned = poisoned
        self._counts: Counter[str] = Counter()
        self._sources: dict[int, frozenset[str]] = {}
        self._pads: dict[int, _Padded] = {}

    def start(self, image: Tensor) -> None:
        """Register the input image as a source, since no recorded operator produces it."""
        self._sources[_memory(image)] = frozenset((IMAGE,))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operator and record it."""
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._run_branch(func, args, kwargs)
        # Inside a branch and in inference mode, composite operators arrive undecomposed.
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = func._schema.name.removeprefix("aten::")
        given = _tensors((args, kwargs))
        memories = {_memory(tensor) for tensor in given}
        sources = self.sources_of(given)
        # Read before the call, since an operator may overwrite its inputs.
        padded = self._padded(given[0]) if given else None
        result = func(*args, **kwargs)
        if name == "convolution":
            label = self._note_convolution(args, result, sources, padded)
            sources = frozenset((label,))
            if label in self._poisoned:
                result = torch.full_like(result, float("nan"))
        elif name.startswith(_SHAPE_ONLY):
            sources = frozenset()
        else:
            self._note_join_or_resize(_Call(name, func, args, kwargs, sources))
        in_place = name.endswith("_")
        writes_part = in_place and _writes_part(given)
        if name.startswith("slice_scatter") or writes_part:
            self.recording.joins = None
        if name in _OVERWRITING and not writes_part:
            sources = self.sources_of(given[1:])
        for tensor in _tensors(result):
            memory = _memory(tensor)
            # The tensor holds new values and is not a view of an input.
            if in_place or name == "lift_fresh" or memory not in memories:
                self._sources[memory] = sources
                self._pads.pop(memory, None)
            if name == "constant_pad_nd":
                self._note_pad(tensor, args, kwargs, padded)
            elif name in _SAME and padded is not None:
                self._pads[memory] = replace(padded, view=_view(tensor))
        return result

    def _note_join_or_resize(self, call: _Call) -> None:
        if call.name == "cat" and self.recording.joins is not None:
            self.recording.joins.append(tuple(self.sources_of([part]) for part in call.args[0]))
        elif call.name in _RESIZES:
            self._note_resize(call)

    def _run_branch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a higher-order operator; of a `torch.cond`, record only the taken branch."""
        self.recording.joins = None
        if func.__name__ != "cond":
            return func(*args, **kwargs)
        condition, when_true, when_false, operands = args
        with self:
            return (when_true if condition else when_false)(*operands)

    def _padded(self, tensor: Tensor) -> _Padded | None:
        """Return the padding of a tensor; None if the tensor is not the whole result of a pad."""
        padded = self._pads.get(_memory(tensor))
        return padded if padded is not None and padded.view == _view(tensor) else None

    def sources_of(self, tensors: Iterable[Tensor]) -> frozenset[str]:
        """Return the convolutions that reach any of `tensors` with no other one in between."""
        found = (self._sources.get(_memory(tensor), frozenset()) for tensor in tensors)
        return frozenset().union(*found)

    def _note_pad(
        self,
        output: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inner: _Padded | None,
    ) -> None:
        image, amounts = args[:2]
        value = args[2] if len(args) > 2 else kwargs.get("value", 0)
        rank = image.ndim - 2
        if value != 0 or min(amounts) < 0 or any(amounts[2 * rank :]):
            return
        # PyTorch lists the amounts from the last axis to the first.
        amounts = [*amounts, *(0,) * (2 * rank - len(amounts))]
        added = (*amounts[0 : 2 * rank : 2][::-1], *amounts[1 : 2 * rank : 2][::-1])
        pads, size = (inner.pads, inner.source) if inner else ((0,) * 2 * rank, image.shape[2:])
        total = tuple(one + other for one, other in zip(pads, added, strict=True))
        self._pads[_memory(output)] = _Padded(total, tuple(size), _view(output))

    def _note_convolution(
        self,
        args: tuple[Any, ...],
        output: Tensor,
        sources: frozenset[str],
        padded: _Padded | None,
    ) -> str:
        image, weight, _, stride, padding, dilation, transposed, output_padding, groups = args
        rank = weight.ndim - 2
        around, size = (0,) * 2 * rank, tuple(image.shape[2:])
        if padded is not None and not transposed:
            around, size = padded.pads, padded.source
        own = _each(padding, rank) * 2
        geometry = ConvGeometry(
            kernel=tuple(weight.shape[2:]),
            dilation=_each(dilation, rank),
            stride=_each(stride, rank),
            padding=tuple(one + other for one, other in zip(own, around, strict=True)),
            groups=groups,
            transposed=transposed,
            output_padding=_each(output_padding, rank) if transposed else (0,) * rank,
        )
        module = self._module()
        self._counts[module] += 1
        count = self._counts[module]
        label = module if count == 1 else f"{module} [{count}]"
        self.recording.convolutions.append(
            ConvCall(label, module, geometry, weight, sources, size, tuple(output.shape[2:]))
        )
        return label

    def _note_resize(self, call: _Call) -> None:
        names = [argument.name for argument in call.func._schema.arguments]
        given = dict(zip(names, call.args, strict=False)) | call.kwargs
        geometry = ResizeGeometry(
            _RESIZES[call.name], bool(given.get("align_corners")), call.name.endswith("_aa")
        )
        self.recording.resizes.append(ResizeCall(self._module(), geometry, call.sources))

    def _module(self) -> str:
        return (self.path[-1] if self.path else "") or "forward"


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _view(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


def _writes_part(given: list[Tensor]) -> bool:
    """Return whether the first tensor, which an in-place operator writes, is part of a storage."""
    return bool(given) and given[0].numel() * given[0].element_size() < (
        given[0].untyped_storage().nbytes()
    )


def _each(values: Any, rank: int) -> tuple[int, ...]:
    """Return one number per axis; an operator may have one number for all axes."""
    return tuple(values) * (rank // len(values))
