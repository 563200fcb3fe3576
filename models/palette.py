"""PASCAL VOC's color map, also the palette of networks without colors of their own."""

from __future__ import annotations


def voc_color(index: int) -> tuple[int, int, int]:
    """Return the color of a class id: its bits spread over red, green and blue from the top bit."""
    red = green = blue = 0
    for shift in range(7, -1, -1):
        red |= (index & 1) << shift
        green |= (index >> 1 & 1) << shift
        blue |= (index >> 2 & 1) << shift
        index >>= 3
    return red, green, blue
