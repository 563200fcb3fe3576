"""Recognition of the registry's networks by the keys and shapes of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segdeploy.models.checkpoint import TRAINING_ONLY, prefix_of
from segdeploy.models.registry import Architecture, variants

Shapes = Mapping[str, tuple[int, ...]]

# The same layers as another network: the two differ in the memory of training alone.
_SAME = frozenset(("memory_efficient_deeplabv3",))


@dataclass(frozen=True)
class Recognized:
    """A network of the registry that has certain weights.

    `prefix` is the part that all keys begin with, `channels` the number of channels of its images,
    and `auxiliary` tells whether the weights hold an auxiliary head. `untold` names the options
    that change no shape, so that the weights do not tell them.
    """

    name: str
    num_classes: int
    arguments: Mapping[str, Any]
    channels: int
    prefix: str
    auxiliary: bool
    untold: tuple[str, ...]


def recognized(state: Mapping[str, Tensor]) -> list[Recognized]:
    """Return the networks of the registry whose keys and shapes are those of `state`."""
    found: dict[str, Recognized] = {}
    for entry, arguments in variants():
        if entry.name in _SAME or entry.name in found:
            continue
        match = _match(entry, arguments, state)
        if match is not None:
            found[entry.name] = match
    return list(found.values())


def _match(
    entry: Architecture, variant: Mapping[str, Any], state: Mapping[str, Tensor]
) -> Recognized | None:
    own = _shapes(entry, 2, variant)
    prefix = prefix_of(own, state, entry.name)
    given = {
        key.removeprefix(prefix): tuple(tensor.shape)
        for key, tensor in state.items()
        if key.startswith(prefix)
    }
    auxiliary = {key for key in given if key not in own and key.startswith(TRAINING_ONLY)}
    if set(given) - auxiliary != set(own):
        return None
    num_classes = _value(own, _shapes(entry, 3, variant), given, 2, 3)
    if num_classes is None:
        return None
    arguments = dict(variant)
    kinds = entry.accepted_arguments()
    untold = [option for option, kind in kinds.items() if kind.startswith("Sequence")]
    for option, (default, changed) in _trials(entry).items():
        if option in variant:
            continue
        with_default = _shapes(entry, 2, {**variant, option: default})
        with_changed = _shapes(entry, 2, {**variant, option: changed})
        if with_changed == with_default:
            untold.append(option)
            continue
        value = _value(with_default, with_changed, given, default, changed)
        if value is None:
            return None
        arguments[option] = value
    whole = _shapes(entry, num_classes, arguments)
    channels = _channels(whole, given)
    if channels is None:
        return None
    return Recognized(
        entry.name, num_classes, arguments, channels, prefix, bool(auxiliary), tuple(untold)
    )


def _trials(entry: Architecture) -> dict[str, tuple[Any, Any]]:
    """Return two values of each numeric option, which show what the option changes."""
    trials: dict[str, tuple[Any, Any]] = {}
    for option, kind in entry.accepted_arguments().items():
        if option in ("stride", "output_stride"):
            trials[option] = (8, 16) if option == "output_stride" else (1, 2)
        elif kind == "int":
            trials[option] = (16, 32)
    return trials


def _shapes(entry: Architecture, num_classes: int, arguments: Mapping[str, Any]) -> Shapes:
    with torch.device("meta"):  # nothing is computed or stored
        network = entry.build(num_classes, **arguments)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def _value(first: Shapes, second: Shapes, given: Shapes, one: int, other: int) -> int | None:
    """Return the side in `given` that is `one` in the first shapes and `other` in the second."""
    for key, shape in first.items():
        if len(given[key]) != len(shape):
            return None
        for axis, side in enumerate(shape):
            if side == one and second[key][axis] == other:
                return given[key][axis]
    return None


def _channels(own: Shapes, given: Shapes) -> int | None:
    """Return the number of image channels if all other shapes are equal, else None."""
    seen = {3}
    for key, shape in own.items():
        if shape == given[key]:
            continue
        if len(shape) != 4 or shape[1] != 3 or len(given[key]) != 4:
            return None
        if (shape[0], *shape[2:]) != (given[key][0], *given[key][2:]):
            return None
        seen.add(given[key][1])
    return max(seen - {3}, default=3) if len(seen) <= 2 else None
