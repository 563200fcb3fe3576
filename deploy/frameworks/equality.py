"""The contract that gives the same input as a framework's own preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from segdeploy.contract import Contract, check_pixels
from segdeploy.contract_inference.function import Preprocessing
from segdeploy.contract_inference.infer import compared
from segdeploy.contract_statement import with_stated
from segdeploy.errors import InputError

# Images of these sizes (H, W): enlarged and shrunk by fractions, landscape and portrait.
_SIZES = ((97, 131), (240, 320), (333, 150), (61, 200))


@dataclass(frozen=True)
class Equal:
    """The fields of a contract, and how its inputs differ from a framework's.

    `largest` is the largest difference, in the input's units, and `share` the share of values that
    differ.
    """

    stated: dict[str, Any]
    largest: float
    share: float

    @property
    def told(self) -> str:
        """The end of a sentence that says how equal the inputs are."""
        if not self.share:
            return f", equal to the bit on {len(_SIZES)} images"
        return f"; {100 * self.share:.2g} % of the values differ, by {self.largest:.2g} at most"


def closest(
    trials: Iterable[Mapping[str, Any]], size: tuple[int, int], function: Preprocessing
) -> Equal:
    """Return the first of several statements that gives a function's input, else the closest one.

    `size` (H, W) is that of the network's input.

    Raises:
        InputError: if the function fails, or the closest input differs by more than one level of a
            byte.
    """
    check_pixels(size, "the input that the options state")
    images = [
        np.random.default_rng(size).integers(0, 256, (*size, 3)).astype(np.uint8) for size in _SIZES
    ]
    expected = [function(image) for image in images]
    usual = Contract("", (), (), 255, size)
    best: Equal | None = None
    level = 0.0
    for stated in trials:
        fields = {name: value for name, value in stated.items() if name != "size"}
        contract = with_stated(usual, fields)
        pairs = zip(images, expected, strict=True)
        found = [compared(contract, image, made) for image, made in pairs]
        largest, share = max(one[0] for one in found), float(np.mean([one[1] for one in found]))
        if best is None or (share, largest) < (best.share, best.largest):
            best, level = Equal(dict(stated), largest, share), _level(contract)
        if not share:
            break
    if best is None or best.largest > level:
        raise InputError(f"{function.name} gives another input than its options say")
    return best


def _level(contract: Contract) -> float:
    """Return how far one level of a byte moves the network's input, with a margin."""
    step = contract.scale if contract.normalization != "none" else 1.0
    return 1.01 * step / min(contract.std)
