"""The sizes and batches that a dynamic graph of another tool takes, by running the graph.

A graph may state dynamic axes and hold the sizes of its trace. Such a graph fails at other sizes,
or its output has another size, or the images of a batch change each other.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract, check_pixels
from segdeploy.errors import CheckFailed, InputError
from segdeploy.onnx_graph.model_file import tensor_shape
from segdeploy.profiles import Bounds, Profile
from segdeploy.proof.graph_session import random_input, runner
from segdeploy.proof.test_inputs import probe_shapes

if TYPE_CHECKING:
    import onnx

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
_MOST_PROBED = 4  # images of a batch
_TOLERANCE = 1e-3  # of the output's range, between an image alone and in a batch


def with_bounds(
    graph: onnx.ModelProto, contract: Contract, profile: Profile, file: Path
) -> tuple[Contract, str]:
    """Return the contract with the sizes from the profile's minimum to its maximum, and a note.

    Height and width are multiples of the smallest of 1, 2, 4, ... 64 and the common divisors of the
    profile by which the graph runs at all probed shapes, gives an output of the right size, and
    gives every image of a batch the scores that the image has alone.

    Raises:
        InputError: for a graph whose height and width are not dynamic, or if there is no such
            multiple.
    """
    places = (1, 2) if contract.layout == "NHWC" else (2, 3)
    given = tensor_shape(graph.graph.input[0])
    if not all(isinstance(given[at], str) for at in places):
        raise InputError(
            f"{file}: its height and width are not both dynamic; leave --min, --opt and --max out"
        )
    if isinstance(given[0], int) and profile.maximum[0] > given[0]:
        raise InputError(
            f"{file}: takes batches of {given[0]} alone; give --max {given[0]}x"
            f"{profile.maximum[1]}x{profile.maximum[2]}"
        )
    sides = zip(profile.minimum[1:], contract.size, profile.maximum[1:], strict=True)
    for name, (least, side, most) in zip(("height", "width"), sides, strict=True):
        if not least <= side <= most or least == most:
            raise InputError(
                f"--min, --opt and --max: the {name} {least}, {side}, {most} must be in ascending "
                "order, and the last must exceed the first"
            )
    check_pixels(profile.maximum[1:], "--max: the largest input")
    bounds = Bounds(profile.minimum[1:], profile.maximum[1:], profile.maximum[0])
    run, first = runner(graph), ""
    common = math.gcd(*profile.minimum[1:], *contract.size, *profile.maximum[1:])
    divisors = {at for at in range(1, common + 1) if common % at == 0}
    for multiple in sorted({*_MULTIPLES, *divisors}):
        if any(side % multiple for side in contract.size):
            continue
        stepped = bounds if multiple == 1 else bounds.of_multiples(multiple)
        if stepped.smallest > stepped.largest:
            break
        problem = _problem(graph, run, contract, stepped)
        if not problem:
            low, high = stepped.smallest, stepped.largest
            steps = f", in multiples of {multiple}" if multiple > 1 else ""
            most = min(_MOST_PROBED, stepped.batch)
            return (
                replace(contract, bounds=(low, high, stepped.batch), multiple=multiple),
                f"ran at sizes from {low[0]}x{low[1]} to {high[0]}x{high[1]}{steps}, and in "
                f"batches of up to {most}: the output has the right size, and an image has the "
                "same scores alone and in a batch",
            )
        first = first or problem
    raise InputError(
        f"{file}: does not take all sizes from --min to --max ({first}); give narrower ones, or "
        "leave --min, --opt and --max out for a network of one size"
    )


def _problem(graph: onnx.ModelProto, run: Any, contract: Contract, bounds: Bounds) -> str:
    """Return what is wrong at the first probed shape where something is; empty if nothing is."""
    for batch, channels, height, width in probe_shapes(
        contract.size, bounds, len(contract.channels)
    ):
        batch = min(batch, _MOST_PROBED)
        is_nhwc = contract.layout == "NHWC"
        sides = (height, width, channels) if is_nhwc else (channels, height, width)
        images = random_input(graph, (batch, *sides))
        shown = f"{batch}x{height}x{width}"
        try:
            whole: NDArray[Any] = run(images)
            alone = [run(images[at : at + 1]) for at in range(batch)] if batch > 1 else [whole]
        except CheckFailed as error:
            return f"at {shown}: {error}"
        if whole.shape[-2:] != (height, width) or len(whole) != batch:
            return f"at {shown} its output is {'x'.join(map(str, whole.shape))}"
        if not np.isfinite(whole).all():
            return f"at {shown} it gives NaN or infinity"
        single = np.concatenate(alone)
        if contract.output == "labels":
            differ = float((whole != single).mean())
        else:
            differ = float(np.abs(whole - single).max() / max(np.ptp(single), 1e-12))
        if differ > _TOLERANCE:
            return f"at {shown} an image of a batch has other scores than alone"
    return ""
