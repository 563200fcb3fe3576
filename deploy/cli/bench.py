"""`segdeploy bench`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli.console import megabytes, percent, print_json, print_table, progress, say
from segdeploy.cli.headings import command
from segdeploy.cli.options import (
    Scales,
    data_or_images_option,
    foreign_model,
    json_option,
    limit_option,
    network_options,
    network_spec,
    note_untrained,
    quiet_option,
    seconds_option,
    source_option,
    split_option,
)

if TYPE_CHECKING:
    from segdeploy.benchmark.verdict import Row, Verdict


@command()
@click.argument("candidates", nargs=-1, type=Path)
@click.option(
    "--reference",
    metavar="MODEL",
    help="Network that the candidates were made from: registry name, checkpoint or "
    "package.module:factory.",
)
@data_or_images_option("parity and latency without mIoU", required=False)
@split_option("val")
@limit_option
@source_option
@network_options
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=("onnxruntime",),
    show_default=True,
    metavar="NAME",
    help="Runtime of the .onnx candidates. Repeatable.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    metavar="N",
    help="Intra-op threads of each candidate, which is pinned to as many cores.",
)
@seconds_option
@click.option(
    "--fps",
    type=float,
    metavar="RATE",
    help="Time calls at this frame rate, idle in between, as behind a camera.",
)
@click.option(
    "--scales",
    type=Scales(),
    default=(),
    help="Also compare test-time augmentation at these scales, for example 0.5,1,1.5: one fused "
    "graph, and a loop over one graph.",
)
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="WHAT=N,...",
    help="Measure throughput over batch=1,2,4, threads=1,2 or clients=1,2 (concurrent calls). "
    "Repeatable.",
)
@click.option("--ece", is_flag=True, help="Measure the expected calibration error (ECE).")
@click.option(
    "--max-miou-drop", type=float, metavar="POINTS", help="Fail a candidate that loses more mIoU."
)
@click.option(
    "--min-agreement",
    type=float,
    metavar="SHARE",
    help="Fail a candidate with a lower share of equal labels, 0..1.",
)
@click.option(
    "--max-latency-ms",
    type=float,
    metavar="MS",
    help="Fail a candidate with a higher median latency.",
)
@click.option(
    "--min-speedup",
    type=float,
    metavar="X",
    help="Fail a candidate that is less than X times as fast as the reference.",
)
@click.option("--layers", is_flag=True, help="Compare one frame layer by layer with PyTorch.")
@click.option(
    "--fail-on-skip", is_flag=True, help="Exit with 1 if this machine cannot run a candidate."
)
@click.option(
    "--compare",
    nargs=2,
    type=Path,
    metavar="OLD NEW",
    help="Instead compare two bench.json files; exits with 1 on a regression.",
)
@click.option(
    "--cpp-program",
    type=Path,
    metavar="FILE",
    help="Program that times the .json candidates.  [default: segdeploy-bench on the PATH]",
)
@click.option(
    "--report", type=Path, metavar="DIR", help="Folder for HTML, JSON, Markdown and JUnit reports."
)
@json_option
@quiet_option
@foreign_model
def bench(
    candidates: tuple[Path, ...],
    reference: str | None,
    data: Path | None,
    split: str,
    limit: int | None,
    backends: tuple[str, ...],
    threads: int | None,
    seconds: float,
    fps: float | None,
    scales: tuple[float, ...],
    sweeps: tuple[str, ...],
    ece: bool,
    layers: bool,
    fail_on_skip: bool,
    compare: tuple[Path, Path] | None,
    cpp_program: Path | None,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Compare CANDIDATES with the reference: mIoU, parity and latency.

    CANDIDATES are .onnx files, engines, and .json files that `segdeploy-bench --out` wrote, which
    are timed in C++. Exits with 1 if a candidate fails or exceeds a limit.
    """
    if compare is not None:
        if candidates or reference or data or options["source"]:
            raise click.UsageError("--compare OLD NEW: takes no candidates, --reference or --data")
        return _compare(compare, as_json)
    if not candidates or (reference or options["source"]) is None or data is None:
        raise click.UsageError(
            "give CANDIDATES, --reference and --data, or --compare OLD NEW; --from may replace "
            "--reference"
        )
    import segdeploy
    from segdeploy.benchmark.protocol import Protocol
    from segdeploy.benchmark.report import check_report, write_report
    from segdeploy.benchmark.serialization import to_json
    from segdeploy.benchmark.sweep import Sweep
    from segdeploy.benchmark.verdict import Limits
    from segdeploy.ledger import BENCH
    from segdeploy.models.names import escaped
    from segdeploy.output_lock import output_lock

    names = ("max_miou_drop", "min_agreement", "max_latency_ms", "min_speedup")
    limits = Limits(**{name: options.pop(name) for name in names})
    if report is not None:
        check_report(report)
    spec = network_spec(reference, options)
    note_untrained(spec)
    protocol = Protocol(
        seconds=seconds,
        threads=threads,
        fps=fps,
        layers=layers,
        ece=ece,
        scales=scales,
        sweep=Sweep.of(sweeps),
    )
    with (
        output_lock(report) if report else nullcontext(),
        _kept(report),
        progress("accuracy", quiet) as on_frame,
        progress("latency", quiet) as on_burst,
    ):
        verdict = segdeploy.bench(
            candidates,
            reference=spec,
            data=data,
            split=split,
            limit=limit,
            backends=backends,
            limits=limits,
            protocol=protocol,
            ledger=report / BENCH if report else None,
            cpp_program=cpp_program,
            on_frame=on_frame,
            on_burst=on_burst,
        )
        command = ["segdeploy", *map(escaped, sys.argv[1:])]
        page = write_report(verdict, report, command) if report else None
    if as_json:
        say(to_json(verdict, command))
    else:
        _print(verdict)
        if page:
            say(f"report: {page}")
    skipped = any(row.skipped for row in verdict.rows)
    return int(not verdict.passes or (fail_on_skip and skipped))


