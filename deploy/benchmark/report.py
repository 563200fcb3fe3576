"""Write the verdict as a self-contained HTML page, with JSON, Markdown and JUnit files."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from segdeploy.benchmark.agreement import BOUNDARY, MARGINS
from segdeploy.benchmark.overlays import contact_sheet, layers_of
from segdeploy.benchmark.plots import latency_bars, layer_curves, pareto_points
from segdeploy.benchmark.serialization import (
    drop_text,
    scales_text,
    speedup_text,
    status,
    sweep_text,
    to_json,
    to_junit,
    to_markdown,
)
from segdeploy.benchmark.verdict import Verdict
from segdeploy.files import check_folder, write_atomically
from segdeploy.ledger import BENCH
from segdeploy.models.files import check_replaceable
from segdeploy.templates import render

_FILES = ("index.html", "bench.json", "bench.md", "junit.xml", "samples.jpg", BENCH)


def check_report(folder: Path) -> None:
    """Refuse a report folder that cannot be written, or that has a file that cannot be replaced.

    Raises:
        InputError: with the path of the folder or file.
    """
    check_folder(folder)
    for name in _FILES:
        check_replaceable(folder / name)


def write_report(verdict: Verdict, folder: Path, command: Sequence[str]) -> Path:
    """Write the report into `folder`, and return the path of the HTML page.

    The files are `index.html`, `bench.json`, `bench.md`, `junit.xml` and `samples.jpg`.
    """
    page = render(
        "bench.html.j2",
        filters={"percent": _percent},
        verdict=verdict,
        rows=verdict.rows,
        drop_text=drop_text,
        speedup_text=speedup_text,
        scales_text=scales_text,
        status=status,
        sweep=sweep_text(verdict),
        pareto_front=pareto_points(verdict),
        latencies=latency_bars(verdict),
        layers=layer_curves(verdict),
        margins=_margin_names(),
        boundary=BOUNDARY,
        samples=[layers_of(sample, verdict) for sample in verdict.samples],
        classes=list(zip(verdict.dataset.classes, verdict.dataset.palette, strict=True)),
        command=shlex.join(command),
    )
    check_folder(folder)
    folder.mkdir(exist_ok=True)
    index = folder / "index.html"
    write_atomically(index, page.encode())
    write_atomically(folder / "bench.json", to_json(verdict, command).encode() + b"\n")
    write_atomically(folder / "bench.md", to_markdown(verdict).encode())
    write_atomically(folder / "junit.xml", to_junit(verdict).encode())
    write_atomically(folder / "samples.jpg", contact_sheet(verdict))
    (folder / BENCH).unlink(missing_ok=True)  # the report now has its contents
    return index


def _percent(share: float | None, digits: int = 2) -> str:
    return "undefined" if share is None else f"{100 * share:.{digits}f}"


def _margin_names() -> list[str]:
    ends = ["0", *(f"{end:g}" for end in MARGINS[:-1])]
    names = [f"{low} to {high}" for low, high in pairwise(ends)]
    return [*names, f"above {ends[-1]}"]
