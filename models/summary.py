"""Summary of a network's layers: dilation, receptive field, effective stride, work.

Shapes and geometry are recorded in one forward pass, so any network can be inspected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segdeploy.models.errors import ModelInputError, first_line
from segdeploy.models.network import channel_count
from segdeploy.models.receptive_field import Reach, receptive_field


@dataclass(frozen=True)
class Layer:
    """One executed convolution or pooling: geometry, reach and multiply-accumulates.

    `kernel`, `dilation`, `stride` and `reach` are along the rows. Fields that end in `_width` are
    along the columns.
    """

    name: str
    kind: str
    kernel: int
    kernel_width: int
    dilation: int
    dilation_width: int
    stride: int
    macs: int
    reach: Reach


@dataclass(frozen=True)
class Anatomy:
    """The layers of a network in execution order, and the reach of its output."""

    layers: tuple[Layer, ...]
    output: Reach

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all convolutions, for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def output_stride(self) -> int:
        """Largest stride of a layer's output, in input pixels per step."""
        strides = [layer.reach.stride for layer in self.layers if layer.reach.first is not None]
        return int(max(strides, default=Fraction(1)))

    @property
    def dilations(self) -> tuple[int, ...]:
        """The distinct dilations of the convolutions, in ascending order."""
        rows = {layer.dilation for layer in self.layers if layer.kernel > 1}
        columns = {layer.dilation_width for layer in self.layers if layer.kernel_width > 1}
        return tuple(sorted(rows | columns))


def anatomy(network: nn.Module, size: tuple[int, int]) -> Anatomy:
    """Run `network` once on an image of `size` (H, W), and trace the reach of every layer.

    On the meta device the network is traced without computing anything.

    Raises:
        ModelInputError: if the network cannot take an image of this size.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    image = torch.zeros(1, channel_count(network), *size, device=device)
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


_PLAIN = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "output_padding",
    "groups",
    "dilation",
)
# Functions whose output values may depend on every position of the feature map.
_MIXING = (
    *("matmul", "__matmul__", "bmm", "baddbmm", "einsum", "roll"),
    *("scaled_dot_product_attention", "multi_head_attention_forward"),
)
_REDUCING = (
    "mean",
    "sum",
    "amax",
    "max",
    "var",
    "std",
    "logsumexp",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
)
_RESIZING = ("interpolate", "upsample", "pixel_shuffle", "pixel_unshuffle", "grid_sample")


class _Tracer(TorchFunctionMode):
    """Mode that propagates a `Reach` from the inputs of every torch function to its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.module = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self.of([*args, *kwargs.values()])
        output = func(*args, **kwargs)
        for tensor in _tensors([output]):
            maps = [a for a in _tensors(args) if a.ndim == 4]
            # If a 1x1 tensor scales or shifts a feature map, the feature map has the output's size.
            source = max(maps, key=lambda a: a.shape[2] * a.shape[3], default=None)
            self.mark(tensor, self._behind(func, before, source, tensor, args, kwargs))
        return output

    def mark(self, tensor: Tensor, reach: Reach) -> None:
        """Attach a reach to a tensor."""
        tensor._segdeploy_reach = reach  # type: ignore[attr-defined]

    def of(self, values: Iterable[Any]) -> Reach:
        """Return the joined reach of all tensors in `values`, at any nesting depth."""
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
        if name in _MIXING or (name == "linear" and args[0].ndim == 2):
            return before.pooled_globally()
        if source is None:
            shrunk = name in _REDUCING and output.numel() < args[0].numel()
            return before.pooled_globally() if shrunk else before
        if name == "pad":
            return before.shifted(-args[1][2] if len(args[1]) > 2 else 0)
        if name == "__getitem__":
            start, step = _rows_taken(args[1], source.shape[2])
            return before.shifted(start).through(1, step, 0, 1)
        if name in ("conv2d", "conv_transpose2d"):
            return self._convolution(name, before, source, output, args, kwargs)
        if name in ("max_pool2d", "avg_pool2d"):
            return self._pooling(name, before, args, kwargs)
        rows = source.shape[2]
        if name.startswith("adaptive_") and output.shape[2:] != (1, 1):
            bins = Fraction(rows, output.shape[2])
            return before.through(-(-rows // output.shape[2]), bins, 0, 1)
        if name in _REDUCING and rows * source.shape[3] > 1 and output.shape[2:] in ((), (1, 1)):
            return before.pooled_globally()
        if name in _RESIZING and output.shape[2] != rows:
            aligned = bool(kwargs.get("align_corners"))
            return before.resized(Fraction(output.shape[2], rows), align_corners=aligned)
        return before  # elementwise, or only another layout

    def _convolution(
        self, name: str, before: Reach, source: Tensor, output: Tensor, args: Any, kwargs: Any
    ) -> Reach:
        transposed = name == "conv_transpose2d"
        given = {"stride": 1, "padding": 0, "dilation": 1, **kwargs}
        given.update(zip(_TRANSPOSED if transposed else _PLAIN, args, strict=False))
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
        behind = before.through_transposed if transposed else before.through
        after = behind(kernel, stride, _first(padding), dilation)
        # A transposed convolution spreads each input value over a kernel of output values.
        values = source if transposed else output
        macs = values.numel() // len(values) * weight[0].numel()
        kind, width = "conv transposed" if transposed else "conv", weight.shape[3]
        name = self.module or "(functional)"
        across = _last(given["dilation"])
        self.layers.append(Layer(name, kind, kernel, width, dilation, across, stride, macs, after))
        return after

    def _pooling(self, name: str, before: Reach, args: Any, kwargs: Any) -> Reach:
        given = {"padding": 0, "dilation": 1, **kwargs}
        given.update(zip(("input", "kernel_size", "stride", "padding"), args, strict=False))
        kernel = _first(given["kernel_size"])
        stride = _first(given.get("stride") or kernel)
        after = before.through(kernel, stride, _first(given["padding"]), _first(given["dilation"]))
        kind, width = name.removesuffix("2d"), _last(given["kernel_size"])
        self.layers.append(Layer(self.module or kind, kind, kernel, width, 1, 1, stride, 0, after))
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


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _rows_taken(index: Any, rows: int) -> tuple[int, int]:
    """Return the first row and step of a slice of `(N, C, H, W)`; (0, 1) for any other index."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        gap = parts.index(Ellipsis)
        parts[gap : gap + 1] = [slice(None)] * (5 - len(parts))
    if len(parts) < 3 or not isinstance(parts[2], slice):
        return 0, 1
    start, _, step = parts[2].indices(rows)
    return start, step


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, (tuple, list)) else value)


def _last(value: Any) -> int:
    return int(value[-1] if isinstance(value, (tuple, list)) else value)


@contextmanager
def _named(network: nn.Module, tracer: _Tracer) -> Iterator[None]:
    """Set `tracer.module` to the name of the running convolution or pooling module."""

    def entering(name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            tracer.module = name

        return enter

    def leave(*_: Any) -> None:
        tracer.module = ""

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d)):
            hooks.append(module.register_forward_pre_hook(entering(name)))
            hooks.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
