"""`InferenceOptions`: several runs of a network for one image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

from segdeploy.errors import InputError


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

    def __post_init__(self) -> None:
        """Refuse what no network can run.

        Raises:
            InputError: for a scale that is not a number in 0..100, or another `fuse`.
        """
        scales = tuple(self.scales) if isinstance(self.scales, Iterable) else (self.scales,)
        for scale in scales:
            if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 < scale < 100:
                raise InputError(f"scale {scale}: must be positive, and below 100")
        if self.fuse not in ("mean", "max"):
            raise InputError(f"fuse '{self.fuse}' is neither mean nor max")
        object.__setattr__(self, "scales", tuple(float(scale) for scale in scales))

    @property
    def is_augmented(self) -> bool:
        """Whether there is test-time augmentation."""
        return bool(self.scales) or self.flip


ONE_RUN = InferenceOptions()
