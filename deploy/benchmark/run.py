"""`segdeploy bench`: accuracy, parity and latency of the candidates against the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.benchmark.accuracy import Contestant, Judgement, Sample, judge
from segdeploy.benchmark.environment import Environment, describe_environment
from segdeploy.benchmark.latency import BURST_SECONDS, Candidate, Latency, measure_latencies
from segdeploy.errors import InputError
from segdeploy.models.dataset import DataSet, open_dataset
from segdeploy.network import ModelSpec, check_classes
from segdeploy.onnx_file import is_quantized, load_onnx, precision_of
from segdeploy.runtime.predictor import Predictor, load
from segdeploy.spec import Contract

if TYPE_CHECKING:
    import onnx

SAMPLES = 4


@dataclass(frozen=True)
class Row:
    """One line of the verdict; `bytes` is the file's size, None for a network without one."""

    name: str
    backend: str
    precision: str
    bytes: int | None
    judgement: Judgement
    latency: Latency


def miou_drop(reference: Row, row: Row) -> float | None:
    """How much mIoU is lost, in 0..1; None where it is not defined."""
    before, after = reference.judgement.accuracy.miou, row.judgement.accuracy.miou
    return None if before is None or after is None else before - after


@dataclass(frozen=True)
class Verdict:
    """The reference's row first, then the candidates' in the order given."""

    rows: tuple[Row, ...]
    samples: tuple[Sample, ...]
    dataset: DataSet
    split: str
    frames: int
    size: tuple[int, int]
    environment: Environment

    @property
    def reference(self) -> Row:
        """The row that the others are compared with."""
        return self.rows[0]


def bench(
    candidates: Sequence[Path | str],
    *,
    reference: str | Path | ModelSpec,
    data: Path | str,
    split: str = "val",
    limit: int | None = None,
    backends: Sequence[str] = ("onnxruntime",),
    threads: int | None = None,
    burst_seconds: float = BURST_SECONDS,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
    on_burst: Callable[[int, int], None] = lambda done, total: None,
) -> Verdict:
    """Compare exported files with the network that they came from.

    A quantised graph is judged by executing it literally, which is what TensorRT computes; its
    latency is that of this CPU's own kernels, and how far those agree is said beside it. Latency
    is measured in five interleaved bursts of `burst_seconds` a candidate.

    Raises:
        InputError, ModelInputError: for files that cannot be used, or whose classes or size differ.
    """
    dataset = open_dataset(Path(data))
    frames = dataset.frames(split, limit)
    spec = ModelSpec.of(reference)
    first, _ = frames[0].read()
    paths = [Path(path) for path in candidates]
    if len(set(paths)) < len(paths):
        raise InputError("bench: a candidate is named twice")
    named = [
        Candidate(_name(path, paths, backend, backends), ModelSpec(str(path)), backend)
        for path in paths
        for backend in backends
    ]
    with ExitStack() as stack:
        truth = stack.enter_context(
            load(spec, literal=True, dataset=dataset, default_size=first.shape[:2])
        )
        check_classes(truth.contract, dataset, spec.model)
        contestants = [_open(stack, candidate, truth) for candidate in named]
        own, judged, samples = judge(
            truth, contestants, dataset, frames, samples=SAMPLES, on_frame=on_frame
        )
        contract, backend = truth.contract, truth.session.backend
        precisions = [contestant.precision for contestant in contestants]
    measured = Candidate("reference", _complete(spec, contract), backend)
    latencies = measure_latencies(
        [measured, *named], burst_seconds=burst_seconds, threads=threads, on_burst=on_burst
    )
    rows = [Row("reference", backend, contract.precision, _bytes(spec), own, latencies[0])]
    for candidate, kind, judgement, latency in zip(
        named, precisions, judged, latencies[1:], strict=True
    ):
        size_on_disk = _bytes(candidate.spec)
        rows.append(Row(candidate.name, candidate.backend, kind, size_on_disk, judgement, latency))
    environment = describe_environment(threads)
    return Verdict(
        tuple(rows), tuple(samples), dataset, split, len(frames), contract.size, environment
    )


def _name(path: Path, paths: Sequence[Path], backend: str, backends: Sequence[str]) -> str:
    """The file's name, or its path where two have one name, and the runtime where there are two."""
    alike = [other for other in paths if other.name == path.name]
    name = path.name if len(alike) == 1 else str(path)
    return name if len(backends) == 1 else f"{name} ({backend})"


def _rounds(graph: onnx.ModelProto) -> bool:
    """Whether a CPU's kernels may round otherwise than TensorRT: Q/DQ, or half types."""
    from segdeploy.calibration.half import is_half

    return is_quantized(graph) or is_half(graph)


def _open(stack: ExitStack, candidate: Candidate, truth: Predictor) -> Contestant:
    path = Path(candidate.spec.model)
    kernels = stack.enter_context(load(path, backend=candidate.backend))
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
