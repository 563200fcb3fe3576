"""The verdict as a page: one file, which opens from disk and asks for nothing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from segdeploy.benchmark.agreement import BOUNDARY, MARGINS
from segdeploy.benchmark.journal import NAME as JOURNAL
from segdeploy.benchmark.overlays import contact_sheet, layers_of
from segdeploy.benchmark.plots import front_points, latency_bars, layer_curves
from segdeploy.benchmark.serialization import (
    outcome,
    to_json,
    to_junit,
    to_markdown,
    told_drop,
    told_scales,
    told_speedup,
    told_sweep,
)
from segdeploy.benchmark.verdict import Verdict
from segdeploy.files import check_folder, write_atomically
from segdeploy.models.files import check_replaceable
from segdeploy.models.names import shown

_FILES = ("index.html", "bench.json", "bench.md", "junit.xml", "samples.jpg", JOURNAL)


def check_report(folder: Path) -> None:
    """Refuse a folder, or a file in it, that the report could not be written to.

    Raises:
        InputError: naming it.
    """
    check_folder(folder)
    for name in _FILES:
        check_replaceable(folder / name)


def write_report(verdict: Verdict, folder: Path, command: Sequence[str]) -> Path:
    """Write the page and its siblings into `folder`; returns the page's path.

    They are `index.html`, `bench.json`, `bench.md`, `junit.xml` and `samples.jpg`.
    """
    import jinja2

    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    pages = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=shown)
    pages.filters["percent"] = _percent
    page = pages.from_string(template).render(
        verdict=verdict,
        rows=verdict.rows,
        told_drop=told_drop,
        told_speedup=told_speedup,
        told_scales=told_scales,
        outcome=outcome,
        sweep=told_sweep(verdict),
        front=front_points(verdict),
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
    (folder / JOURNAL).unlink(missing_ok=True)  # what it kept is in the report now
    return index


def _percent(share: float | None, digits: int = 2) -> str:
    return "undefined" if share is None else f"{100 * share:.{digits}f}"


def _margin_names() -> list[str]:
    ends = ["0", *(f"{end:g}" for end in MARGINS[:-1])]
    names = [f"{low} to {high}" for low, high in pairwise(ends)]
    return [*names, f"above {ends[-1]}"]
