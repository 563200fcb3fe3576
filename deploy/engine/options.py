"""Build options of an engine: targets, optimization profiles, limits and kinds of plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.contract import Contract
from segdeploy.engine.bindings import Bindings
from segdeploy.errors import InputError
from segdeploy.profiles import Profile, shape_text

# Maximum of the default profile: this multiple of the network's height and width, and this batch.
_SIDES, _BATCH = 2, 4
WEIGHTS = ("kept", "refittable", "stripped")


@dataclass(frozen=True)
class BuildOptions:
    """Build options of an engine.

    `targets` are compute capabilities (`sm86`) for TensorRT-RTX; TensorRT builds for the GPU of the
    host. `workspace` limits scratch memory, in MiB. `timing_cache` is the file in which TensorRT's
    measurements are kept. `weights` are in the plan (`kept`), in the plan and replaceable
    (`refittable`), or not in the plan (`stripped`). `hardware_compatible` plans run on Ampere and
    later GPUs. `version_compatible` plans run with later versions of TensorRT (Developer Guide,
    "Version Compatibility").
    """

    targets: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    workspace: int | None = None
    timing_cache: Path | None = None
    weights: str = "kept"
    version_compatible: bool = False
    hardware_compatible: bool = False

    def described(self) -> dict[str, Any]:
        """Return the options that a manifest records besides the targets and profiles."""
        return {
            "workspace_mib": self.workspace,
            "weights": self.weights,
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
        }


def check_options(options: BuildOptions, bindings: Bindings) -> None:
    """Refuse options that the builder does not support.

    Raises:
        InputError: for an option or a target that the builder does not support.
    """
    if options.weights not in WEIGHTS:
        raise InputError(f"weights '{options.weights}': there are {', '.join(WEIGHTS)}")
    if not bindings.is_rtx:
        if options.targets:
            raise InputError(
                "--target: tensorrt builds for the GPU that it runs on; leave it out, or build "
                "with --backend tensorrt-rtx"
            )
        return
    if not options.targets:
        raise InputError("build-engine: name the GPU's compute capability, such as --target sm86")
    known = bindings.compute_capabilities()
    for target in options.targets:
        if target not in known:
            raise InputError(
                f"--target {target}: TensorRT-RTX {bindings.version} builds for "
                f"{', '.join(known)}; name the compute capability of your GPU"
            )
    for wanted, name in (
        (options.version_compatible, "--version-compatible"),
        (options.hardware_compatible, "--hardware-compatible"),
    ):
        if wanted:
            raise InputError(
                f"{name}: is an option of --backend tensorrt only; a TensorRT-RTX engine runs on "
                "every --target that it was built for, with the version that built it"
            )


def choose_profiles(
    source: str,
    contract: Contract,
    shape: Sequence[int | str],
    given: Sequence[Profile],
) -> tuple[Profile, ...]:
    """Return the given profiles, or a default profile within the bounds of the graph.

    `shape` is that of the input, with the names of dynamic dimensions. A graph that is dynamic in
    its batch alone is built for one image by default.

    Raises:
        InputError: if no profile is given and the graph has no bounds, or if the graph does not
            take a given profile.
    """
    dynamic = [side for side in shape if isinstance(side, str)]
    if not dynamic:
        if given:
            raise InputError(
                f"{source}: the graph is static at {contract.size[0]}x{contract.size[1]}; "
                "leave --min, --opt and --max out"
            )
        return ()
    bounds = contract.bounds
    if not given:
        if bounds is None and dynamic == list(shape[:1]):
            one = (1, *contract.size)
            return (Profile(one, one, one),)
        if bounds is None:
            raise InputError(
                f"{source}: is dynamic in {', '.join(dynamic)}; say which shapes the engine must "
                "take: --min, --opt and --max, each NxHxW"
            )
        return (_around(contract),)
    for profile in given:
        pairs = zip(profile.minimum, profile.optimum, profile.maximum, strict=True)
        if not all(low <= best <= high for low, best, high in pairs):
            raise InputError("--min, --opt and --max: each dimension must grow in that order")
        if bounds is None:
            continue
        smallest, largest, batch = bounds
        low, high = (1, *smallest), (batch, *largest)
        whole = Profile(low, low, high)
        for shape in (profile.minimum, profile.maximum):
            if not whole.takes(shape):
                raise InputError(
                    f"{source}: was proven for {shape_text(low)} to {shape_text(high)}, and "
                    f"{shape_text(shape)} is outside; {contract.other_bounds}"
                )
    return tuple(given)


def _around(contract: Contract) -> Profile:
    """Return a profile of likely sizes within the graph's bounds.

    The maximum stays small because memory is reserved for the largest input.
    """
    assert contract.bounds is not None
    smallest, largest, batch = contract.bounds
    height, width = (
        min(_SIDES * side, most) for side, most in zip(contract.size, largest, strict=True)
    )
    return Profile((1, *smallest), (1, *contract.size), (min(_BATCH, batch), height, width))
