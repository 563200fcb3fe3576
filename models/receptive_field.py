"""Receptive field of one dilated kernel, and of a sequence of layers.

Yu and Koltun 2015 (arXiv 1511.07122), section 2; the interval arithmetic is that of Araujo et al.
2019 ("Computing Receptive Fields of Convolutional Neural Networks", Distill).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction


def receptive_field(kernel_size: int, dilation: int) -> int:
    """Return the extent of one dilated kernel along one axis in pixels, both ends included."""
    return (kernel_size - 1) * dilation + 1


@dataclass(frozen=True)
class Reach:
    """Input rows on which a value of a feature map depends.

    The value at index i depends on rows `first + stride * i` to `last + stride * i`, clipped to the
    image. If `pooled`, the value also depends on the whole image through a global pooling. `first`
    and `last` are None if the value depends on the image only through a global pooling.
    """

    first: Fraction | None = Fraction(0)
    last: Fraction | None = Fraction(0)
    stride: Fraction = Fraction(1)
    pooled: bool = False

    @property
    def size(self) -> int | None:
        """The receptive field in pixels, without global pooling; None for global pooling alone."""
        if self.first is None or self.last is None:
            return None
        return int(self.last - self.first) + 1

    @property
    def center(self) -> float | None:
        """Middle of the receptive field of the value at index 0, in pixels."""
        if self.first is None or self.last is None:
            return None
        return float(self.first + self.last) / 2

    def through(self, kernel: int, stride: int | Fraction, padding: int, dilation: int) -> Reach:
        """Return the reach after a convolution or pooling."""
        if self.first is None or self.last is None:
            return self
        first = self.first - self.stride * padding
        last = self.last + self.stride * (receptive_field(kernel, dilation) - 1 - padding)
        return Reach(first, last, self.stride * stride, self.pooled)

    def through_transposed(self, kernel: int, stride: int, padding: int, dilation: int) -> Reach:
        """Return the reach after a transposed convolution.

        Output row o depends on the input rows (o + padding - tap) / stride.
        """
        if self.first is None or self.last is None:
            return self
        step = self.stride / stride
        first = self.first + step * (padding + 1 - receptive_field(kernel, dilation))
        return Reach(first, self.last + step * padding, step, self.pooled)

    def shifted(self, rows: int) -> Reach:
        """Return the reach after a crop (`rows` > 0) or padding (< 0): row i was row `i + rows`."""
        if self.first is None or self.last is None:
            return self
        offset = self.stride * rows
        return replace(self, first=self.first + offset, last=self.last + offset)

    def resized(self, factor: Fraction, *, align_corners: bool) -> Reach:
        """Return the reach after a bilinear resize: two neighbors, half a step to either side.

        Unless corners are aligned, pixel centers are at half positions, and the first center moves.
        """
        if self.first is None or self.last is None:
            return self
        half, stride = self.stride / 2, self.stride / factor
        shift = Fraction(0) if align_corners else (stride - self.stride) / 2
        return Reach(self.first + shift - half, self.last + shift + half, stride, self.pooled)

    def pooled_globally(self) -> Reach:
        """Return the reach after a global pooling."""
        return Reach(None, None, self.stride, True)

    def joined(self, other: Reach) -> Reach:
        """Return the reach of a sum or a concatenation."""
        if self.first is None or self.last is None:
            return replace(other, pooled=True)
        if other.first is None or other.last is None:
            return replace(self, pooled=True)
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Reach(first, last, self.stride, self.pooled or other.pooled)
