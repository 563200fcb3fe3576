"""Receptive field of dilated convolutions (Yu and Koltun 2015, arXiv 1511.07122, section 2)."""

from __future__ import annotations


def receptive_field(kernel_size: int, dilation: int) -> int:
    """Pixels, along one axis, between the outermost taps of one dilated kernel, both included."""
    return (kernel_size - 1) * dilation + 1
