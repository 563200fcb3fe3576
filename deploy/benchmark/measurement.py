"""Measure candidates: time, evaluate and check them, and return the rows of the verdict."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from segdeploy.artifact import EngineFile, artifact_of
from segdeploy.benchmark.accuracy import Evaluation, OpenCandidate, Sample, evaluate, show
from segdeploy.benchmark.candidates import (
    check_contract,
    identity_of,
    identity_of_reference,
    open_candidate,
)
from segdeploy.benchmark.environment import describe_environment
from segdeploy.benchmark.failure import Failure
from segdeploy.benchmark.latency import Latency, measure_latencies
from segdeploy.benchmark.layers import compare_layers
from segdeploy.benchmark.process import Candidate
from segdeploy.benchmark.protocol import Protocol
from segdeploy.benchmark.supported_shapes import check_supported_shapes
from segdeploy.benchmark.sweep import Point, run_sweep
from segdeploy.benchmark.test_time_augmentation import export_fused, looped, why_no_loop
from segdeploy.benchmark.verdict import Limits, Row, TestTimeAugmentation, failures, ranked
from segdeploy.content_keys import key_of_frames
from segdeploy.contract import Contract
from segdeploy.device import current_gpu
from segdeploy.errors import InputError
from segdeploy.image_folder import is_image_folder, open_image_folder
from segdeploy.ledger import Ledger
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import DataSet, Frame, open_dataset
from segdeploy.network_loading import matched
from segdeploy.packages import versions
from segdeploy.preprocessing.preprocess import preprocess
from segdeploy.proof.accuracy import check_labeled
from segdeploy.runtime.predictor import Predictor, load

Progress = Callable[[int, int], None]
_SAMPLES = 4


@dataclass(frozen=True)
class BenchContext:
    """The reference and the frames with which every candidate is compared.

    `labeled` is the path of the data set, None for images without masks.
    """

    spec: ModelSpec
    labeled: Path | None
    truth: Predictor
    reference: Candidate
    identity: str
    dataset: DataSet
    split: str
    frames: list[Frame]


@contextmanager
def open_context(
    spec: ModelSpec, data: Path, split: str, limit: int | None
) -> Iterator[BenchContext]:
    """Open the reference, and list the frames.

    Raises:
        InputError, ModelInputError: if the reference or the data cannot be used, or their classes
            differ.
    """
    labeled = None if is_image_folder(data) else open_dataset(data)
    size = None
    if labeled is not None:
        size = labeled.frames(split, 1)[0].read_image().shape[:2]
    file = artifact_of(spec)
    with load(file or spec, reference_execution=True, dataset=labeled, default_size=size) as truth:
        if labeled is None:
            dataset: DataSet = open_image_folder(data, truth.contract)
        else:
            dataset = matched(truth.contract, labeled, spec.model)
        split = dataset.splits[0] if labeled is None else split
        complete = _complete(spec, truth.contract)
        yield BenchContext(
            spec=complete,
            labeled=data if labeled else None,
            truth=truth,
            reference=Candidate("reference", complete, truth.session.backend, file),
            identity=identity_of_reference(truth, file),
            dataset=dataset,
            split=split,
            frames=dataset.frames(split, limit),
        )


@dataclass(frozen=True)
class Measured:
    """Rows of the reference and the candidates, in the given order, and the sample frames."""

    reference: Row
    rows: list[Row]
    samples: list[Sample]


@dataclass(frozen=True)
class Measuring:
    """Measurements of one bench, with the settings that they share."""

    context: BenchContext
    protocol: Protocol
    limits: Limits
    ledger: Ledger
    export: Callable[..., object]
    on_frame: Progress
    on_burst: Progress

    def check(self, single: Sequence[Candidate], fused: Sequence[Candidate]) -> None:
        """Refuse frames, candidates and limits that cannot be used, before the long measurements.

        Raises:
            InputError, ModelInputError: for an image or a mask that cannot be read, a contract that
                differs, an mIoU limit without masks, or a reference that cannot run the scales.
        """
        context, scales = self.context, self.protocol.scales
        if self.limits.max_miou_drop is not None:
            if context.labeled is None:
                raise InputError(
                    "--max-miou-drop: the frames have no masks, so no mIoU can be measured; give a "
                    "data set, or --min-agreement"
                )
            check_labeled(context.frames, "--max-miou-drop")
        for one in single:
            check_contract(one, context.truth)
        if scales:
            truth = Predictor(context.truth.session, None, scales)
            for one in fused:
                check_contract(one, truth)
        for frame in context.frames:
            frame.read()

    def at_one_scale(self, named: Sequence[Candidate]) -> Measured:
        """Measure the single-scale candidates, with the layer comparison if requested."""
        context = self.context
        found = self._measure(named, context.truth, [context.reference], self.limits, _SAMPLES)
        if not self.protocol.layers:
            return found
        image = preprocess(context.frames[0].read()[0], context.truth.contract)
        layers = {
            file: compare_layers(context.truth.session, file, image)
            for file in dict.fromkeys(one.exported for one in named)
        }
        rows = [
            replace(row, layers=layers[one.exported])
            for one, row in zip(named, found.rows, strict=True)
        ]
        return replace(found, rows=rows)

    def at_scales(
        self, single: Sequence[Candidate], fused: Sequence[Candidate], backends: Sequence[str]
    ) -> tuple[TestTimeAugmentation, list[str]]:
        """Measure loops over single-scale candidates, and graphs with fused scales.

        Also returns notes on candidates without a loop. The latency limits hold for one scale, so
        they do not apply here.
        """
        context, scales = self.context, self.protocol.scales
        limits = replace(self.limits, max_latency_ms=None, min_speedup=None)
        truth = Predictor(context.truth.session, None, scales)
        with tempfile.TemporaryDirectory() as folder:
            made = export_fused(
                self.export, context.spec, context.labeled, scales, backends, Path(folder)
            )
            notes = [made.reason] if isinstance(made, Failure) else []
            named = []
            for one in single:
                if one.program:
                    notes.append(f"{one.name}: segdeploy-bench times one scale, and no loop")
                elif why := why_no_loop(one.exported, scales):
                    notes.append(f"{one.name}: {why}")
                else:
                    named.append(looped(one, scales))
            named += fused
            named += made if isinstance(made, list) else []
            references = [context.reference, looped(context.reference, scales)]
            found = self._measure(named, truth, references, limits, 0)
        return TestTimeAugmentation(scales, (found.reference, *ranked(found.rows))), notes

    def sweep(self, named: Sequence[Candidate]) -> list[Point]:
        """Measure the reference and `named` over batch sizes, threads and clients."""
        return run_sweep(
            [self.context.reference, *named],
            self.protocol.sweep,
            seconds=self.protocol.seconds,
            threads=self.protocol.threads,
            ledger=self.ledger,
            identities=[self.context.identity, *(identity_of(one) for one in named)],
            on_burst=self.on_burst,
        )

    def _measure(
        self,
        named: Sequence[Candidate],
        truth: Predictor,
        references: Sequence[Candidate],
        limits: Limits,
        samples: int,
    ) -> Measured:
        """Time `named`, and compare the candidates that ran with `truth`.

        Timing comes first and in separate processes, so that a candidate that crashes is not opened
        in this process. Speed-ups are relative to the first of `references`; the last of them is
        `truth` itself.
        """
        context, protocol = self.context, self.protocol
        times = measure_latencies(
            [*references, *named],
            seconds=protocol.seconds,
            threads=protocol.threads,
            fps=protocol.fps,
            ledger=self.ledger,
            identities=[
                *(f"{context.identity} at {one.scales}" for one in references),
                *(identity_of(one) for one in named),
            ],
            on_burst=self.on_burst,
        )
        for latency in times[: len(references)]:
            if isinstance(latency, Failure):
                raise InputError(latency.reason)
        latencies = times[len(references) :]
        shared: dict[str, Predictor] = {}
        with ExitStack() as stack:
            opened = [
                None if isinstance(latency, Failure) else open_candidate(stack, one, shared)
                for one, latency in zip(named, latencies, strict=True)
            ]
            running = [one for one in opened if one is not None]
            own, evaluated = evaluate(
                truth,
                running,
                context.dataset,
                context.frames,
                ledger=self.ledger,
                identity=f"reference at {truth.loop}",
                ece=protocol.ece,
                on_frame=self.on_frame,
            )
            sound = {
                one.name: (one, evaluation)
                for one, evaluation in zip(running, evaluated, strict=True)
                if isinstance(evaluation, Evaluation)
            }
            supported_shapes = {
                one.name: check_supported_shapes(one, sound[one.name][0], truth, context.frames)
                for one in named
                if one.name in sound
            }
            shown = show(truth, sound, context.dataset, context.frames, samples) if samples else []
        taken = times[len(references) - 1]
        assert isinstance(taken, Latency)
        first = Row(
            references[-1].name, truth.session.backend, truth.contract.precision,
            _bytes(context.spec), own, taken,
        )  # fmt: skip
        evaluations = dict(zip((one.name for one in running), evaluated, strict=True))
        rows = []
        for candidate, one, latency in zip(named, opened, latencies, strict=True):
            evaluation = evaluations.get(candidate.name)
            row = _row(candidate, one, evaluation, latency)
            row = replace(row, supported_shapes=tuple(supported_shapes.get(candidate.name, ())))
            rows.append(replace(row, failures=failures(row, first, limits)))
        return Measured(first, rows, shown)


def ledger_key(context: BenchContext, protocol: Protocol) -> str:
    """What every figure in a ledger depends on, but for the candidates."""
    here = describe_environment(protocol.threads)
    gpu = current_gpu()
    settings = (protocol.ece, here.threads, here.cpu, here.cores, here.packages, str(gpu))
    ours = versions("segdeploy")
    frames = key_of_frames(context.frames, masks=context.labeled is not None)
    labels_key = (context.dataset.classes, context.dataset.ignore_index)
    return json.dumps([context.identity, labels_key, frames, settings, ours])


def _row(
    candidate: Candidate,
    opened: OpenCandidate | None,
    evaluation: Evaluation | Failure | None,
    latency: Latency | Failure,
) -> Row:
    failure = evaluation.reason if isinstance(evaluation, Failure) else None
    if isinstance(latency, Failure):
        failure = latency.reason
    return Row(
        name=candidate.name,
        backend=_backend(candidate),
        precision=opened.precision if opened else "-",
        bytes=_bytes(candidate.spec),
        evaluation=evaluation if isinstance(evaluation, Evaluation) else None,
        latency=latency if isinstance(latency, Latency) else None,
        failure=failure,
        skipped=isinstance(latency, Failure) and latency.is_incompatible,
    )


def _backend(candidate: Candidate) -> str:
    file = candidate.file
    backend = file.manifest.backend if isinstance(file, EngineFile) else candidate.backend
    return f"{backend}, C++" if candidate.program else backend


def _complete(spec: ModelSpec, contract: Contract) -> ModelSpec:
    """Add the size and classes from the data set to a named network, for the worker process."""
    if spec.is_file:
        return spec
    return replace(spec, size=contract.size, num_classes=contract.score_channels)


def _bytes(spec: ModelSpec) -> int | None:
    path = Path(spec.model) if spec.is_file else spec.weights
    return path.stat().st_size if path else None
