"""Candidates for multi-scale inference: graphs that fuse the scales, and loops over one scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from segdeploy.benchmark.candidates import contract_of_file
from segdeploy.benchmark.failure import Failure
from segdeploy.benchmark.process import Candidate
from segdeploy.engine.manifest import read_manifest
from segdeploy.errors import CheckFailed, InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.errors import first_line
from segdeploy.models.scales import checked_scaled_size
from segdeploy.onnx_graph.model_file import load_onnx
from segdeploy.profiles import profiles_of
from segdeploy.runtime.session import ENGINE_SUFFIXES


def split_by_scales(
    candidates: Sequence[Candidate], scales: tuple[float, ...]
) -> tuple[list[Candidate], list[Candidate]]:
    """Return the single-scale candidates, and those whose graph contains `scales`."""
    fused = [
        one
        for one in candidates
        if scales and contract_of_file(Path(one.spec.model)).scales == scales
    ]
    return [one for one in candidates if one not in fused], fused


def why_no_loop(path: Path, scales: tuple[float, ...]) -> str | None:
    """Return why a candidate cannot be looped over these scales; None if it can."""
    contract = contract_of_file(path)
    if contract.layout != "NCHW" or contract.output != "logits" or contract.upsampling:
        return "has uint8 input or no full-size logits, so it cannot be looped over scales"
    if path.suffix in ENGINE_SUFFIXES:
        profiles = read_manifest(path).profiles
        dynamic = bool(profiles)
    else:
        profiles = profiles_of(contract)
        sides = load_onnx(path).graph.input[0].type.tensor_type.shape.dim[2:]
        dynamic = not any(side.HasField("dim_value") for side in sides)
    if not dynamic:
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
    if Path(spec.model).suffix in (".onnx", *ENGINE_SUFFIXES):
        return Failure("no fused graph: the reference is not a PyTorch network")
    path = folder / "fused.onnx"
    try:
        export(spec, path, data=data, scales=scales)
    except (InputError, CheckFailed) as error:
        return Failure(f"no fused graph: {first_line(error)}")
    return [
        Candidate(
            "fused graph" if len(backends) == 1 else f"fused graph ({backend})",
            ModelSpec(str(path)),
            backend,
        )
        for backend in backends
    ]
