"""`segdeploy bench`: accuracy, parity and latency of the candidates against the reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.benchmark.accuracy import Contestant, Judgement, judge
from segdeploy.benchmark.environment import describe_environment
from segdeploy.benchmark.latency import (
    ROUNDS,
    SECONDS,
    Candidate,
    Failure,
    Latency,
    measure_latencies,
)
from segdeploy.benchmark.layers import LayerReport, compare_layers
from segdeploy.benchmark.pictures import is_folder_of_pictures, pictures_of
from segdeploy.benchmark.verdict import (
    Limits,
    Row,
    Verdict,
    complaints,
    front,
    ranked,
    recommended,
)
from segdeploy.errors import InputError, NotHere
from segdeploy.models.dataset import open_dataset
from segdeploy.network import ModelSpec, check_classes
from segdeploy.onnx_file import is_quantized, load_onnx, precision_of
from segdeploy.runtime.predictor import Predictor, load
from segdeploy.runtime.preprocess import preprocess
from segdeploy.spec import Contract

if TYPE_CHECKING:
    import onnx

SAMPLES = 4
_NOISY = 0.05  # standard error of the rounds' medians, of the median
_BUSY = 1.5  # load average a core
_SURE = 0.999  # labels equal where the reference's margin is above its mean


def bench(
    candidates: Sequence[Path | str],
    *,
    reference: str | Path | ModelSpec,
    data: Path | str,
    split: str = "val",
    limit: int | None = None,
    backends: Sequence[str] = ("onnxruntime",),
    threads: int | None = None,
    limits: Limits | None = None,
    fps: float | None = None,
    layers: bool = False,
    seconds: float = SECONDS,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
    on_burst: Callable[[int, int], None] = lambda done, total: None,
) -> Verdict:
    """Compare exported files and engines with the network that they came from.

    A quantised graph is judged by executing it literally, which is what TensorRT computes; its
    latency is that of this machine's own kernels, and how far those agree is said beside it.
    Latency is measured in seven interleaved bursts, of `seconds` in all for a candidate, at a pace
    of `fps` calls a second if that is given. `data` may be a folder of pictures without masks: then
    there is parity and latency alone. With `layers`, the first frame is followed through each
    graph, layer by layer. A candidate that fails, or is for another GPU, is told, and the others go
    on.

    Raises:
        InputError, ModelInputError: for files that cannot be used, or whose contract differs.
    """
    limits = limits or Limits()
    limits.check()
    if fps is not None and not 0 < fps <= 1000:
        raise InputError(f"--fps {fps}: is calls a second, above 0 to 1000")
    spec = ModelSpec.of(reference)
    paths = [Path(path) for path in candidates]
    if len(set(paths)) < len(paths):
        raise InputError("bench: a candidate is named twice")
    named = [
        Candidate(_name(path, paths, backend, backends), ModelSpec(str(path)), backend)
        for path in paths
        for backend in (backends if path.suffix == ".onnx" else ("",))
    ]
    with ExitStack() as stack:
        pictures = is_folder_of_pictures(Path(data))
        labelled = None if pictures else open_dataset(Path(data))
        size = None
        if labelled is not None:
            size = labelled.frames(split, 1)[0].read()[0].shape[:2]
        truth = stack.enter_context(load(spec, literal=True, dataset=labelled, default_size=size))
        contract, backend = truth.contract, truth.session.backend
        dataset = labelled or pictures_of(Path(data), contract)
        check_classes(contract, dataset, spec.model)
        split = dataset.splits[0] if labelled is None else split
        frames = dataset.frames(split, limit)
        opened = [_open(stack, candidate, truth) for candidate in named]
        contestants = [one for one in opened if isinstance(one, Contestant)]
        own, judged, samples = judge(
            truth, contestants, dataset, frames, samples=SAMPLES, on_frame=on_frame
        )
        followed: dict[str, LayerReport | str] = {}
        if layers:
            image = preprocess(frames[0].read()[0], contract)
            followed = {
                one.name: compare_layers(truth.session, Path(one.spec.model), image)
                for one in named
            }
    measured = Candidate("reference", _complete(spec, contract), backend)
    judgements = dict(zip((one.name for one in contestants), judged, strict=True))
    # What gives no labels is not worth timing.
    able = [one for one in named if isinstance(judgements.get(one.name), Judgement)]
    times = measure_latencies(
        [measured, *able],
        burst_seconds=seconds / ROUNDS,
        threads=threads,
        fps=fps,
        on_burst=on_burst,
    )
    if isinstance(times[0], Failure):
        raise InputError(times[0].reason)
    latencies = dict(zip((one.name for one in able), times[1:], strict=True))
    first = Row("reference", backend, contract.precision, _bytes(spec), own, times[0])
    rows = []
    for candidate, one in zip(named, opened, strict=True):
        row = _row(candidate, one, judgements.get(candidate.name), latencies.get(candidate.name))
        row = replace(row, layers=followed.get(candidate.name))
        rows.append(replace(row, complaints=complaints(row, first, limits)))
    return Verdict(
        rows=(first, *ranked(rows)),
        samples=tuple(samples),
        dataset=dataset,
        split=split,
        frames=len(frames),
        size=contract.size,
        environment=describe_environment(threads),
        limits=limits,
        has_masks=own.accuracy.miou is not None,
        recommended=recommended(rows),
        front=front((first, *rows)),
        notes=tuple(_notes(first, rows, own.accuracy.miou is not None)),
    )


def _row(
    candidate: Candidate,
    opened: Contestant | NotHere,
    judgement: Judgement | str | None,
    latency: Latency | Failure | None,
) -> Row:
    size = _bytes(candidate.spec)
    if isinstance(opened, NotHere):
        named = (candidate.name, candidate.backend or "tensorrt", "-", size)
        return Row(*named, None, None, failure=str(opened), skipped=True)
    failure = judgement if isinstance(judgement, str) else None
    if isinstance(latency, Failure):
        failure = latency.reason
    return Row(
        name=candidate.name,
        backend=opened.predictor.session.backend if not candidate.backend else candidate.backend,
        precision=opened.precision,
        bytes=size,
        judgement=judgement if isinstance(judgement, Judgement) else None,
        latency=latency if isinstance(latency, Latency) else None,
        failure=failure,
    )


def _notes(reference: Row, rows: Sequence[Row], has_masks: bool) -> list[str]:
    notes = [] if has_masks else ["the frames have no masks: no mIoU, parity and latency alone"]
    timed = [row for row in (reference, *rows) if row.latency is not None]
    notes += [
        f"{row.name}: its calls had not become steady after warming up"
        for row in timed
        if row.latency and not row.latency.stable
    ]
    noisy = [
        row.name
        for row in timed
        if row.latency and row.latency.standard_error_ms > _NOISY * row.latency.median_ms
    ]
    if noisy:
        notes.append(
            f"latency of {', '.join(noisy)} varied between rounds by more than {_NOISY:.0%}: other "
            "load, a changing clock, or heat"
        )
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = os.cpu_count() or 1
    if load_average > _BUSY * cores:
        notes.append(
            f"the machine was busy (load {load_average:.1f} on {cores} cores) when this ended"
        )
    for row in rows:
        if isinstance(row.layers, LayerReport) and row.layers.enters is not None:
            entry = row.layers.enters
            notes.append(
                f"{row.name}: the error enters at {entry.module} (node {entry.node}), which is off "
                f"by {entry.max_rel:.2g} of its range"
            )
        fidelity = row.judgement.fidelity if row.judgement else None
        sure = fidelity.by_margin[-1] if fidelity else None
        if sure is not None and sure < _SURE:
            notes.append(
                f"{row.name}: {1 - sure:.2%} of labels differ where the reference was sure, which "
                "is no rounding; look at its layers"
            )
    return notes


def _name(path: Path, paths: Sequence[Path], backend: str, backends: Sequence[str]) -> str:
    """The file's name, or its path where two have one name, and the runtime where there are two."""
    alike = [other for other in paths if other.name == path.name]
    name = path.name if len(alike) == 1 else str(path)
    return name if len(backends) == 1 else f"{name} ({backend})"


