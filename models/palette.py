"""PASCAL VOC's colour map, which also serves networks that came without colours."""

from __future__ import annotations


def voc_colour(index: int) -> tuple[int, int, int]:
    """Colour of a class id: its bits, spread over red, green and blue, the highest first."""
    red = green = blue = 0
    for shift in range(7, -1, -1):
        red |= (index & 1) << shift
        green |= (index >> 1 & 1) << shift
        blue |= (index >> 2 & 1) << shift
        index >>= 3
    return red, green, blue
