"""Input sizes that a network takes: multiples of a number, at every scale and within bounds."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from segdeploy.errors import InputError
from segdeploy.models.errors import ModelInputError
from segdeploy.models.scales import checked_scaled_size
from segdeploy.network_loading import LoadedNetwork
from segdeploy.profiles import Bounds

# Steps above the smallest size that are also tried, to detect a network that rounds its size.
_ODD = (1, 2, 3, 5, 7)


def stepped(
    loaded: LoadedNetwork,
    bounds: Bounds | None,
    multiple: int | None,
    scales: Sequence[float],
    *,
    dynamic: bool,
) -> tuple[Bounds | None, int, list[str]]:
    """Return the bounds in multiples that the network takes, the multiple, and notes for the user.

    For a static graph the bounds are None, because its only size is known to fit; the multiple
    applies to its scales. Default bounds lie around the size. A multiple that neither the argument
    nor the bounds specify is determined by trial runs.

    Raises:
        InputError: if the size is not a multiple, or the bounds contradict the size.
    """
    size, notes = loaded.contract.size, []
    if multiple is None and bounds is not None and bounds.multiple > 1:
        multiple = bounds.multiple
    step = multiple or 1
    if any(side % step for side in size):
        raise InputError(
            f"--size {size[0]}x{size[1]}: is not a multiple of {step}, as --multiple-of requires"
        )
    if multiple is None and (dynamic or any(scale != 1 for scale in scales)):
        step = loaded.network.step(size) or 1
        if step > 1:
            notes.append(f"takes only multiples of {step} (--multiple-of, found by trial runs)")
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
    """Try the network at every size of the export, so that the graph needs no branch on the size.

    A few more sizes within `bounds` are tried: a network that upsamples by fixed factors returns
    the input's size only at multiples of the factors.

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
    for size in sorted(wanted - {own}):  # its own size was tried at loading
        try:
            loaded.network.fit(size)
        except ModelInputError as error:
            raise InputError(f"{error}, --min-size or --multiple-of") from error


def _odd_sizes(bounds: Bounds | None) -> list[tuple[int, int]]:
    """Return sizes a few steps above the smallest size."""
    if bounds is None:
        return []
    low, narrow = bounds.smallest
    more = [n * bounds.multiple for n in _ODD]
    return [(bounds.fitting(low + n, 0), bounds.fitting(narrow + n, 1)) for n in more]
