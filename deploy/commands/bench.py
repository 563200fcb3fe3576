"""`segdeploy bench`: is it still the same network, what does it cost, and which one to ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from segdeploy.benchmark.candidates import name_candidates
from segdeploy.benchmark.environment import describe_environment
from segdeploy.benchmark.journal import Journal
from segdeploy.benchmark.machine import Watch
from segdeploy.benchmark.measurement import Measuring, Progress, journal_key, open_scene
from segdeploy.benchmark.notes import notes_of
from segdeploy.benchmark.peak_performance import Peak, higher, measured_peak, stated_peak
from segdeploy.benchmark.protocol import Protocol
from segdeploy.benchmark.roofline import roofline, work_of, work_of_network
from segdeploy.benchmark.test_time_augmentation import split_by_scales
from segdeploy.benchmark.verdict import Limits, Row, Verdict, front, ranked, recommended
from segdeploy.commands.export import export
from segdeploy.device import current_gpu
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
    journal: Path | None = None,
    cpp_program: Path | None = None,
    on_frame: Progress = lambda done, total: None,
    on_burst: Progress = lambda done, total: None,
) -> Verdict:
    """Compare exported files and engines with the network that they came from.

    A quantised graph is judged by executing it literally, which is what TensorRT computes; its
    latency is that of this machine's own kernels, and how far those agree is said beside it.
    Latency is measured in interleaved bursts. `data` may be a folder of pictures without masks:
    then there is parity and latency alone. A candidate that fails, or is for another GPU, is told,
    and the others go on. `journal` is a file of what was found so far, from which an interrupted
    bench goes on; it stays until the report is written. `cpp_program` times the candidates in C++,
    else the installed `segdeploy-bench` does.

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
    with open_scene(ModelSpec.of(reference), Path(data), split, limit) as scene:
        held = Journal(journal, journal_key(scene, protocol) if journal else "")
        resumed = held.resumed
        work = Measuring(scene, protocol, limits, held, export, on_frame, watch.during(on_burst))
        work.check(single, fused)
        found = work.at_one_scale(single)
        modes, notes = None, list[str]()
        if protocol.scales:
            modes, notes = work.at_scales(single, fused, backends)
        points = work.sweep([
            one for one, row in zip(single, found.rows, strict=True) if row.latency is not None
        ])  # fmt: skip
        work_done = [
            work_of_network(scene.truth.session, scene.truth.contract.size)
            if isinstance(scene.truth.session, TorchSession)
            else work_of(Path(scene.spec.model)),
            *(work_of(Path(one.spec.model)) for one in single),
        ]
    peak = higher(peak, measured_peak(protocol.threads))
    first, *rows = [
        replace(row, roofline=roofline(done, row.latency.median_ms, _roof(row, peak)))
        if row.latency
        else row
        for row, done in zip([found.reference, *found.rows], work_done, strict=True)
    ]
    has_masks = found.reference.judgement is not None and (
        found.reference.judgement.accuracy.miou is not None
    )
    told = [] if has_masks else ["the frames have no masks: no mIoU, parity and latency alone"]
    if resumed:
        told.append("this bench goes on with an interrupted one; some of it is from before")
    told += [*watch.doubts(), *notes_of(first, rows), *notes]
    return Verdict(
        rows=(first, *ranked(rows)),
        samples=tuple(found.samples),
        dataset=scene.dataset,
        split=scene.split,
        frames=len(scene.frames),
        size=scene.truth.contract.size,
        environment=replace(describe_environment(protocol.threads), gpu=watch.gpu),
        limits=limits,
        has_masks=has_masks,
        recommended=recommended(rows) or (recommended(modes.rows[1:]) if modes else None),
        front=front((first, *rows)),
        notes=tuple(told),
        modes=modes,
        sweep=tuple(points),
        peak=peak,
    )


def _roof(row: Row, measured: Peak) -> Peak | None:
    """The CPU's, as it was measured, or that which the GPU's maker states."""
    if row.backend.split(",")[0] in ("torch", "onnxruntime", "openvino"):
        return measured
    gpu = current_gpu()
    return stated_peak(gpu.name) if gpu else None
