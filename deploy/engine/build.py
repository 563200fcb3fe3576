"""`segdeploy build-engine`: from an exported graph to an engine with its manifest."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.engine.foreign_qdq import with_float_biases, with_symmetric_integers
from segdeploy.engine.manifest import Manifest, manifest_path
from segdeploy.engine.tensorrt_rtx import BuiltPlan, Profile, build_plan, compute_capabilities
from segdeploy.errors import InputError
from segdeploy.exporter.dilation import ConvProof
from segdeploy.files import check_output, sha256_of_file, write_atomically
from segdeploy.onnx_file import (
    check_size,
    contract_of,
    is_quantized,
    load_onnx,
    save_onnx,
    tensor_shape,
)
from segdeploy.runtime.session import check_tensors

if TYPE_CHECKING:
    import onnx

BACKENDS = ("tensorrt-rtx",)


@dataclass(frozen=True)
class EngineReport:
    """What was built, and the proof that TensorRT's network has the graph's dilations.

    `int8` counts the convolutions of TensorRT's network that read INT8 data and weights.
    """

    path: Path
    manifest: Path
    bytes: int
    targets: tuple[str, ...]
    precision: str
    version: str
    seconds: float
    convolutions: tuple[ConvProof, ...]
    int8: int
    notes: tuple[str, ...] = ()


def build_engine(
    model: Path | str,
    out: Path | str,
    *,
    targets: Sequence[str],
    backend: str = "tensorrt-rtx",
    profile: Profile | None = None,
) -> EngineReport:
    """Build one engine for the compute capabilities `targets` (`sm86`, ...), and its manifest.

    The precision is the graph's, as it is typed; INT8 is where it holds Q/DQ. Biases that another
    tool quantised are built in floating point, with a note. A dynamic graph needs a
    `profile`. No GPU is needed; running the engine needs one.

    Raises:
        InputError: for a graph, target or profile that cannot be built.
        CheckFailed: if TensorRT's network has another dilation than the graph; nothing is written.
    """
    started = time.perf_counter()
    model = Path(model)
    out = check_output(Path(out), ".engine")
    if backend not in BACKENDS:
        raise InputError(f"{backend}: this version builds with {', '.join(BACKENDS)}")
    if not targets:
        raise InputError("build-engine: name the GPU's compute capability, such as --target sm86")
    targets = tuple(dict.fromkeys(target.lower() for target in targets))
    compute_capabilities(targets)
    graph = load_onnx(model)
    check_size(graph, model)
    contract = contract_of(graph, model)
    shape = tensor_shape(graph.graph.input[0])
    check_tensors(model, contract, shape, tensor_shape(graph.graph.output[0]))
    _check_profile(model, shape, profile)
    graph, notes = _mended(graph, model, out)
    precision = contract.precision
    if precision == "fp32" and is_quantized(graph):  # by another tool, which left the contract
        precision = "int8"
    built = build_plan(graph, str(model), targets, profile)
    manifest = Manifest(
        engine=out.name,
        sha256=hashlib.sha256(built.plan).hexdigest(),
        bytes=len(built.plan),
        builder=backend,
        builder_version=built.version,
        compute_capabilities=targets,
        precision=precision,
        input_shape=shape,
        profile=asdict(profile) if profile else None,
        parent=model.name,
        parent_sha256=sha256_of_file(model),
        convolutions=_described(built),
        contract=contract,
    )
    # In this order a crash between the two leaves a manifest whose hash refuses the engine.
    write_atomically(out, built.plan)
    write_atomically(manifest_path(out), manifest.to_json().encode())
    return EngineReport(
        path=out,
        manifest=manifest_path(out),
        bytes=len(built.plan),
        targets=manifest.compute_capabilities,
        precision=precision,
        version=built.version,
        seconds=time.perf_counter() - started,
        convolutions=built.convolutions,
        int8=built.int8,
        notes=tuple(notes),
    )


def _mended(graph: onnx.ModelProto, model: Path, out: Path) -> tuple[onnx.ModelProto, list[str]]:
    """The graph as TensorRT takes it, where another tool quantised it, and what was changed.

    What computes other numbers than the given graph is written beside the engine, to be judged.
    """
    notes = []
    graph, biases = with_float_biases(graph)
    if biases:
        notes.append(f"{biases} biases were int32, which TensorRT refuses; built as floats")
    graph, shifted = with_symmetric_integers(graph, str(model))
    if shifted:
        built = out.with_name(f"{out.stem}.symmetric.onnx")
        save_onnx(graph, built)
        notes.append(
            f"{shifted} tensors had unsigned integers or a zero point, which TensorRT refuses; "
            f"built symmetric, up to one bit coarser: {built} is that graph; judge it with "
            "`segdeploy bench`, or calibrate the FP32 graph with --for tensorrt"
        )
    return graph, notes


def _check_profile(model: Path, shape: tuple[int | str, ...], profile: Profile | None) -> None:
    named = ", ".join(dim for dim in shape if isinstance(dim, str))
    if named and profile is None:
        raise InputError(
            f"{model}: is dynamic in {named}; say which shapes the engine must take: "
            "--min, --opt and --max, each NxHxW"
        )
    if profile is None:
        return
    if not named:
        raise InputError(f"{model}: has the one shape {shape}; leave --min, --opt and --max out")
    triples = zip(profile.minimum, profile.optimum, profile.maximum, strict=True)
    if not all(low <= best <= high for low, best, high in triples):
        raise InputError("--min, --opt and --max: each dimension must grow in that order")


def _described(built: BuiltPlan) -> tuple[dict[str, object], ...]:
    return tuple(
        {"module": proof.module, "node": proof.node, **asdict(proof.expected)}
        for proof in built.convolutions
    )
