"""What a build may be told: targets, shapes, limits and kinds of plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.contract import Contract
from segdeploy.engine.bindings import Bindings
from segdeploy.errors import InputError
from segdeploy.profiles import Profile, shape_text

# Without profiles, a dynamic engine is built for this many times the network's sides, and batches.
_SIDES, _BATCH = 2, 4
WEIGHTS = ("kept", "refittable", "stripped")


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    `targets` are compute capabilities (`sm86`) for TensorRT-RTX; TensorRT builds for the GPU at
    hand. `workspace` bounds scratch memory, in MiB. `timing_cache` is a file that TensorRT's
    measurements are kept in. `weights` are in the plan, replaceable (`refittable`), or not in it
    (`stripped`). `hardware_compatible` plans run on Ampere and later GPUs, `version_compatible`
    ones with later versions of TensorRT (Developer Guide, "Version Compatibility").
    """

    targets: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    workspace: int | None = None
    timing_cache: Path | None = None
    weights: str = "kept"
    version_compatible: bool = False
    hardware_compatible: bool = False

    def described(self) -> dict[str, Any]:
        """What a manifest says of them, beside the targets and profiles."""
        return {
            "workspace_mib": self.workspace,
            "weights": self.weights,
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
        }


def check_options(options: BuildOptions, bindings: Bindings) -> None:
    """Refuse what a builder does not know.

    Raises:
        InputError: for an option or a target that this builder does not have.
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
                f"{name}: is TensorRT's; a TensorRT-RTX engine runs on every --target that it was "
                "built for, with the version that built it"
            )


def choose_profiles(
    source: str,
    contract: Contract,
    dynamic: Sequence[str],
    given: Sequence[Profile],
) -> tuple[Profile, ...]:
    """The profiles to build: those given, or one of the bounds that the graph was exported with.

    `dynamic` names the input's dimensions that are open.

    Raises:
        InputError: if none can be known, or one is not what the graph takes.
    """
    if not dynamic:
        if given:
            raise InputError(
                f"{source}: has the one shape {contract.size[0]}x{contract.size[1]}; "
                "leave --min, --opt and --max out"
            )
        return ()
    bounds = contract.bounds
    if not given:
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
                    f"{source}: was exported, and proven, for {shape_text(low)} to "
                    f"{shape_text(high)}, and {shape_text(shape)} is outside; export it with "
                    "other --min-size and --max-size"
                )
    return tuple(given)


def _around(contract: Contract) -> Profile:
    """What is likely to be run, within the graph's bounds: memory is reserved for the largest."""
    assert contract.bounds is not None
    smallest, largest, batch = contract.bounds
    height, width = (
        min(_SIDES * side, most) for side, most in zip(contract.size, largest, strict=True)
    )
    return Profile((1, *smallest), (1, *contract.size), (min(_BATCH, batch), height, width))
