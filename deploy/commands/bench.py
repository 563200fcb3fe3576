"""`segdeploy bench`: compare accuracy, agreement and latency of candidates, and recommend one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segdeploy.benchmark.candidates import name_candidates
from segdeploy.benchmark.environment import describe_environment
from segdeploy.benchmark.machine import Watch
from segdeploy.benchmark.measurement import Measuring, Progress, ledger_key, open_context
from segdeploy.benchmark.notes import notes_of
from segdeploy.benchmark.peak_performance import Peak, higher, measured_peak, stated_peak
from segdeploy.benchmark.protocol import Protocol
from segdeploy.benchmark.roofline import roofline, work_of, work_of_network
from segdeploy.benchmark.test_time_augmentation import split_by_scales
from segdeploy.benchmark.verdict import Limits, Row, Verdict, pareto_front, ranked, recommended
from segdeploy.device import current_gpu
from segdeploy.image_folder import ImageFolder
from segdeploy.ledger import Ledger
from segdeploy.model_spec import ModelSpec
from segdeploy.runtime.torch_session import TorchSession


def bench(
    candidates: Sequence[Path | str],
    *,
    reference: str | Path | ModelSpec,
    data: Path | str,
    split: str = "val",
    limit: int | None = None,
    backends: Sequence[str] = ("onnxruntime",),
    limits: Limits | None = None,
    protocol: Protocol | None = None,
    ledger: Path | None = None,
    cpp_program: Path | None = None,
    on_frame: Progress = lambda done, total: None,
    on_burst: Progress = lambda done, total: None,
) -> Verdict:
    """Compare exported files and engines with the network that they were made from.

    A quantized graph is evaluated by reference Q/DQ execution, which computes what TensorRT
    computes. Its latency is measured with this machine's kernels, whose agreement with the
    reference execution is reported. Latency is measured in interleaved bursts. `data` may be a
    folder of images without masks; the reference's labels then stand for the masks. A candidate
    that fails, or that was built for another GPU, is reported, and the bench continues with the
    others.
    `ledger` is a file of intermediate results, from which an interrupted bench resumes. It is kept
    until the report is written. `cpp_program` is the program that times C++ candidates; the default
    is the installed `segdeploy-bench`.

    Raises:
        InputError, ModelInputError: for files that cannot be used, or whose contract differs.
    """
    limits, protocol = limits or Limits(), protocol or Protocol()
    limits.check()
    protocol.check()
    named = name_candidates([Path(path) for path in candidates], backends, cpp_program)
    single, fused = split_by_scales(named, protocol.scales)
    peak = measured_peak(protocol.threads)
    watch = Watch()
    with open_context(ModelSpec.of(reference), Path(data), split, limit) as context:
        held = Ledger(ledger, ledger_key(context, protocol) if ledger else "")
        resumed = len(held)
        work = Measuring(context, protocol, limits, held, _export, on_frame, watch.during(on_burst))
        work.check(single, fused)
        found = work.at_one_scale(single)
        augmented, notes = None, list[str]()
        if protocol.scales:
            augmented, notes = work.at_scales(single, fused, backends)
        points = work.sweep([
            one for one, row in zip(single, found.rows, strict=True) if row.latency is not None
        ])  # fmt: skip
        work_done = [
            work_of_network(context.truth.session, context.truth.contract.size)
            if isinstance(context.truth.session, TorchSession)
            else work_of(context.reference.exported),
            *(work_of(one.exported) for one in single),
        ]
    peak = higher(peak, measured_peak(protocol.threads))
    first, *rows = [
        replace(row, roofline=roofline(done, row.latency.median_ms, _roof(row, peak)))
        if row.latency
        else row
        for row, done in zip([found.reference, *found.rows], work_done, strict=True)
    ]
    has_masks, noted = True, list[str]()
    if isinstance(context.dataset, ImageFolder):
        has_masks = False
        noted.append(
            "the images have no masks: mIoU is that between the labels of the reference and of a "
            "candidate"
        )
    elif found.reference.evaluation is None or found.reference.evaluation.accuracy.miou is None:
        has_masks = False
        noted.append("the frames have no masks: only parity and latency, no mIoU")
    if assumptions := context.truth.contract.assumptions:
        noted.append(f"nobody stated how the images are prepared; assumed: {assumptions}")
    if resumed:
        noted.append("resumed an interrupted bench; some measurements are from the earlier run")
    noted += [*watch.warnings(), *notes_of(first, rows), *notes]
    return Verdict(
        rows=(first, *ranked(rows)),
        samples=tuple(found.samples),
        dataset=context.dataset,
        split=context.split,
        frames=len(context.frames),
        size=context.truth.contract.size,
        environment=replace(describe_environment(protocol.threads), gpu=watch.gpu),
        limits=limits,
        has_masks=has_masks,
        recommended=recommended(rows) or (recommended(augmented.rows[1:]) if augmented else None),
        pareto_front=pareto_front((first, *rows)),
        notes=tuple(noted),
        test_time_augmentation=augmented,
        sweep=tuple(points),
        peak=peak,
    )


def _roof(row: Row, measured: Peak) -> Peak | None:
    """Return the measured peak of the CPU or the data-sheet peak of the GPU; None if unknown."""
    if row.backend.split(",")[0] in ("torch", "onnxruntime", "openvino"):
        return measured
    gpu = current_gpu()
    return stated_peak(gpu.name) if gpu else None


def _export(*arguments: Any, **options: Any) -> object:
    """`export`, imported when it is called: it needs PyTorch, which bench may lack."""
    from segdeploy.commands.export import export

    return export(*arguments, **options)
