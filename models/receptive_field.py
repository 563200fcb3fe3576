"""Receptive field of dilated convolutions, of one kernel and of a whole network.

Yu and Koltun 2015 (arXiv 1511.07122), section 2; the interval arithmetic is that of Araujo et al.
2019 ("Computing Receptive Fields of Convolutional Neural Networks", Distill).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segdeploy.models.errors import ModelInputError, first_line


def receptive_field(kernel_size: int, dilation: int) -> int:
    """Pixels, along one axis, between the outermost taps of one dilated kernel, both included."""
    return (kernel_size - 1) * dilation + 1


@dataclass(frozen=True)
class Reach:
    """Which input rows a value of a feature map depends on.

    The value at index i depends on rows `first + stride * i` to `last + stride * i`, clipped to the
    image; `pooled` says that it depends, through a global pooling, on the whole image besides.
    `first` and `last` are None where it depends on the image through a global pooling alone.
    """

    first: Fraction | None = Fraction(0)
    last: Fraction | None = Fraction(0)
    stride: Fraction = Fraction(1)
    pooled: bool = False

    @property
    def size(self) -> int | None:
        """The receptive field in pixels, global poolings left out; None if there is but that."""
        if self.first is None or self.last is None:
            return None
        return int(self.last - self.first) + 1

    @property
    def centre(self) -> float | None:
        """Middle of the receptive field of the value at index 0, in pixels."""
        if self.first is None or self.last is None:
            return None
        return float(self.first + self.last) / 2

    def through(self, kernel: int, stride: int, padding: int, dilation: int) -> Reach:
        """The reach behind a convolution or pooling."""
        if self.first is None or self.last is None:
            return self
        first = self.first - self.stride * padding
        last = self.last + self.stride * (receptive_field(kernel, dilation) - 1 - padding)
        return Reach(first, last, self.stride * stride, self.pooled)

    def resized(self, factor: Fraction, *, align_corners: bool) -> Reach:
        """The reach behind a bilinear resize: two neighbours, half a step to either side.

        Unless corners are aligned, pixel centres lie at half, and the first one moves.
        """
        if self.first is None or self.last is None:
            return self
        half, stride = self.stride / 2, self.stride / factor
        shift = Fraction(0) if align_corners else (stride - self.stride) / 2
        return Reach(self.first + shift - half, self.last + shift + half, stride, self.pooled)

    def pooled_globally(self) -> Reach:
        """The reach behind a global pooling."""
        return Reach(None, None, self.stride, True)

    def joined(self, other: Reach) -> Reach:
        """The reach of a sum or a concatenation."""
        if self.first is None or self.last is None:
            return replace(other, pooled=True)
        if other.first is None or other.last is None:
            return replace(self, pooled=True)
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Reach(first, last, self.stride, self.pooled or other.pooled)


@dataclass(frozen=True)
class Layer:
    """One convolution or pooling as it ran: its geometry (vertical), its reach, its work."""

    name: str
    kind: str
    kernel: int
    dilation: int
    stride: int
    macs: int
    reach: Reach


@dataclass(frozen=True)
class Anatomy:
    """A network's layers in the order in which they ran, and the reach of its output."""

    layers: tuple[Layer, ...]
    output: Reach

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all convolutions, for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def output_stride(self) -> int:
        """Input pixels a step of the coarsest map that a convolution gives."""
        strides = [layer.reach.stride for layer in self.layers if layer.reach.first is not None]
        return int(max(strides, default=Fraction(1)))

    @property
    def dilations(self) -> tuple[int, ...]:
        """The dilations of the convolutions, each once, in order."""
        return tuple(sorted({layer.dilation for layer in self.layers if layer.kernel > 1}))


