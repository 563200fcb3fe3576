"""Candidates for multi-scale inference: graphs that fuse the scales, and loops over one scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from segdeploy.artifact import Artifact, is_artifact, open_artifact
from segdeploy.benchmark.failure import Failure
from segdeploy.benchmark.process import Candidate
from segdeploy.errors import CheckFailed, InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.errors import first_line
from segdeploy.models.scales import checked_scaled_size


def split_by_scales(
    candidates: Sequence[Candidate], scales: tuple[float, ...]
) -> tuple[list[Candidate], list[Candidate]]:
    """Return the single-scale candidates, and those whose graph contains `scales`."""
    fused = [one for one in candidates if scales and one.exported.contract.scales == scales]
    return [one for one in candidates if one not in fused], fused


def why_no_loop(file: Artifact, scales: tuple[float, ...]) -> str | None:
    """Return why a candidate cannot be looped over these scales; None if it can."""
    contract, profiles = file.contract, file.profiles
    if contract.layout != "NCHW" or contract.output != "logits" or contract.upsampling:
        return "has uint8 input or no full-size logits, so it cannot be looped over scales"
    if any(isinstance(side, int) for side in file.input.shape[2:]):
        return "is static, so it cannot be looped over scales; export it with --dynamic"
    for scale in scales:
        height, width = checked_scaled_size(contract.size, scale, contract.multiple)
        if profiles and not any(one.takes((1, height, width)) for one in profiles):
            return (
                f"does not take {height}x{width} (scale {scale:g}), so it cannot be looped over "
                "scales"
            )
    return None


def looped(candidate: Candidate, scales: tuple[float, ...]) -> Candidate:
    """Return the candidate as a loop that runs the scales one after another."""
    return replace(candidate, name=f"{candidate.name}, loop", scales=scales)


def export_fused(
    export: Callable[..., object],
    spec: ModelSpec,
    data: Path | None,
    scales: tuple[float, ...],
    backends: Sequence[str],
    folder: Path,
) -> list[Candidate] | Failure:
    """Export the reference with the scales in its graph, and return one candidate per runtime.

    Returns the reason if the export is not possible. `export` is `segdeploy.export`.
    """
    if is_artifact(Path(spec.model)):
        return Failure("no fused graph: the reference is not a PyTorch network")
    path = folder / "fused.onnx"
    try:
        export(spec, path, data=data, scales=scales)
    except (InputError, CheckFailed) as error:
        return Failure(f"no fused graph: {first_line(error)}")
    file = open_artifact(path)
    return [
        Candidate(
            "fused graph" if len(backends) == 1 else f"fused graph ({backend})",
            ModelSpec(str(path)),
            backend,
            file,
        )
        for backend in backends
    ]
