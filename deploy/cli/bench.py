"""`segdeploy bench`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli.console import megabytes, percent, print_json, print_table, progress, say
from segdeploy.cli.options import (
    Scales,
    foreign_model,
    json_option,
    limit_option,
    network_options,
    network_spec,
    note_untrained,
    quiet_option,
    seconds_option,
    split_option,
)

if TYPE_CHECKING:
    from segdeploy.benchmark.verdict import Row, Verdict


@click.command()
@click.argument("candidates", nargs=-1, type=Path)
@click.option("--reference", help="The network that they came from: MODEL.")
@click.option(
    "--data",
    type=Path,
    help="Data set: a folder with dataset.json, voc:FOLDER, cityscapes:FOLDER; or pictures alone.",
)
@split_option("val")
@limit_option
@network_options
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=("onnxruntime",),
    show_default=True,
    help="Runtime of the .onnx candidates; may be repeated.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads inside an operator, and cores.")
@seconds_option
@click.option("--fps", type=float, help="Call at this pace, as behind a camera, idle in between.")
@click.option(
    "--scales",
    type=Scales(),
    default=(),
    help="Compare several scales as well, as 0.5,1,1.5: a loop, and one graph that fuses them.",
)
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="WHAT=N,...",
    help="Vary batch=1,2,4, threads=1,2 or clients=1,2 (calls at the same time); may be repeated.",
)
@click.option("--ece", is_flag=True, help="Expected calibration error of each network's scores.")
@click.option("--max-miou-drop", type=float, metavar="POINTS", help="Fail what loses more mIoU.")
@click.option("--min-agreement", type=float, metavar="SHARE", help="Fail what has fewer labels.")
@click.option("--max-latency-ms", type=float, metavar="MS", help="Fail a median above that.")
@click.option("--min-speedup", type=float, metavar="X", help="Fail what is not X times as fast.")
@click.option("--layers", is_flag=True, help="Follow a frame layer by layer: where errors enter.")
@click.option("--fail-on-skip", is_flag=True, help="Exit with 1 if a candidate cannot run here.")
@click.option(
    "--compare",
    nargs=2,
    type=Path,
    metavar="OLD NEW",
    help="Instead: compare two bench.json files, and exit with 1 if something got worse.",
)
@click.option(
    "--cpp-program",
    type=Path,
    help="segdeploy-bench, which times the .json candidates; else the one on the PATH.",
)
@click.option("--report", type=Path, help="Folder for the page, JSON, Markdown and JUnit.")
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
    """Compare CANDIDATES (.onnx files, engines) with the reference: accuracy, parity, latency.

    What `segdeploy-bench --out FILE.json` wrote is a candidate that runs in C++.

    Exits with 1 if one fails, or does not keep a limit.
    """
    if compare is not None:
        if candidates or reference or data:
            raise click.UsageError("--compare OLD NEW: compares two files, and takes nothing else")
        return _compare(compare, as_json)
    if not candidates or reference is None or data is None:
        raise click.UsageError("give CANDIDATES, --reference and --data, or --compare OLD NEW")
    import segdeploy
    from segdeploy.benchmark.journal import NAME as JOURNAL
    from segdeploy.benchmark.protocol import Protocol
    from segdeploy.benchmark.report import check_report, write_report
    from segdeploy.benchmark.serialization import to_json
    from segdeploy.benchmark.sweep import Sweep
    from segdeploy.benchmark.verdict import Limits
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
            journal=report / JOURNAL if report else None,
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
    """Say at Ctrl-C what stays."""
    try:
        yield
    except KeyboardInterrupt:
        if report is None:
            raise
        raise KeyboardInterrupt(
            f"what was found is kept in {report}, and the same command goes on from there"
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
                (one.candidate, one.figure, _told(one.before), _told(one.after),
                 "worse" if one.worse else "better")
                for one in changes
            ],
            words=True,
        )  # fmt: skip
    else:
        say("nothing changed beyond noise")
    return int(any(change.worse for change in changes))


def _told(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_LONGEST = 60  # characters in a table's cell
_HEAD = (
    "candidate", "runtime", "precision", "mIoU %", "drop (95 %)", "labels equal %",
    "max rel", "median ms", "p99 ms", "speed-up (95 %)", "MB", "verdict",
)  # fmt: skip


def _print(verdict: Verdict) -> None:
    print_table(
        _HEAD,
        [_row(row, verdict.reference) for row in verdict.rows],
        f"{verdict.frames} frames of {verdict.dataset.root}/{verdict.split}, "
        f"input {verdict.size[0]}x{verdict.size[1]}",
    )
    several = verdict.modes.rows if verdict.modes else ()
    if verdict.modes:
        print_table(
            _HEAD,
            [_row(row, several[0]) for row in several],
            f"at scales {', '.join(f'{scale:g}' for scale in verdict.modes.scales)}; drop and "
            "labels against the reference at the same scales, speed-up against it at one",
        )
    for row in (*verdict.rows, *several):
        for complaint in row.complaints:
            if len(complaint) > _LONGEST:
                say(f"{row.name}: {complaint}")
        if row.failure:
            say(f"{row.name}: {'skipped' if row.skipped else 'failed'}: {row.failure}")
        if row.judgement is not None and row.judgement.kernels is not None:
            say(
                f"{row.name}: accuracy is that of the graph executed literally, as TensorRT "
                f"rounds; this machine's own kernels give {row.judgement.kernels:.3%} of its labels"
            )
    _print_costs(verdict)
    for row in verdict.rows:
        if isinstance(row.layers, str):
            say(f"{row.name}: {row.layers}")
        elif row.layers is not None:
            print_table(
                ("layer", "node", "off by, beyond rounding, of its range"),
                [(one.module, one.node, f"{one.max_rel:.2g}") for one in row.layers.layers],
                f"{row.name}, layer by layer",
            )
    say(f"recommended: {verdict.recommended}" if verdict.recommended else "recommended: none")
    for note in verdict.notes:
        say(f"note: {note}", err=True)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _print_costs(verdict: Verdict) -> None:
    """The roof, the scales' shares, and the sweep, where there are any."""
    from segdeploy.benchmark.serialization import (
        told_claims,
        told_roofline,
        told_scales,
        told_sweep,
    )

    for row in verdict.rows:
        for line in (told_roofline(row), told_claims(row)):
            if line:
                say(f"{row.name}: {line}")
    for row in verdict.modes.rows if verdict.modes else ():
        if told := told_scales(row):
            say(f"{row.name}: {told}")
    if verdict.sweep:
        lines = [tuple(map(_shortened, line)) for line in told_sweep(verdict)]
        print_table(("candidate", "at", "median ms", "pictures/s"), lines, "sweep")


def _row(row: Row, reference: Row) -> tuple[str, ...]:
    from segdeploy.benchmark.serialization import outcome, told_drop, told_speedup

    judgement, latency = row.judgement, row.latency
    fidelity = judgement.fidelity if judgement else None
    max_rel = fidelity.max_rel if fidelity else None
    return (
        row.name,
        row.backend,
        row.precision,
        percent(judgement.accuracy.miou if judgement else None),
        told_drop(row, reference),
        percent(fidelity.agreement if fidelity else None, 3),
        "-" if max_rel is None else f"{max_rel:.2g}",
        f"{latency.median_ms:.2f}" if latency else "-",
        f"{latency.p99_ms:.2f}" if latency else "-",
        told_speedup(row),
        megabytes(row.bytes),
        "reference" if row is reference else _shortened(outcome(row)),
    )
