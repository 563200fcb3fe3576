"""How an image of any size is fitted to the network's input, and the way back.

A fit resizes the image, and then crops or pads it. Both ends are described by two spans: the rows
and the columns of the network's input that show the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from segdeploy.contract import MOST_PIXELS, Contract
from segdeploy.errors import InputError


@dataclass(frozen=True)
class Span:
    """One axis of the network's input, and the resized image along it.

    The image has `length` pixels. Its first pixel lies at `start` of the input's `side` pixels. A
    padded image begins at 0 or later and ends within the input, a cropped one begins and ends
    outside.
    """

    start: int
    length: int
    side: int

    @property
    def is_whole(self) -> bool:
        """Whether the image covers the axis exactly."""
        return self.start == 0 and self.length == self.side

    @property
    def is_padded(self) -> bool:
        """Whether the axis is longer than the image."""
        return self.length < self.side

    @property
    def is_cropped(self) -> bool:
        """Whether a part of the image lies outside of the axis."""
        return self.length > self.side

    @property
    def visible(self) -> slice:
        """The pixels of the resized image that the input shows."""
        return slice(max(0, -self.start), max(0, -self.start) + min(self.length, self.side))

    @property
    def covered(self) -> slice:
        """The pixels of the input that show the image."""
        first = max(0, self.start)
        return slice(first, first + min(self.length, self.side))


@dataclass(frozen=True)
class Placement:
    """Where a resized image lies on the network's input."""

    rows: Span
    columns: Span

    @property
    def resized(self) -> tuple[int, int]:
        """The size (H, W) that the image is resized to."""
        return self.rows.length, self.columns.length

    @property
    def size(self) -> tuple[int, int]:
        """The size (H, W) of the network's input."""
        return self.rows.side, self.columns.side

    @property
    def is_whole(self) -> bool:
        """Whether there is neither padding nor a crop."""
        return self.rows.is_whole and self.columns.is_whole

    @property
    def is_padded(self) -> bool:
        """Whether there is padding."""
        return self.rows.is_padded or self.columns.is_padded

    @property
    def is_cropped(self) -> bool:
        """Whether a part of the image is cropped away."""
        return self.rows.is_cropped or self.columns.is_cropped


