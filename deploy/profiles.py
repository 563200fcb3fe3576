"""Input shapes of a dynamic network: bounds of a graph, optimization profiles of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segdeploy.contract import Contract, check_pixels
from segdeploy.errors import InputError

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest input size (H, W) of a dynamic graph, and its largest batch.

    Height and width are multiples of `multiple`.
    """

    smallest: tuple[int, int] = (32, 32)
    largest: tuple[int, int] = (8192, 8192)
    batch: int = 32
    multiple: int = 1

    def around(self, size: tuple[int, int]) -> Bounds:
        """Return these bounds, widened to include `size` and half of `size`."""
        low = (min(self.smallest[0], size[0] // 2), min(self.smallest[1], size[1] // 2))
        high = (max(self.largest[0], size[0]), max(self.largest[1], size[1]))
        return Bounds(low, high, self.batch, self.multiple)

    def of_multiples(self, multiple: int) -> Bounds:
        """Return these bounds, rounded inward to multiples of `multiple`, from 2 * `multiple` on.

        PyTorch treats a dimension of one step as a constant, so 1 * `multiple` is excluded.
        """
        low = tuple(max(2, -(-side // multiple)) * multiple for side in self.smallest)
        high = tuple(side // multiple * multiple for side in self.largest)
        return Bounds((low[0], low[1]), (high[0], high[1]), self.batch, multiple)

    def fitting(self, side: int, axis: int) -> int:
        """Round `side` down to a multiple, and clamp it to the bounds of an axis (0: height)."""
        fitted = side // self.multiple * self.multiple
        return min(max(fitted, self.smallest[axis]), self.largest[axis])

    def check(self, size: tuple[int, int]) -> None:
        """Refuse bounds that contradict each other or the network's size.

        Raises:
            InputError: with the three heights or widths.
        """
        check_pixels(self.largest, "--max-size: the largest input")
        for axis, name in ((0, "height"), (1, "width")):
            low, high = self.smallest[axis], self.largest[axis]
            if not low <= size[axis] <= high or low == high:
                raise InputError(
                    f"--min-size, --size and --max-size: the {name} {low}, {size[axis]}, {high} "
                    "must be in ascending order, and the last must exceed the first"
                )


@dataclass(frozen=True)
class Profile:
    """An optimization profile of a dynamic engine: the range of its input shapes (N, H, W)."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def takes(self, shape: Shape) -> bool:
        """Return whether an input shape (N, H, W) lies within the profile."""
        triples = zip(self.minimum, shape, self.maximum, strict=True)
        return all(low <= side <= high for low, side, high in triples)


def profiles_of(contract: Contract) -> tuple[Profile, ...]:
    """Return the bounds of a dynamic graph as the only profile of a CPU runtime; () if static."""
    if contract.bounds is None:
        return ()
    smallest, largest, batch = contract.bounds
    return (Profile((1, *smallest), (1, *contract.size), (batch, *largest)),)


def own_size(profiles: Sequence[Profile], size: tuple[int, int]) -> tuple[int, int]:
    """Return the default size (H, W) of resized images: the network's, if a profile takes it.

    Otherwise it is the optimum of the first profile.
    """
    if not profiles or any(profile.takes((1, *size)) for profile in profiles):
        return size
    return profiles[0].optimum[1:]


def route(profiles: Sequence[Profile], shape: Shape) -> int:
    """Return the index of the profile that takes an input (N, H, W) and has the nearest optimum.

    Raises:
        InputError: if no profile takes the input.
    """
    taking = [index for index, profile in enumerate(profiles) if profile.takes(shape)]
    if not taking:
        ranges = "; ".join(f"{shape_text(p.minimum)} to {shape_text(p.maximum)}" for p in profiles)
        raise InputError(
            f"the engine takes no input of {shape_text(shape)}; it was built for {ranges}; "
            "build it with another --min, --opt and --max"
        )

    def distance(index: int) -> int:
        triples = zip(profiles[index].optimum, shape, strict=True)
        return sum(abs(best - side) for best, side in triples)

    return min(taking, key=distance)


def shape_text(shape: Shape) -> str:
    """Format a shape, such as `1x360x480`."""
    return "x".join(map(str, shape))
