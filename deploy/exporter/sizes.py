"""Which sizes a network takes: multiples of a number, at every scale and within the bounds."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from segdeploy.errors import InputError
from segdeploy.model_spec import LoadedNetwork
from segdeploy.models.errors import ModelInputError
from segdeploy.models.scales import checked_scaled_size
from segdeploy.profiles import Bounds

# Steps above the smallest size that are tried, too: there a network shows that it rounds its size.
_ODD = (1, 2, 3, 5, 7)


def stepped(
    loaded: LoadedNetwork,
    bounds: Bounds | None,
    multiple: int | None,
    scales: Sequence[float],
    *,
    dynamic: bool,
) -> tuple[Bounds | None, int, list[str]]:
    """Bounds of multiples that the network takes, the multiple, and what is to be told of it.

    The bounds are None for a static graph, whose only size is known to fit; the multiple counts
    there for its scales. Bounds that are not given lie around the size; a multiple that neither the
    argument nor the bounds say is found by trying.

    Raises:
        InputError: if the size is no multiple, or bounds contradict the size.
    """
    size, notes = loaded.contract.size, []
    if multiple is None and bounds is not None and bounds.multiple > 1:
        multiple = bounds.multiple
    step = multiple or 1
    if any(side % step for side in size):
        raise InputError(
            f"--size {size[0]}x{size[1]}: is no multiple of {step}, as --multiple-of asks"
        )
    if multiple is None and (dynamic or any(scale != 1 for scale in scales)):
        step = loaded.network.step(size) or 1
        if step > 1:
            notes.append(f"takes multiples of {step} alone (--multiple-of, found by trying)")
    if not dynamic:
        return None, step, notes
    bounds = bounds or Bounds().around(size)
    bounds.check(size)
    if step > 1:
        within = bounds.of_multiples(step)
        if within.smallest != bounds.smallest:
            notes.append(f"the smallest size is {within.smallest[0]}x{within.smallest[1]}")
        bounds = within
        bounds.check(size)
    return bounds, step, notes


def fit(
    loaded: LoadedNetwork,
    sizes: Collection[tuple[int, ...]],
    scales: Sequence[float],
    bounds: Bounds | None,
    step: int,
) -> None:
    """Try every size that the network will be shown, so that a graph holds no branch.

    Within `bounds` a few more are tried: a network that enlarges by factors gives the input's size
    at their multiples alone.

    Raises:
        InputError: with the size that the network does not take.
    """
    own = loaded.contract.size
    try:
        given = [checked_scaled_size(own, scale, step) for scale in scales]
    except ValueError as error:
        raise InputError(f"--scales: {error}") from error
    for one, other in itertools.combinations(range(len(scales)), 2):
        if given[one] == given[other]:
            raise InputError(
                f"--scales: {scales[one]} and {scales[other]} both give "
                f"{given[one][0]}x{given[one][1]}; leave one out"
            )
    wanted = set()
    for height, width in [*sizes, *_odd_sizes(bounds)]:
        for scale in scales:
            try:
                wanted.add(checked_scaled_size((height, width), scale, step))
            except ValueError as error:
                raise InputError(f"--scales: {error}; give a larger --min-size or scale") from error
    for size in sorted(wanted - {own}):  # its own was tried when it was loaded
        try:
            loaded.network.fit(size)
        except ModelInputError as error:
            raise InputError(f"{error}, --min-size or --multiple-of") from error


def _odd_sizes(bounds: Bounds | None) -> list[tuple[int, int]]:
    """Sizes just above the smallest one, a few steps apart."""
    if bounds is None:
        return []
    low, narrow = bounds.smallest
    more = [n * bounds.multiple for n in _ODD]
    return [(bounds.fitting(low + n, 0), bounds.fitting(narrow + n, 1)) for n in more]
