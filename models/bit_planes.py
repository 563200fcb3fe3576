"""Labels of several classes for one pixel: bit k of a byte is set where the pixel is of class k.

The last bit is set in the ignore index alone, which is 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What the values of a mask are: the id of a pixel's one class, or its bit planes.
BIT_PLANES = "bit-planes"
MASKS = ("class-ids", BIT_PLANES)
MOST_PLANES = 7
IGNORED = 255


def plane(labels: NDArray[np.integer], index: int) -> NDArray[np.uint8]:
    """Return the mask of one class in labels of any shape: 0 or 1, or 255 where it is ignored."""
    found: NDArray[np.uint8] = (labels >> index & 1).astype("uint8")
    found[labels == IGNORED] = IGNORED
    return found


def packed(planes: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
    """Return the labels of boolean masks, one for each class, of any shape."""
    labels: NDArray[np.uint8] = planes[0].astype("uint8")
    for index, one in enumerate(planes[1:], 1):
        labels |= one.astype("uint8") << index
    return labels
