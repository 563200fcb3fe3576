"""Common interface of segmentation networks: image in, logits of the image's size out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdeploy.models.errors import ModelInputError, first_line

# Usual names of the logits in networks with several named outputs.
_MAIN = ("out", "logits", "pred", "preds", "prediction", "predictions", "seg", "semantic", "main")
_DEPTH = 4
# Size multiples that encoders require, in the order of trial.
_STEPS = (1, 2, 4, 8, 16, 32, 64, 128)


class Network(nn.Module):
    """Wrapper that makes a network return logits `(N, num_classes, H, W)` for `(N, C, H, W)`.

    A network may return one tensor, or several in a mapping, a tuple, a dataclass or any other
    object (`{"out": ..., "aux": ...}`, Hugging Face's outputs). `take` selects the output with the
    logits, by key or index. Without `take` the logits are found automatically. `taken` holds their
    key. If `num_classes` is None, it is the number of channels of the logits. Logits of another
    size are resized bilinearly to the input size, with `align_corners` as the network's own code
    does it. A forward pass at `size` decides whether a resize
    is needed, so that an exported graph holds no branch.

    Raises:
        ModelInputError: if the network cannot take `size`, does not return one channel per class,
            returns several outputs without a recognizable main output, or values that are not
            finite.
    """

    def __init__(
        self,
        module: nn.Module,
        num_classes: int | None,
        size: tuple[int, int],
        name: str,
        take: str | None = None,
        channels: int = 3,
        *,
        align_corners: bool = False,
    ):
        super().__init__()
        self.module = module
        self.channels = channels
        self.align_corners = align_corners
        self.name = name
        self.resize = False
        self.taken = take
        self.others: tuple[str, ...] = ()
        logits = self._main_output(self._first_run(size), num_classes)
        self.num_classes = num_classes or logits.shape[1]
        self._check(logits, size)

    def fit(self, size: tuple[int, int]) -> None:
        """Run an image of `size` (H, W), and resize from now on if the logits have another size.

        Raises:
            ModelInputError: as the class does.
        """
        self._check(self._main_output(self._run(size), self.num_classes), size)

    def activation(self, size: tuple[int, int]) -> str | None:
        """Return `softmax` or `sigmoid` if the network ends in one, else None.

        The outputs of a softmax sum to one. Those of a sigmoid stay within 0 and 1 for any image,
        as for one of very large values.
        """
        shape = (1, self.channels, *size)
        noise = 1e4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        parameter = next(self.parameters(), torch.zeros(()))
        try:
            with torch.no_grad():
                output = self.module(noise.to(parameter.device))
        except Exception:  # the user's own code may refuse such values
            return None
        scores = self._main_output(output, self.num_classes)
        if not torch.isfinite(scores).all() or not ((scores >= 0) & (scores <= 1)).all():
            return None
        is_one = torch.allclose(scores.sum(1), torch.ones(()).to(scores), atol=1e-3)
        if self.num_classes != 1 and is_one:
            return "softmax"
        return "sigmoid" if scores.max() > scores.min() else None

    def step(self, size: tuple[int, int]) -> int | None:
        """Return the number of which height and width must be multiples; None if none is found.

        Tries sizes near `size` (H, W) that are odd multiples of 1, 2, 4, ..., as far as these
        divide `size`. An encoder that halves five times takes only multiples of 32, unless it pads.
        """
        for step in _STEPS:
            tried = [(side // step | 1) * step for side in size]
            more = [side + 2 * step for side in tried]
            if any(side % step for side in size):
                return None
            if self._takes((tried[0], more[1])) and self._takes((more[0], tried[1])):
                return step
        return None

    def _takes(self, size: tuple[int, int]) -> bool:
        try:
            logits = self._main_output(self._run(size), self.num_classes)
        except ModelInputError:
            return False
        return logits.ndim == 4

    def _first_run(self, size: tuple[int, int]) -> Any:
        """Run the network once; if that fails, name a size that the network takes."""
        try:
            return self._run(size)
        except ModelInputError as error:
            for step in _STEPS[1:]:
                height, width = ((side // step | 1) * step for side in size)
                try:
                    self._run((height, width))
                except ModelInputError:
                    continue
                raise ModelInputError(
                    f"{error}: it takes multiples of {step}, such as {height}x{width}"
                ) from error
            raise

    def _run(self, size: tuple[int, int]) -> Any:
        height, width = size
        parameter = next(self.parameters(), torch.zeros(()))
        image = torch.zeros(1, self.channels, height, width, device=parameter.device)
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return self.module(image)
        except Exception as error:  # the user's own code may fail in any way
            raise ModelInputError(
                f"{self.name}: the network cannot take a {height}x{width} {self._image} "
                f"({type(error).__name__}: {first_line(error)}); give another --size"
            ) from error
        finally:
            self.train(training)

    @property
    def _image(self) -> str:
        if self.channels == 3:
            return "RGB image"
        return f"image of {self.channels} channel{'s' * (self.channels != 1)}"

    def _main_output(self, output: Any, num_classes: int | None) -> Tensor:
        """Return the logits among the outputs; the first call stores their key in `taken`."""
        found = tensors_of(output)
        if not found:
            raise ModelInputError(
                f"{self.name}: the network returned {type(output).__name__}, which holds no tensor"
            )
        if self.taken is None:
            self.taken = _main_key(found, num_classes, self.name)
            self.others = tuple(key for key in found if key != self.taken)
        return _picked(found, self.taken, self.name)

    def _check(self, logits: Tensor, size: tuple[int, int]) -> None:
        if logits.ndim != 4 or logits.shape[1] != self.num_classes:
            mend = ""
            if logits.ndim == 3:
                mend = "; return the logits, before the argmax"
            elif logits.ndim == 4 and logits.shape[1] == 1:
                mend = "; for a binary network, name its class with --foreground"
            elif self.num_classes == 1:
                mend = "; it is no binary network: leave --head, --foreground and --num-classes out"
            raise ModelInputError(
                f"{self.name}: the output has shape {tuple(logits.shape)}; segmentation logits for "
                f"{self.num_classes} classes have shape (N, {self.num_classes}, H, W)" + mend
            )
        if not torch.isfinite(logits).all():
            raise ModelInputError(
                f"{self.name}: the network gives NaN or infinity for a plain gray image; "
                "its weights have diverged"
            )
        self.resize = self.resize or tuple(logits.shape[2:]) != size

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        logits = self._main_output(self.module(x), self.num_classes)
        if not self.resize:
            return logits
        return F.interpolate(
            logits, size=x.shape[2:], mode="bilinear", align_corners=self.align_corners
        )


def channel_count(module: nn.Module) -> int:
    """Return the number of channels that a network takes: 3, unless a `Network` says otherwise."""
    return module.channels if isinstance(module, Network) else 3


def input_channels(module: nn.Module) -> int | None:
    """Return the number of channels that a network's first convolution takes; None without one."""
    first = next((one for one in module.modules() if isinstance(one, nn.Conv2d)), None)
    return first.in_channels if first is not None else None


def runs(module: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Return whether a network takes an image `(C, H, W)` of zeros."""
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *shape))
    except Exception:  # the user's own code may fail in any way
        return False
    return True


def tensors_of(output: Any, depth: int = _DEPTH) -> dict[str, Tensor]:
    """Return every tensor in a network's output by key; a nested tensor has a path (`aux.0`).

    A single tensor has the key "". Levels deeper than `depth` are ignored.
    """
    if isinstance(output, Tensor):
        return {"": output}
    if depth == 0:
        return {}
    parts: Mapping[Any, Any] = {}
    if isinstance(output, Mapping):
        parts = output
    elif hasattr(output, "_asdict"):  # a namedtuple
        parts = output._asdict()
    elif isinstance(output, (tuple, list)):
        parts = dict(enumerate(output))
    elif dataclasses.is_dataclass(output):
        parts = {one.name: getattr(output, one.name) for one in dataclasses.fields(output)}
    elif hasattr(output, "__dict__"):
        parts = vars(output)
    return {
        f"{key}.{inner}" if inner else str(key): tensor
        for key, part in parts.items()
        for inner, tensor in tensors_of(part, depth - 1).items()
    }


def _main_key(found: Mapping[str, Tensor], num_classes: int | None, name: str) -> str:
    """Return the key of the logits: a usual name, the only 4-D output, or a tuple's first.

    Raises:
        ModelInputError: if several outputs may be the logits and none has a usual name.
    """
    maps = {
        key: tensor
        for key, tensor in found.items()
        if tensor.ndim == 4 and tensor.is_floating_point()
    }
    fitting = {k: t for k, t in maps.items() if num_classes in (None, t.shape[1])} or maps
    named = [key for key in _MAIN if key in fitting]
    if named:
        return named[0]
    if len(fitting) == 1 or (fitting and all(key.split(".")[0].isdigit() for key in found)):
        return next(iter(fitting))
    if not fitting:
        return next(iter(found))  # the check of its shape refuses it
    raise ModelInputError(
        f"{name}: the network returns several 4-D tensors ({_listed(fitting)}); name the one "
        "with the logits: --take KEY"
    )


def _picked(found: Mapping[str, Tensor], key: str, name: str) -> Tensor:
    if key in found:
        return found[key]
    if key.isdigit() and int(key) < len(found):
        return list(found.values())[int(key)]
    raise ModelInputError(
        f"{name}: --take {key}: no such output; the network returns {_listed(found)}"
    )


def _listed(found: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{key or 'one tensor'} {tuple(t.shape)}" for key, t in found.items())
