"""Sizes of a scaled image: the one arithmetic of training, exported graphs and runtimes.

Without torch, so that a robot computes the same.
"""

from __future__ import annotations

from fractions import Fraction


def scaled_size(size: tuple[int, int], scale: float, multiple: int = 1) -> tuple[int, int]:
    """A size (H, W) times `scale`, rounded down to a multiple.

    Integer arithmetic: `int(h * scale)` would bake the traced size into an exported graph with
    dynamic height and width, silently.
    """
    ratio = Fraction(scale).limit_denominator(1000)
    height, width = (
        side * ratio.numerator // (ratio.denominator * multiple) * multiple for side in size
    )
    return height, width


def checked_scaled_size(size: tuple[int, int], scale: float, multiple: int = 1) -> tuple[int, int]:
    """`scaled_size`, where something must be left.

    Raises:
        ValueError: if nothing is.
    """
    scaled = scaled_size(size, scale, multiple)
    if min(scaled) == 0:
        left = "nothing" if multiple == 1 else f"less than {multiple} pixels"
        raise ValueError(f"scale {scale} shrinks a {size[0]}x{size[1]} image to {left}")
    return scaled