def _rounds(graph: onnx.ModelProto) -> bool:
    """Whether a CPU's kernels may round otherwise than TensorRT: Q/DQ, or half types."""
    from segdeploy.calibration.half import is_half

    return is_quantized(graph) or is_half(graph)


def _open(stack: ExitStack, candidate: Candidate, truth: Predictor) -> Contestant | NotHere:
    path = Path(candidate.spec.model)
    try:
        kernels = stack.enter_context(load(path, backend=candidate.backend or None))
    except NotHere as error:
        return error
    quantized, precision = False, kernels.contract.precision
    if path.suffix == ".onnx":
        graph = load_onnx(path)
        quantized, precision = _rounds(graph), precision_of(graph, kernels.contract)
    predictor = stack.enter_context(load(path, literal=True)) if quantized else kernels
    theirs, ours = predictor.contract, truth.contract
    for what in ("classes", "size", "mean", "std", "scales", "flip"):
        if getattr(theirs, what) != getattr(ours, what):
            raise InputError(
                f"{path}: its {what} is {getattr(theirs, what)}, the reference's "
                f"{getattr(ours, what)}; they cannot be compared"
            )
    return Contestant(candidate.name, predictor, kernels if quantized else None, precision)


def _complete(spec: ModelSpec, contract: Contract) -> ModelSpec:
    """Add what a named network took from the data set, for a process that does not see it."""
    if spec.is_file:
        return spec
    return replace(spec, size=contract.size, num_classes=len(contract.classes))


def _bytes(spec: ModelSpec) -> int | None:
    path = Path(spec.model) if spec.is_file else spec.weights
    return path.stat().st_size if path else None
