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
    Logits of another size are resized bilinearly to the input's; whether that is needed is found by
    a forward pass at `size`, so that an exported graph holds no branch.

    Raises:
        ModelInputError: if the network cannot take `size`, does not give one map a class, or gives
            values that are not finite.
    """

    def __init__(self, module: nn.Module, num_classes: int, size: tuple[int, int], name: str):
        super().__init__()
        self.module = module
        self.num_classes = num_classes
        self.name = name
        self.resize = False
        self.fit(size)

    def fit(self, size: tuple[int, int]) -> None:
        """Try an image of `size` (H, W), and resize from now on if its logits have another.

        Raises:
            ModelInputError: as the class does.
        """
        height, width = size
        parameter = next(self.parameters(), torch.zeros(()))
        image = torch.zeros(1, 3, height, width, device=parameter.device)
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                logits = _main_output(self.module(image))
        except Exception as error:  # the user's own code may fail in any way
            raise ModelInputError(
                f"{self.name}: the network cannot take a {height}x{width} RGB image "
                f"({type(error).__name__}: {first_line(error)}); give another --size"
            ) from error
        finally:
            self.train(training)
        if logits.ndim != 4 or logits.shape[1] != self.num_classes:
            raise ModelInputError(
                f"{self.name}: the output has shape {tuple(logits.shape)}; segmentation logits for "
                f"{self.num_classes} classes have shape (N, {self.num_classes}, H, W)"
            )
        if not torch.isfinite(logits).all():
            raise ModelInputError(
                f"{self.name}: the network gives NaN or infinity for a plain grey image; "
                "its weights have diverged"
            )
        self.resize = self.resize or tuple(logits.shape[2:]) != size

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        logits = _main_output(self.module(x))
        if not self.resize:
            return logits
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)


def _main_output(output: Any) -> Tensor:
    if isinstance(output, Mapping) and "out" in output:
        output = output["out"]
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ModelInputError(f"the network returned {type(output).__name__}, not a tensor")
    return output
