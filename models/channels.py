"""The channels and the dtypes of images."""

from __future__ import annotations

from collections.abc import Mapping

RGB = ("R", "G", "B")
# The dtypes of an image, each with the usual factor to values of 0 to 1.
DTYPES: Mapping[str, float] = {"uint8": 1 / 255, "uint16": 1 / 65535, "float32": 1.0}
