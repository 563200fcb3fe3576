"""`segdeploy bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segdeploy.cli.console import megabytes, percent, print_table, progress
from segdeploy.cli.options import (
    data_option,
    json_option,
    limit_option,
    network_options,
    network_spec,
    note_untrained,
    quiet_option,
    split_option,
)

if TYPE_CHECKING:
    from segdeploy.benchmark.run import Row, Verdict


@click.command()
@click.argument("candidates", nargs=-1, required=True, type=Path)
@click.option("--reference", required=True, help="The network that they came from: MODEL.")
@data_option
@split_option("val")
@limit_option
@network_options
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=("onnxruntime",),
    show_default=True,
    help="Runtime of the candidates; may be repeated.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads inside an operator.")
@click.option("--report", type=Path, help="Folder for index.html, bench.json and samples.jpg.")
@json_option
@quiet_option
def bench(
    candidates: tuple[Path, ...],
    reference: str,
    data: Path,
    split: str,
    limit: int | None,
    backends: tuple[str, ...],
    threads: int | None,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Compare CANDIDATES (.onnx files) with the reference: accuracy, parity and latency."""
    import segdeploy
    from segdeploy.benchmark.report import check_folder, to_json, write_report

    if report is not None:
        check_folder(report)
    spec = network_spec(reference, options)
    note_untrained(spec)
    with (
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
            threads=threads,
            on_frame=on_frame,
            on_burst=on_burst,
        )
    page = write_report(verdict, report, ["segdeploy", *sys.argv[1:]]) if report else None
    if as_json:
        click.echo(to_json(verdict))
        return
    _print(verdict)
    if page:
        click.echo(f"report: {page}")


def _print(verdict: Verdict) -> None:
    print_table(
        (
            "candidate", "runtime", "precision", "mIoU %", "drop", "labels equal %",
            "max abs", "max rel", "median ms", "p90 ms", "speed-up", "MB",
        ),
        [_row(row, verdict.reference) for row in verdict.rows],
        f"{verdict.frames} frames of {verdict.dataset.root}/{verdict.split}, "
        f"input {verdict.size[0]}x{verdict.size[1]}",
    )  # fmt: skip
    for row in verdict.rows:
        if row.judgement.kernels is not None:
            click.echo(
                f"{row.name}: accuracy is that of the graph executed literally, as TensorRT "
                f"rounds; this CPU's own kernels give {row.judgement.kernels:.3%} of its labels"
            )


def _row(row: Row, reference: Row) -> tuple[str, ...]:
    from segdeploy.benchmark.run import miou_drop

    accuracy, fidelity, latency = row.judgement.accuracy, row.judgement.fidelity, row.latency
    compared = ("-", "-", "-", "-")
    if fidelity is not None:
        compared = (
            percent(miou_drop(reference, row)),
            percent(fidelity.agreement, 3),
            "-" if fidelity.max_abs is None else f"{fidelity.max_abs:.2g}",
            "-" if fidelity.max_rel is None else f"{fidelity.max_rel:.2g}",
        )
    return (
        row.name,
        row.backend,
        row.precision,
        percent(accuracy.miou),
        *compared,
        f"{latency.median_ms:.2f}",
        f"{latency.p90_ms:.2f}",
        f"{reference.latency.median_ms / latency.median_ms:.2f}x",
        megabytes(row.bytes),
    )
