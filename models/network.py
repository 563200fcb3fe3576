"""Any segmentation network behind one signature: image in, logits of the image's size out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdeploy.models.errors import ModelInputError, first_line


class Network(nn.Module):
    """Wraps a network so that it returns logits `(N, num_classes, H, W)` for `(N, 3, H, W)`.

    A mapping (torchvision's `{"out": ..., "aux": ...}`) or a tuple is reduced to its main output.
    Logits of a smaller map are upsampled bilinearly to the input's size; whether that is needed
    is found once, by a forward pass at `size`, so that an exported graph holds no branch.

    Raises:
        ModelInputError: if the network cannot take `size`, or does not give one map a class.
    """

    def __init__(self, module: nn.Module, num_classes: int, size: tuple[int, int], name: str):
        super().__init__()
        self.module = module
        self.num_classes = num_classes
        self.upsample = False
        height, width = size
        was_training = self.training
        self.eval()
        with torch.no_grad():
            try:
                logits = _main_output(self.module(torch.zeros(1, 3, height, width)))
            except (RuntimeError, ValueError, TypeError) as error:
                raise ModelInputError(
                    f"{name}: the network cannot take a {height}x{width} image "
                    f"({first_line(error)}); give another --size"
                ) from error
        self.train(was_training)
        if logits.ndim != 4 or logits.shape[1] != num_classes:
            raise ModelInputError(
                f"{name}: the output has shape {tuple(logits.shape)}; segmentation logits for "
                f"{num_classes} classes have shape (N, {num_classes}, H, W)"
            )
        self.upsample = tuple(logits.shape[2:]) != size

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        logits = _main_output(self.module(x))
        if not self.upsample:
            return logits
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)


def _main_output(output: Any) -> Tensor:
    if isinstance(output, Mapping) and "out" in output:
        output = output["out"]
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(f"it returned {type(output).__name__}, not a tensor")
    return output
