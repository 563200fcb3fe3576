"""`segdeploy build-engine`: build an engine and its manifest from an exported graph."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.artifact import open_graph
from segdeploy.commands.calibrate import calibrate
from segdeploy.contract import Contract, Precision
from segdeploy.device import current_gpu, host_platform
from segdeploy.engine.bindings import Bindings, open_bindings
from segdeploy.engine.compiling import BuiltPlan, Progress, build_plan
from segdeploy.engine.foreign_qdq import (
    refuse_integer_operators,
    with_float_biases,
    with_symmetric_integers,
)
from segdeploy.engine.manifest import Manifest, manifest_path
from segdeploy.engine.options import BuildOptions, check_options, choose_profiles
from segdeploy.errors import InputError
from segdeploy.files import check_output, sha256_of_file, write_together
from segdeploy.models.files import temporary_folder
from segdeploy.onnx_graph.convolutions import ConvProof
from segdeploy.onnx_graph.layers import read_layers
from segdeploy.onnx_graph.model_file import (
    precision_of,
    save_onnx,
)
from segdeploy.output_lock import one_writer
from segdeploy.profiles import Profile, own_size
from segdeploy.proof.golden_vectors import (
    Pixels,
    golden_content,
    golden_images,
    golden_path,
    make_vectors,
)
from segdeploy.proof.repeated_builds import Variation, vary
from segdeploy.proof.score_check import check_scores
from segdeploy.proof.test_inputs import breaking_images
from segdeploy.runtime.predictor import load
from segdeploy.runtime.session import check_tensors
from segdeploy.tensor_spec import TensorSpec

if TYPE_CHECKING:
    import onnx

_MOST_REPEATS = 20


@dataclass(frozen=True)
class EngineReport:
    """The built engine, and the proof that TensorRT's network has the graph's dilations.

    `int8` counts the convolutions of TensorRT's network that read INT8 data and weights. `golden`
    is the file of golden vectors: a few images and the graph's outputs for them under reference
    execution. `variation` describes how repeated builds differ.
    """

    path: Path
    manifest: Path
    golden: Path | None
    bytes: int
    backend: str
    targets: tuple[str, ...]
    profiles: tuple[Profile, ...]
    precision: Precision
    version: str
    seconds: float
    convolutions: tuple[ConvProof, ...]
    int8: int
    variation: Variation | None = None
    notes: tuple[str, ...] = ()


@one_writer
def build_engine(
    model: Path | str,
    out: Path | str,
    *,
    backend: str = "tensorrt-rtx",
    targets: Sequence[str] = (),
    profiles: Sequence[Profile] = (),
    precision: Precision | None = None,
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

    TensorRT-RTX builds for the compute capabilities `targets` (`sm86`, ...) without a GPU. TensorRT
    builds for the GPU of this machine. The engine has the precision of the graph's tensor types. If
    `precision` differs, the graph is first calibrated on `data` and written to
    `OUT.PRECISION.onnx`. A graph that another tool quantized is adapted where TensorRT would refuse
    it, with a note. A dynamic graph is built for `profiles`, or by default for sides up to twice
    the network's and batches up to 4. `data` also provides the images of the golden vectors;
    without `data` they are generated scenes. `BuildOptions` describes the other arguments.

    Raises:
        InputError: for a graph, target or profile that cannot be built.
        CheckFailed: if a dilation of TensorRT's network differs from the graph; nothing is written.
        KeyboardInterrupt: if the build is interrupted; nothing is written.
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
    with _calibrated(model, out, precision, data) as built_from:
        job = _prepared(built_from, out, bindings, options, profiles, repeats)
        images = golden_images(job.contract, Path(data) if data else None)
        shown = {f"golden image {i}": image for i, image in enumerate(images)}
        check_scores(job.graph, job.contract, str(model), shown | breaking_images(job.contract))
        plans = [
            build_plan(bindings, job.graph, str(model), job.options, on_progress)
            for _ in range(repeats)
        ]
        report = _finished(job, plans, images, started)
        if built_from != model:
            built_from.replace(out.with_name(built_from.name))
    return report


@dataclass(frozen=True)
class _Job:
    """The input of a build: `graph` is the adapted graph of `model`, `evaluated` is its file."""

    model: Path
    out: Path
    graph: onnx.ModelProto
    evaluated: Path
    contract: Contract
    input: TensorSpec
    output: TensorSpec
    bindings: Bindings
    options: BuildOptions
    notes: list[str]


def _prepared(
    model: Path,
    out: Path,
    bindings: Bindings,
    options: BuildOptions,
    profiles: Sequence[Profile],
    repeats: int,
) -> _Job:
    file = open_graph(model)
    graph = file.graph
    refuse_integer_operators(graph, str(model))
    file.check(is_run_alone=False)
    contract, taken, given = file.contract, file.input, file.output
    check_tensors(model, contract, taken.shape, given.shape)
    options = replace(
        options, profiles=choose_profiles(str(model), contract, taken.shape, profiles)
    )
    graph, evaluated, notes = _mended(graph, model, out)
    if options.weights == "stripped":
        _check_stripped(model, out, repeats, notes)
    if bindings.is_rtx and options.timing_cache:
        notes.append("--timing-cache is ignored: TensorRT-RTX times no kernels while it builds")
        options = replace(options, timing_cache=None)
    contract = replace(
        contract,
        size=own_size(options.profiles, contract.size),
        precision=precision_of(graph, contract),
    )
    return _Job(model, out, graph, evaluated, contract, taken, given, bindings, options, notes)


def _finished(
    job: _Job,
    plans: Sequence[BuiltPlan],
    images: Sequence[Pixels],
    started: float,
) -> EngineReport:
    """Choose one of the plans, and write it with its manifest and golden vectors."""
    out, bindings, options = job.out, job.bindings, job.options
    if job.evaluated != job.model:
        save_onnx(job.graph, job.evaluated)  # only after TensorRT accepted the graph
    size = job.contract.size if options.profiles else None
    with load(job.evaluated, reference_execution=True, size=size) as predictor:
        vectors = golden_content(make_vectors(predictor, images), job.evaluated)
    gpu = None if bindings.is_rtx else current_gpu()
    manifest = Manifest(
        engine=out.name,
        sha256=hashlib.sha256(plans[0].plan).hexdigest(),
        bytes=len(plans[0].plan),
        backend=bindings.name,
        backend_version=bindings.version,
        platform=host_platform(),
        compute_capabilities=options.targets or ((gpu.compute_capability,) if gpu else ()),
        gpu=gpu.name if gpu else None,
        precision=job.contract.precision,
        input=job.input,
        output=job.output,
        profiles=options.profiles,
        options=options.described(),
        parent=job.model.name,
        parent_sha256=sha256_of_file(job.model),
        convolutions=read_layers(job.graph, job.contract, job.model),
        contract=job.contract,
        built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - started,
        golden=golden_path(out).name,
        golden_sha256=hashlib.sha256(vectors).hexdigest(),
    )
    best, variation = 0, None
    if len(plans) > 1:
        best, variation = vary([one.plan for one in plans], manifest, images)
    plan = plans[best].plan
    manifest = replace(manifest, sha256=hashlib.sha256(plan).hexdigest(), bytes=len(plan))
    # After a crash between two renames, the engine's hash does not match the manifest.
    write_together(
        {
            golden_path(out): vectors,
            out: plan,
            manifest_path(out): manifest.to_json().encode(),
        }
    )
    return EngineReport(
        path=out,
        manifest=manifest_path(out),
        golden=golden_path(out),
        bytes=len(plan),
        backend=bindings.name,
        targets=manifest.compute_capabilities,
        profiles=options.profiles,
        precision=job.contract.precision,
        version=bindings.version,
        seconds=time.perf_counter() - started,
        convolutions=plans[best].convolutions,
        int8=plans[best].int8,
        variation=variation,
        notes=tuple(job.notes),
    )


@contextmanager
def _calibrated(
    model: Path, out: Path, precision: Precision | None, data: Path | str | None
) -> Iterator[Path]:
    """Yield the model, or its calibrated copy in a temporary folder for another precision."""
    if precision is None or precision == open_graph(model).contract.precision:
        yield model
        return
    if data is None:
        raise InputError(
            f"--precision {precision}: the graph has another precision; give --data to calibrate "
            "it first, or use `segdeploy calibrate`"
        )
    folder = temporary_folder(out)
    try:
        path = Path(folder, f"{out.stem}.{precision}.onnx")
        calibrate(model, data, path, precision=precision or "")
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_stripped(model: Path, out: Path, repeats: int, mended: Sequence[str]) -> None:
    """Refuse what contradicts a stripped plan, which loads its weights from the model file."""
    if mended:
        raise InputError(
            f"--stripped: the weights would come from {model}, which was changed for TensorRT "
            f"({mended[0]}); calibrate the FP32 graph with --scheme tensorrt instead"
        )
    if model.parent.resolve() != out.parent.resolve():
        raise InputError(
            f"--stripped: {model} must be in the engine's folder: it provides the engine's weights"
        )
    if repeats > 1:
        raise InputError("--stripped: builds cannot be compared without their weights; leave out "
                         "--repeats")  # fmt: skip


def _mended(
    graph: onnx.ModelProto, model: Path, out: Path
) -> tuple[onnx.ModelProto, Path, list[str]]:
    """Return a graph that TensorRT accepts, the path of its reference, and notes on the changes.

    The engine is evaluated against the reference. This is `model`, or, if the changes alter the
    results, a new file beside the engine, which the caller writes.
    """
    notes = []
    graph, biases = with_float_biases(graph)
    if biases:
        notes.append(f"{biases} biases were int32, which TensorRT refuses; converted to float")
    graph, shifted = with_symmetric_integers(graph, str(model))
    if shifted:
        built = out.with_name(f"{out.stem}.symmetric.onnx")
        model = check_output(built, read_from=model)
        notes.append(
            f"{shifted} tensors had unsigned integers or a zero point, which TensorRT refuses; "
            f"converted to symmetric INT8, up to one bit coarser; {built} is that graph; evaluate "
            "it with `segdeploy bench`, or calibrate the FP32 graph with --scheme tensorrt"
        )
    return graph, model, notes
