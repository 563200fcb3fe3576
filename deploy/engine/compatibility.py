"""Compatibility check of an engine with this host, before TensorRT reads the plan."""

from __future__ import annotations

from pathlib import Path

from segdeploy.device import Gpu, host_platform
from segdeploy.engine.bindings import Bindings
from segdeploy.engine.manifest import Manifest
from segdeploy.errors import IncompatibleDevice, InputError

_AMPERE = 80


def check_version(manifest: Manifest, engine: Path, bindings: Bindings) -> None:
    """Refuse an engine that another version of TensorRT built.

    Raises:
        InputError: with both versions, and the command that rebuilds the engine.
    """
    built, here = manifest.backend_version, bindings.version
    if built == here:
        return
    if manifest.options.get("version_compatible") is True and _parts(built) <= _parts(here):
        return
    raise InputError(
        f"{engine}: was built by {manifest.backend} {built}, and {here} is installed; a plan runs "
        f"with the version that built it: {manifest.rebuild()}"
    )


def check_host(manifest: Manifest, engine: Path, gpu: Gpu | None) -> None:
    """Refuse an engine that was built for another platform or GPU.

    Raises:
        IncompatibleDevice: with the engine's platform or GPUs, those of this host, and the remedy.
    """
    if manifest.platform != host_platform():
        raise IncompatibleDevice(
            f"{engine}: was built for {manifest.platform}, and this is {host_platform()}; build it "
            f"here: {manifest.rebuild(gpu.compute_capability if gpu else None)}"
        )
    if gpu is None:
        raise IncompatibleDevice(
            f"{engine}: needs an NVIDIA GPU and its driver, and there is none here (`segdeploy "
            f"doctor` looks for them); on a CPU run {manifest.parent or 'the ONNX file'} instead"
        )
    built_for = manifest.compute_capabilities
    if gpu.compute_capability in built_for:
        return
    if manifest.options.get("hardware_compatible") is True and _number(gpu) >= _AMPERE:
        return
    raise IncompatibleDevice(
        f"{engine}: was built for {', '.join(built_for)}, and this GPU ({gpu.name}) is "
        f"{gpu.compute_capability}: {manifest.rebuild(gpu.compute_capability)}"
    )


def _number(gpu: Gpu) -> int:
    digits = gpu.compute_capability.removeprefix("sm")
    return int(digits) if digits.isdigit() else 0


def _parts(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")]