def placement(source: tuple[int, int], contract: Contract) -> Placement:
    """Return where an image of size `source` (H, W) lies on the network's input.

    The input has the contract's size, except for a fit whose input follows the image:
    `shortest-edge`, `longest-edge`, `none` and all that pad to a multiple.

    Raises:
        InputError: if the image is smaller than the crop, larger than the input that pads it, or
            so narrow that it would be resized to more than `MOST_PIXELS`.
    """
    resize, _, then = contract.fit.partition(",")
    if resize in ("center-crop", "pad-to-multiple"):
        resize, then = "none", resize
    if resize == "stretch":
        return Placement(*(Span(0, side, side) for side in contract.size))
    lengths = _resized(source, resize, contract)
    if lengths[0] * lengths[1] > MOST_PIXELS:
        raise InputError(
            f"the image of {source[0]}x{source[1]} would be resized to {lengths[0]}x{lengths[1]}, "
            f"more than {MOST_PIXELS} pixels; crop the image, or state --longest-edge"
        )
    if resize == "letterbox":
        then = "pad"
    if then == "pad":
        sides = contract.size
    elif then == "pad-to-multiple":
        step = contract.pad_multiple or 1
        sides = (-(-lengths[0] // step) * step, -(-lengths[1] // step) * step)
    elif then == "center-crop":
        sides = contract.size
        if any(length < side for length, side in zip(lengths, sides, strict=True)):
            raise InputError(
                f"the image is {lengths[0]}x{lengths[1]} where {sides[0]}x{sides[1]} are cropped "
                "from it; give a larger image, or state a fit that resizes it"
            )
    else:
        sides = lengths
    if any(length > side for length, side in zip(lengths, sides, strict=True)) and then == "pad":
        raise InputError(
            f"the image is resized to {lengths[0]}x{lengths[1]}, larger than the input of "
            f"{sides[0]}x{sides[1]}; state a smaller --edge, or --fit letterbox"
        )
    spans = (_span(*one, then, contract) for one in zip(lengths, sides, strict=True))
    return Placement(*spans)


def check_input_size(
    source: tuple[int, int], contract: Contract, where: str, *, any_size: bool
) -> None:
    """Refuse an image of size `source` (H, W) whose fit gives a size that the network cannot take.

    `any_size` says whether the network is dynamic, and the message begins with `where`.

    Raises:
        InputError: as described, and as `placement`.
    """
    if contract.source_size is not None:
        if source != contract.source_size:
            height, width = contract.source_size
            raise InputError(
                f"{where}: takes images of {height}x{width} alone (--source-size), and this one is "
                f"{source[0]}x{source[1]}; export the network without --source-size"
            )
        return
    made = placement(source, contract).size
    if made == contract.size:
        return
    described = (
        f"a {source[0]}x{source[1]} image becomes {made[0]}x{made[1]} by --fit {contract.fit}"
    )
    if not any_size:
        mend = f"export it with --size {made[0]}x{made[1]}, or --dynamic"
        if contract.is_adopted:
            mend = "state a fit that gives this size, such as --fit stretch or letterbox"
        raise InputError(
            f"{where}: {described}, and the network is static at "
            f"{contract.size[0]}x{contract.size[1]}; {mend}"
        )
    if contract.bounds is not None:
        smallest, largest, _ = contract.bounds
        sides = zip(made, smallest, largest, strict=True)
        if not all(low <= side <= high for side, low, high in sides):
            raise InputError(
                f"{where}: {described}, outside the graph's {smallest[0]}x{smallest[1]} to "
                f"{largest[0]}x{largest[1]}; {contract.other_bounds}"
            )
    if any(side % contract.multiple for side in made):
        raise InputError(
            f"{where}: {described}, and the network takes only multiples of {contract.multiple}; "
            "state a fit with pad-to-multiple"
        )


def _span(length: int, side: int, then: str, contract: Contract) -> Span:
    if then == "center-crop":
        # torchvision and Pillow's users round the middle half to even, transformers, albumentations
        # and NumPy's users round it down.
        extra = length - side
        offset = round(extra / 2) if contract.rounding in (None, "torchvision") else extra // 2
        return Span(-offset, length, side)
    start = 0 if contract.pad_side == "bottom-right" else (side - length) // 2
    return Span(start, length, side)


def _resized(source: tuple[int, int], resize: str, contract: Contract) -> tuple[int, int]:
    """Return the size (H, W) that a fit which keeps the aspect ratio resizes an image to."""
    if resize == "none":
        return source
    if resize == "letterbox":
        scale = min(side / own for side, own in zip(contract.size, source, strict=True))
        rule = contract.rounding or "albumentations"
        height, width = (
            min(_rounded(own * scale, rule), side)
            for own, side in zip(source, contract.size, strict=True)
        )
        return height, width
    assert contract.edge is not None
    edges = _edges(min(source), max(source), resize, contract.edge, contract)
    step = contract.side_multiple or 1
    short, long = (-(-max(1, edge) // step) * step for edge in edges)
    return (short, long) if source[0] <= source[1] else (long, short)


def _edges(short: int, long: int, resize: str, edge: int, contract: Contract) -> tuple[int, int]:
    """Return the two edges of a resized image, the shorter first, by the rule of a library.

    - `torchvision`: `Resize` with one size, and with `max_size`.
    - `huggingface`: transformers' shortest edge, and `get_size_with_aspect_ratio`.
    - `albumentations`: `SmallestMaxSize` and `LongestMaxSize` (half to even).
    - `mmcv`: `rescale_size`, a box of the longest and the shortest edge (half up).
    """
    rule = contract.rounding or "torchvision"
    limit = contract.longest_edge
    if resize == "longest-edge":
        if rule in ("torchvision", "huggingface"):
            return int(edge * short / long), edge
        return _rounded(short * (edge / long), rule), _rounded(long * (edge / long), rule)
    if rule == "huggingface":
        if limit is not None and long / short * edge > limit:
            raw = limit * short / long
            edge = round(raw)
            return edge, int(raw * long / short)
        return edge, int(edge * long / short)
    if rule == "torchvision":
        other = int(edge * long / short)
        if limit is not None and other > limit:
            return int(limit * edge / other), limit
        return edge, other
    scale = edge / short if limit is None else min(limit / long, edge / short)
    return _rounded(short * scale, rule), _rounded(long * scale, rule)


def _rounded(side: float, rule: str) -> int:
    if rule == "albumentations":
        return max(1, round(side))
    return max(1, math.floor(side + 0.5) if rule == "mmcv" else int(side))
