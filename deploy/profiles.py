"""Which shapes a dynamic network takes: the bounds of a graph, and the profiles of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segdeploy.contract import Contract, check_pixels
from segdeploy.errors import InputError

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Bounds:
    """Sizes that a dynamic graph takes, each (H, W), and its largest batch.

    Height and width are multiples of `multiple`.
    """

    smallest: tuple[int, int] = (32, 32)
    largest: tuple[int, int] = (8192, 8192)
    batch: int = 32
    multiple: int = 1

    def around(self, size: tuple[int, int]) -> Bounds:
        """The default bounds, moved so that `size` and half of it lie inside."""
        low = (min(self.smallest[0], size[0] // 2), min(self.smallest[1], size[1] // 2))
        high = (max(self.largest[0], size[0]), max(self.largest[1], size[1]))
        return Bounds(low, high, self.batch, self.multiple)

    def of_multiples(self, multiple: int) -> Bounds:
        """The bounds between the multiples of a number that lie inside, from its double on.

        PyTorch takes a dimension of one step for a constant.
        """
        low = tuple(max(2, -(-side // multiple)) * multiple for side in self.smallest)
        high = tuple(side // multiple * multiple for side in self.largest)
        return Bounds((low[0], low[1]), (high[0], high[1]), self.batch, multiple)

    def fitting(self, side: int, axis: int) -> int:
        """The largest multiple up to `side` of an axis (0: height), within the bounds."""
        fitted = side // self.multiple * self.multiple
        return min(max(fitted, self.smallest[axis]), self.largest[axis])

    def check(self, size: tuple[int, int]) -> None:
        """Refuse bounds that contradict one another or the size.

        Raises:
            InputError: with the three sizes.
        """
        check_pixels(self.largest, "--max-size: the largest input")
        for axis, name in ((0, "height"), (1, "width")):
            low, high = self.smallest[axis], self.largest[axis]
            if not low <= size[axis] <= high or low == high:
                raise InputError(
                    f"--min-size, --size and --max-size: the {name} {low}, {size[axis]}, {high} "
                    "must not fall, and must grow from the first to the last"
                )


@dataclass(frozen=True)
class Profile:
    """An optimisation profile: the inputs (N, H, W) that a dynamic engine takes."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def takes(self, shape: Shape) -> bool:
        """Whether an input is within it."""
        triples = zip(self.minimum, shape, self.maximum, strict=True)
        return all(low <= side <= high for low, side, high in triples)


def profiles_of(contract: Contract) -> tuple[Profile, ...]:
    """The bounds of a dynamic graph, as the one profile that a CPU's runtime has; () if static."""
    if contract.bounds is None:
        return ()
    smallest, largest, batch = contract.bounds
    return (Profile((1, *smallest), (1, *contract.size), (batch, *largest)),)


def own_size(profiles: Sequence[Profile], size: tuple[int, int]) -> tuple[int, int]:
    """The size that pictures are resized to by default: the network's, if a profile takes it."""
    if not profiles or any(profile.takes((1, *size)) for profile in profiles):
        return size
    return profiles[0].optimum[1:]


def route(profiles: Sequence[Profile], shape: Shape) -> int:
    """The index of the profile to run an input (N, H, W) with: the one built for it, or nearest.

    Raises:
        InputError: if none takes it.
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
    """A shape as `1x360x480`."""
    return "x".join(map(str, shape))