def anatomy(network: nn.Module, size: tuple[int, int]) -> Anatomy:
    """Run `network` once on an image of `size` (H, W) and follow what each value depends on.

    A network on the meta device is followed without computing anything.

    Raises:
        ModelInputError: if the network cannot take the size.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    image = torch.zeros(1, 3, *size, device=device)
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), _Tracer() as tracer, _named(network, tracer):
            tracer.mark(image, Reach())
            output = network(image)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelInputError(
            f"the network cannot take a {size[0]}x{size[1]} image ({first_line(error)})"
        ) from error
    finally:
        network.train(training)
    return Anatomy(tuple(tracer.layers), tracer.of([output]))


class _Tracer(TorchFunctionMode):
    """Carries a `Reach` from the inputs of every torch function to its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.module = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self.of([*args, *kwargs.values()])
        output = func(*args, **kwargs)
        if isinstance(output, Tensor) and output.ndim == 4:
            maps = [a for a in args if isinstance(a, Tensor) and a.ndim == 4]
            # Of a map and a 1x1 map that scales or shifts it, the map says how large the result is.
            source = max(maps, key=lambda a: a.shape[2] * a.shape[3], default=None)
            self.mark(output, self._behind(func, before, source, output, args, kwargs))
        return output

    def mark(self, tensor: Tensor, reach: Reach) -> None:
        """Remember what a feature map depends on."""
        tensor._segdeploy_reach = reach  # type: ignore[attr-defined]

    def of(self, values: Iterable[Any]) -> Reach:
        """The joined reach of all tensors among `values`, however deep."""
        reaches = list(_reaches(values))
        if not reaches:
            return Reach()
        joined = reaches[0]
        for reach in reaches[1:]:
            joined = joined.joined(reach)
        return joined

    def _behind(
        self,
        func: Any,
        before: Reach,
        source: Tensor | None,
        output: Tensor,
        args: Any,
        kwargs: Any,
    ) -> Reach:
        name = getattr(func, "__name__", "")
        if source is None:
            return before
        if name == "conv2d":
            return self._convolution(before, source, output, args, kwargs)
        if name in ("max_pool2d", "avg_pool2d"):
            return self._pooling(name, before, args, kwargs)
        spatial, behind = tuple(source.shape[2:]), tuple(output.shape[2:])
        if spatial == behind:
            return before
        if behind == (1, 1):
            return before.pooled_globally()
        aligned = bool(kwargs.get("align_corners"))
        return before.resized(Fraction(behind[0], spatial[0]), align_corners=aligned)

    def _convolution(
        self, before: Reach, source: Tensor, output: Tensor, args: Any, kwargs: Any
    ) -> Reach:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = {"stride": 1, "padding": 0, "dilation": 1, **kwargs}
        given.update(zip(names, args, strict=False))
        weight: Tensor = given["weight"]
        kernel, stride, dilation = (
            weight.shape[2],
            _first(given["stride"]),
            _first(given["dilation"]),
        )
        reach = receptive_field(kernel, dilation)
        padding = given["padding"]
        if isinstance(padding, str):
            padding = (reach - 1) // 2 if padding == "same" else 0
        after = before.through(kernel, stride, _first(padding), dilation)
        macs = output.numel() // output.shape[0] * weight[0].numel()
        self.layers.append(
            Layer(self.module or "(functional)", "conv", kernel, dilation, stride, macs, after)
        )
        return after

    def _pooling(self, name: str, before: Reach, args: Any, kwargs: Any) -> Reach:
        given = {"padding": 0, "dilation": 1, **kwargs}
        given.update(zip(("input", "kernel_size", "stride", "padding"), args, strict=False))
        kernel = _first(given["kernel_size"])
        stride = _first(given.get("stride") or kernel)
        after = before.through(kernel, stride, _first(given["padding"]), _first(given["dilation"]))
        kind = name.removesuffix("2d")
        self.layers.append(Layer(self.module or kind, kind, kernel, 1, stride, 0, after))
        return after


def _reaches(values: Iterable[Any]) -> Iterator[Reach]:
    for value in values:
        if isinstance(value, Tensor):
            reach = getattr(value, "_segdeploy_reach", None)
            if reach is not None:
                yield reach
        elif isinstance(value, dict):
            yield from _reaches(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _reaches(value)


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, (tuple, list)) else value)


@contextmanager
def _named(network: nn.Module, tracer: _Tracer) -> Iterator[None]:
    """Tell the tracer which convolution or pooling module runs."""

    def entering(name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            tracer.module = name

        return enter

    def leave(*_: Any) -> None:
        tracer.module = ""

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            hooks.append(module.register_forward_pre_hook(entering(name)))
            hooks.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
