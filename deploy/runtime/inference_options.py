"""`InferenceOptions`: several runs of a network for one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class InferenceOptions:
    """Several runs of the network for one image, as in the C++ `InferenceOptions`.

    `scales` and `flip` (the mirrored image runs too) are test-time augmentation for a dynamic
    network with logits output. `fuse` (`mean` or `max`) combines the logits per class and pixel.
    `tile` keeps the image at its own size, and runs overlapping windows of the network's input
    size.
    """

    scales: Sequence[float] = ()
    flip: bool = False
    fuse: str = "mean"
    tile: bool = False

    @property
    def is_augmented(self) -> bool:
        """Whether there is test-time augmentation."""
        return bool(self.scales) or self.flip


ONE_RUN = InferenceOptions()