@contextmanager
def _kept(report: Path | None) -> Iterator[None]:
    """Tell at Ctrl-C where the results so far are kept."""
    try:
        yield
    except KeyboardInterrupt:
        if report is None:
            raise
        raise KeyboardInterrupt(
            f"completed measurements are kept in {report}; the same command resumes"
        ) from None


def _compare(files: tuple[Path, Path], as_json: bool) -> int:
    from dataclasses import asdict

    from segdeploy.benchmark.comparison import compare_verdicts

    changes = compare_verdicts(*files)
    if as_json:
        print_json([asdict(change) for change in changes])
    elif changes:
        print_table(
            ("candidate", "figure", str(files[0]), str(files[1]), ""),
            [
                (one.candidate, one.figure, _text(one.before), _text(one.after),
                 "worse" if one.worse else "better")
                for one in changes
            ],
            words=True,
        )  # fmt: skip
    else:
        say("no change beyond noise")
    return int(any(change.worse for change in changes))


def _text(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_LONGEST = 60  # characters in a table's cell
_HEAD = (
    "candidate", "runtime", "precision", "mIoU %", "drop (95 %)", "labels equal %",
    "max rel", "median ms", "p99 ms", "speed-up (95 %)", "MB", "verdict",
)  # fmt: skip


def _print(verdict: Verdict) -> None:
    from segdeploy.benchmark.failure import Failure

    print_table(
        _HEAD,
        [_row(row, verdict.reference) for row in verdict.rows],
        f"{verdict.frames} frames of {verdict.dataset.root}/{verdict.split}, "
        f"input {verdict.size[0]}x{verdict.size[1]}",
    )
    several = verdict.test_time_augmentation.rows if verdict.test_time_augmentation else ()
    if verdict.test_time_augmentation:
        scales = ", ".join(f"{scale:g}" for scale in verdict.test_time_augmentation.scales)
        print_table(
            _HEAD,
            [_row(row, several[0]) for row in several],
            f"at scales {scales}; drop and labels "
            "against the reference at the same scales, speed-up against it at one",
        )
    for row in (*verdict.rows, *several):
        for failure in row.failures:
            if len(failure) > _LONGEST:
                say(f"{row.name}: {failure}")
        if row.failure:
            say(f"{row.name}: {'skipped' if row.skipped else 'failed'}: {row.failure}")
        if row.evaluation is not None and row.evaluation.kernels is not None:
            say(
                f"{row.name}: accuracy is that of reference Q/DQ execution; the runtime's own "
                f"kernels give {row.evaluation.kernels:.3%} of these labels"
            )
    _print_costs(verdict)
    for row in verdict.rows:
        if isinstance(row.layers, Failure):
            say(f"{row.name}: {row.layers.reason}")
        elif row.layers is not None:
            print_table(
                ("layer", "node", "max rel beyond rounding"),
                [(one.module, one.node, f"{one.max_rel:.2g}") for one in row.layers.layers],
                f"{row.name}, layer by layer",
            )
    say(f"recommended: {verdict.recommended}" if verdict.recommended else "recommended: none")
    for note in verdict.notes:
        say(f"note: {note}", err=True)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _print_costs(verdict: Verdict) -> None:
    """Print roofline, supported shapes, time of each scale and sweep, as far as measured."""
    from segdeploy.benchmark.serialization import (
        roofline_text,
        scales_text,
        supported_shapes_text,
        sweep_text,
    )

    for row in verdict.rows:
        for line in (roofline_text(row), supported_shapes_text(row)):
            if line:
                say(f"{row.name}: {line}")
    for row in verdict.test_time_augmentation.rows if verdict.test_time_augmentation else ():
        if message := scales_text(row):
            say(f"{row.name}: {message}")
    if verdict.sweep:
        lines = [tuple(map(_shortened, line)) for line in sweep_text(verdict)]
        print_table(("candidate", "at", "median ms", "images/s"), lines, "sweep")


def _row(row: Row, reference: Row) -> tuple[str, ...]:
    from segdeploy.benchmark.serialization import drop_text, speedup_text, status

    evaluation, latency = row.evaluation, row.latency
    agreement = evaluation.agreement if evaluation else None
    max_rel = agreement.max_rel if agreement else None
    return (
        row.name,
        row.backend,
        row.precision,
        percent(evaluation.accuracy.miou if evaluation else None),
        drop_text(row, reference),
        percent(agreement.labels if agreement else None, 3),
        "-" if max_rel is None else f"{max_rel:.2g}",
        f"{latency.median_ms:.2f}" if latency else "-",
        f"{latency.p99_ms:.2f}" if latency else "-",
        speedup_text(row),
        megabytes(row.bytes),
        "reference" if row is reference else _shortened(status(row)),
    )
