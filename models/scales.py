"""Sizes of a scaled image, the same in training, exported graphs and runtimes.

The module does not import torch, so that a robot without torch computes the same sizes.
"""

from __future__ import annotations

from fractions import Fraction


def scaled_size(size: tuple[int, int], scale: float, multiple: int = 1) -> tuple[int, int]:
    """Return a size (H, W) times `scale`, rounded down to a multiple of `multiple`.

    The arithmetic is integer, because `int(h * scale)` would silently fix the traced size in an
    exported graph with dynamic height and width.
    """
    ratio = Fraction(scale).limit_denominator(1000)
    height, width = (
        side * ratio.numerator // (ratio.denominator * multiple) * multiple for side in size
    )
    return height, width


def checked_scaled_size(size: tuple[int, int], scale: float, multiple: int = 1) -> tuple[int, int]:
    """Return `scaled_size`, and refuse a scaled size of 0.

    Raises:
        ValueError: if the scaled height or width is 0.
    """
    scaled = scaled_size(size, scale, multiple)
    if min(scaled) == 0:
        left = "nothing" if multiple == 1 else f"less than {multiple} pixels"
        raise ValueError(f"scale {scale} shrinks a {size[0]}x{size[1]} image to {left}")
    return scaled
