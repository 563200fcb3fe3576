"""`segdeploy build-engine`: from an exported graph to an engine with its manifest."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.calibrator.calibrating import calibrate
from segdeploy.device import current_gpu, host_platform
from segdeploy.engine.bindings import open_bindings
from segdeploy.engine.compiling import BuiltPlan, Progress, build_plan
from segdeploy.engine.foreign_qdq import with_float_biases, with_symmetric_integers
from segdeploy.engine.manifest import Manifest, manifest_path
from segdeploy.engine.options import BuildOptions, Profile, check_options, choose_profiles
from segdeploy.engine.repeats import Variation, vary
from segdeploy.errors import InputError
from segdeploy.exporter.dilation import ConvProof
from segdeploy.files import check_output, sha256_of_file, write_atomically
from segdeploy.golden import golden_path, golden_pictures, make_vectors, write_golden
from segdeploy.onnx_check import check_graph
from segdeploy.onnx_file import (
    contract_of,
    load_onnx,
    precision_of,
    save_onnx,
    tensor_shape,
)
from segdeploy.runtime.predictor import load
from segdeploy.runtime.session import check_tensors

if TYPE_CHECKING:
    import onnx

_MOST_REPEATS = 20


@dataclass(frozen=True)
class EngineReport:
    """What was built, and the proof that TensorRT's network has the graph's dilations.

    `int8` counts the convolutions of TensorRT's network that read INT8 data and weights. `golden`
    holds what the graph, executed literally, makes of a few pictures. `variation` says how several
    builds differ.
    """

    path: Path
    manifest: Path
    golden: Path | None
    bytes: int
    backend: str
    targets: tuple[str, ...]
    profiles: tuple[Profile, ...]
    precision: str
    version: str
    seconds: float
    convolutions: tuple[ConvProof, ...]
    int8: int
    variation: Variation | None = None
    notes: tuple[str, ...] = ()


def build_engine(
    model: Path | str,
    out: Path | str,
    *,
    backend: str = "tensorrt-rtx",
    targets: Sequence[str] = (),
    profiles: Sequence[Profile] = (),
    precision: str | None = None,
    data: Path | str | None = None,
    repeats: int = 1,
    workspace: int | None = None,
    timing_cache: Path | str | None = None,
    weights: str = "kept",
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    on_progress: Progress = lambda done, total, note: None,
) -> EngineReport:
    """Build an engine, its manifest and its golden vectors.

    TensorRT-RTX builds for the compute capabilities `targets` (`sm86`, ...) without a GPU, TensorRT
    for the GPU at hand. The precision is the graph's, as it is typed; where `precision` is another,
    the graph is calibrated on `data` first, into `OUT.PRECISION.onnx`. What another tool quantised
    is mended where TensorRT would refuse it, with a note. A dynamic graph is built for `profiles`,
    or for the bounds that it was exported with. `data` also gives the golden vectors' pictures;
    without it they are generated scenes. The rest is as in `BuildOptions`.

    Raises:
        InputError: for a graph, target or profile that cannot be built.
        CheckFailed: if TensorRT's network has another dilation than the graph; nothing is written.
        KeyboardInterrupt: if it was interrupted; nothing is written.
    """
    started = time.perf_counter()
    model = Path(model)
    out = check_output(Path(out), ".engine")
    if not 1 <= repeats <= _MOST_REPEATS:
        raise InputError(f"--repeats {repeats}: must be 1 to {_MOST_REPEATS}")
    bindings = open_bindings(backend)
    options = BuildOptions(
        targets=tuple(dict.fromkeys(target.lower() for target in targets)),
        workspace=workspace,
        timing_cache=Path(timing_cache) if timing_cache else None,
        weights=weights,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    check_options(options, bindings)
    if options.timing_cache is not None:
        check_output(options.timing_cache)
    graph = load_onnx(model)
    check_graph(graph, model)
    contract = contract_of(graph, model)
    if precision not in (None, contract.precision):
        model = _calibrated(model, out, precision or "", data)
        graph = load_onnx(model)
        contract = contract_of(graph, model)
    shape, given = (tensor_shape(end[0]) for end in (graph.graph.input, graph.graph.output))
    check_tensors(model, contract, shape, given)
    dynamic = [side for side in shape if isinstance(side, str)]
    chosen = choose_profiles(str(model), contract, dynamic, profiles)
    options = replace(options, profiles=chosen)
    graph, judged, notes = _mended(graph, model, out)
    if bindings.is_rtx and options.timing_cache:
        notes.append("TensorRT-RTX has no use for a timing cache: it times nothing when it builds")
        options = replace(options, timing_cache=None)
    contract = replace(contract, precision=precision_of(graph, contract))
    plans = [build_plan(bindings, graph, str(model), options, on_progress) for _ in range(repeats)]
    if judged != model:
        save_onnx(graph, judged)  # not before TensorRT took it
    gpu = None if bindings.is_rtx else current_gpu()
    manifest = Manifest(
        engine=out.name,
        sha256=hashlib.sha256(plans[0].plan).hexdigest(),
        bytes=len(plans[0].plan),
        backend=backend,
        backend_version=bindings.version,
        platform=host_platform(),
        compute_capabilities=options.targets or ((gpu.compute_capability,) if gpu else ()),
        precision=contract.precision,
        input_shape=shape,
        output_shape=given,
        profiles=options.profiles,
        options=options.described(),
        parent=model.name,
        parent_sha256=sha256_of_file(model),
        convolutions=_described(plans[0]),
        contract=contract,
        built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - started,
    )
    pictures = golden_pictures(contract, Path(data) if data else None)
    best, variation = 0, None
    if repeats > 1:
        best, variation = vary([one.plan for one in plans], bindings, manifest, pictures)
    plan = plans[best].plan
    with load(judged, literal=True) as predictor:
        vectors = make_vectors(predictor, pictures)
    golden = golden_path(out)
    manifest = replace(
        manifest,
        sha256=hashlib.sha256(plan).hexdigest(),
        bytes=len(plan),
        golden=golden.name,
        golden_sha256=write_golden(vectors, judged, golden),
    )
    # In this order a crash between two leaves a manifest whose hash refuses the engine.
    write_atomically(out, plan)
    write_atomically(manifest_path(out), manifest.to_json().encode())
    return EngineReport(
        path=out,
        manifest=manifest_path(out),
        golden=golden,
        bytes=len(plan),
        backend=backend,
        targets=manifest.compute_capabilities,
        profiles=options.profiles,
        precision=contract.precision,
        version=bindings.version,
        seconds=time.perf_counter() - started,
        convolutions=plans[best].convolutions,
        int8=plans[best].int8,
        variation=variation,
        notes=tuple(notes),
    )


def _calibrated(model: Path, out: Path, precision: str, data: Path | str | None) -> Path:
    """The graph in another precision, written beside the engine."""
    if data is None:
        raise InputError(
            f"--precision {precision}: the graph's types are its own; give --data, and it is "
            "calibrated first, or use `segdeploy calibrate`"
        )
    path = out.with_name(f"{out.stem}.{precision}.onnx")
    calibrate(model, data, path, precision=precision)
    return path


def _mended(
    graph: onnx.ModelProto, model: Path, out: Path
) -> tuple[onnx.ModelProto, Path, list[str]]:
    """The graph as TensorRT takes it, where another tool quantised it, and what was changed.

    The path is that of the file to judge the engine by: the given one, or, for a graph that
    computes other numbers, one beside the engine, to be written.
    """
    notes = []
    graph, biases = with_float_biases(graph)
    if biases:
        notes.append(f"{biases} biases were int32, which TensorRT refuses; built as floats")
    graph, shifted = with_symmetric_integers(graph, str(model))
    if shifted:
        built = out.with_name(f"{out.stem}.symmetric.onnx")
        model = check_output(built, read_from=model)
        notes.append(
            f"{shifted} tensors had unsigned integers or a zero point, which TensorRT refuses; "
            f"built symmetric, up to one bit coarser: {built} is that graph; judge it with "
            "`segdeploy bench`, or calibrate the FP32 graph with --for tensorrt"
        )
    return graph, model, notes


def _described(built: BuiltPlan) -> tuple[dict[str, object], ...]:
    return tuple(
        {"module": proof.module, "node": proof.node, **asdict(proof.expected)}
        for proof in built.convolutions
    )
