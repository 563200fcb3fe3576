"""How an image of any size is fitted to the network's input, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

from segdeploy.contract import Contract


@dataclass(frozen=True)
class Span:
    """The pixels of one axis of the network's input that show the image.

    They are `start` to `start + length` of `side` pixels.
    """

    start: int
    length: int
    side: int

    @property
    def is_whole(self) -> bool:
        """Whether there is no padding along the axis."""
        return self.length == self.side


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
    def is_whole(self) -> bool:
        """Whether there is no padding."""
        return self.rows.is_whole and self.columns.is_whole


def placement(source: tuple[int, int], contract: Contract) -> Placement:
    """Return where an image of size `source` (H, W) lies on the input of the contract's size.

    A letterboxed image keeps its aspect ratio: it is scaled by the smaller of the two ratios, its
    sides are rounded (half to even), and the rest is padding, around it or at the bottom and right.
    """
    spans = [Span(0, side, side) for side in contract.size]
    if contract.fit != "stretch":
        scale = min(side / own for side, own in zip(contract.size, source, strict=True))
        spans = []
        for side, own in zip(contract.size, source, strict=True):
            length = min(max(round(own * scale), 1), side)
            start = (side - length) // 2 if contract.fit == "letterbox" else 0
            spans.append(Span(start, length, side))
    return Placement(*spans)
