"""`segdeploy build-engine`: from an exported graph to an engine with its manifest."""

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

from segdeploy.commands.calibrate import calibrate
from segdeploy.contract import Contract
from segdeploy.device import current_gpu, host_platform
from segdeploy.engine.bindings import Bindings, open_bindings
from segdeploy.engine.compiling import BuiltPlan, Progress, build_plan
from segdeploy.engine.foreign_qdq import (
    refuse_integer_operators,
    with_float_biases,
    with_symmetric_integers,
)
from segdeploy.engine.manifest import Manifest, TensorInfo, end_of, manifest_path
from segdeploy.engine.options import BuildOptions, check_options, choose_profiles
from segdeploy.errors import InputError
from segdeploy.files import check_output, sha256_of_file, write_together
from segdeploy.models.files import temporary_folder
from segdeploy.onnx_graph.check import check_graph
from segdeploy.onnx_graph.convolutions import ConvProof
from segdeploy.onnx_graph.layers import read_layers
from segdeploy.onnx_graph.model_file import contract_of, load_onnx, precision_of, save_onnx
from segdeploy.output_lock import one_writer
from segdeploy.profiles import Profile, own_size
from segdeploy.proof.golden_vectors import (
    Picture,
    golden_content,
    golden_path,
    golden_pictures,
    make_vectors,
)
from segdeploy.proof.repeated_builds import Variation, vary
from segdeploy.proof.score_check import check_scores
from segdeploy.proof.test_inputs import breaking_images
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


@one_writer
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
    or for sizes up to twice its own and batches up to 4. `data` also gives the golden vectors'
    pictures; without it they are generated scenes. The rest is as in `BuildOptions`.

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
    with _calibrated(model, out, precision, data) as built_from:
        job = _prepared(built_from, out, bindings, options, profiles, repeats)
        pictures = golden_pictures(job.contract, Path(data) if data else None)
        shown = {f"golden picture {i}": picture for i, picture in enumerate(pictures)}
        check_scores(
            job.graph, job.contract, str(model), shown | breaking_images(job.contract.size)
        )
        plans = [
            build_plan(bindings, job.graph, str(model), job.options, on_progress)
            for _ in range(repeats)
        ]
        report = _finished(job, plans, pictures, started)
        if built_from != model:
            built_from.replace(out.with_name(built_from.name))
    return report


@dataclass(frozen=True)
class _Job:
    """What is built: `graph` is the model's, mended; `judged` the file that computes the same."""

    model: Path
    out: Path
    graph: onnx.ModelProto
    judged: Path
    contract: Contract
    input: TensorInfo
    output: TensorInfo
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
    graph = load_onnx(model)
    refuse_integer_operators(graph, str(model))
    check_graph(graph, model)
    contract = contract_of(graph, model)
    taken, given = (end_of(value) for value in (graph.graph.input[0], graph.graph.output[0]))
    check_tensors(model, contract, taken.shape, given.shape)
    dynamic = [side for side in taken.shape if isinstance(side, str)]
    options = replace(options, profiles=choose_profiles(str(model), contract, dynamic, profiles))
    graph, judged, notes = _mended(graph, model, out)
    if options.weights == "stripped":
        _check_stripped(model, out, repeats, notes)
    if bindings.is_rtx and options.timing_cache:
        notes.append("TensorRT-RTX has no use for a timing cache: it times nothing when it builds")
        options = replace(options, timing_cache=None)
    contract = replace(
        contract,
        size=own_size(options.profiles, contract.size),
        precision=precision_of(graph, contract),
    )
    return _Job(model, out, graph, judged, contract, taken, given, bindings, options, notes)


def _finished(
    job: _Job,
    plans: Sequence[BuiltPlan],
    pictures: Sequence[Picture],
    started: float,
) -> EngineReport:
    """Choose among the plans, prove and describe the one, and write what belongs to it."""
    out, bindings, options = job.out, job.bindings, job.options
    if job.judged != job.model:
        save_onnx(job.graph, job.judged)  # not before TensorRT took it
    size = job.contract.size if options.profiles else None
    with load(job.judged, literal=True, size=size) as predictor:
        vectors = golden_content(make_vectors(predictor, pictures), job.judged)
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
        best, variation = vary([one.plan for one in plans], manifest, pictures)
    plan = plans[best].plan
    manifest = replace(manifest, sha256=hashlib.sha256(plan).hexdigest(), bytes=len(plan))
    # A crash between two leaves a manifest whose hash refuses the engine.
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
    model: Path, out: Path, precision: str | None, data: Path | str | None
) -> Iterator[Path]:
    """The model, or it in another precision, in a folder that is gone afterwards."""
    if precision is None or precision == contract_of(load_onnx(model), model).precision:
        yield model
        return
    if data is None:
        raise InputError(
            f"--precision {precision}: the graph's types are its own; give --data, and it is "
            "calibrated first, or use `segdeploy calibrate`"
        )
    folder = temporary_folder(out)
    try:
        path = Path(folder, f"{out.stem}.{precision}.onnx")
        calibrate(model, data, path, precision=precision or "")
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_stripped(model: Path, out: Path, repeats: int, mended: Sequence[str]) -> None:
    """Weights that are not in the plan come from the model when it is loaded."""
    if mended:
        raise InputError(
            f"--stripped: the weights would come from {model}, which was mended for TensorRT "
            f"({mended[0]}); calibrate the FP32 graph with --for tensorrt instead"
        )
    if model.parent.resolve() != out.parent.resolve():
        raise InputError(
            f"--stripped: {model} must lie beside the engine, which takes its weights from there"
        )
    if repeats > 1:
        raise InputError("--stripped: builds cannot be compared without their weights; leave out "
                         "--repeats")  # fmt: skip


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
