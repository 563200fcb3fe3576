"""The verdict as a page: one file, which opens from disk and asks for nothing."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segdeploy.benchmark.accuracy import Sample
from segdeploy.benchmark.fidelity import BOUNDARY, MARGINS
from segdeploy.benchmark.layers import LayerReport
from segdeploy.benchmark.record import (
    outcome,
    to_json,
    to_junit,
    to_markdown,
    told_drop,
    told_speedup,
)
from segdeploy.benchmark.verdict import Verdict
from segdeploy.errors import InputError
from segdeploy.files import write_atomically
from segdeploy.runtime.postprocess import overlay

_WIDEST = 480  # pixels of a panel
_ROWS, _TITLE = 3, 20  # of the one picture
_DIFFERS = (255, 0, 80)
_LEAST_ERROR = 1e-8  # at the foot of the plot


def check_folder(folder: Path) -> None:
    """Refuse a report folder that could not be made, before the long measurement.

    Raises:
        InputError: if its parent is missing, or a file stands in its place.
    """
    if not folder.parent.is_dir():
        raise InputError(f"{folder}: the folder {folder.parent} does not exist; make it first")
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise InputError(f"{folder}: cannot be written to")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder for the report")


def write_report(verdict: Verdict, folder: Path, command: Sequence[str]) -> Path:
    """Write the page and its siblings into `folder`; returns the page's path.

    They are `index.html`, `bench.json`, `bench.md`, `junit.xml` and `samples.jpg`.
    """
    import jinja2

    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    pages = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    pages.filters["percent"] = _percent
    page = pages.from_string(template).render(
        verdict=verdict,
        rows=verdict.rows,
        drops={row.name: told_drop(row, verdict.reference) for row in verdict.rows},
        speedups={row.name: told_speedup(row) for row in verdict.rows},
        outcomes={row.name: outcome(row) for row in verdict.rows[1:]},
        front=_front(verdict),
        latencies=_latencies(verdict),
        layers=_layers(verdict),
        margins=_margin_names(),
        boundary=BOUNDARY,
        samples=[_sample(sample, verdict) for sample in verdict.samples],
        classes=list(zip(verdict.dataset.classes, verdict.dataset.palette, strict=True)),
        command=" ".join(command),
    )
    check_folder(folder)
    folder.mkdir(exist_ok=True)
    index = folder / "index.html"
    write_atomically(index, page.encode())
    write_atomically(folder / "bench.json", to_json(verdict, command).encode() + b"\n")
    write_atomically(folder / "bench.md", to_markdown(verdict).encode())
    write_atomically(folder / "junit.xml", to_junit(verdict).encode())
    write_atomically(folder / "samples.jpg", _picture(verdict))
    return index


def _percent(share: float | None, digits: int = 2) -> str:
    return "undefined" if share is None else f"{100 * share:.{digits}f}"


def _margin_names() -> list[str]:
    ends = ["0", *(f"{end:g}" for end in MARGINS[:-1])]
    names = [f"{low} to {high}" for low, high in pairwise(ends)]
    return [*names, f"above {ends[-1]}"]


def _front(verdict: Verdict) -> list[dict[str, Any]]:
    """Points of the plot: latency to the right, accuracy upwards, both 0..1."""
    points = []
    for row in verdict.rows:
        if row.latency is None or row.judgement is None:
            continue
        fidelity = row.judgement.fidelity
        accuracy = row.judgement.accuracy.miou
        if accuracy is None:
            accuracy = fidelity.agreement if fidelity else 1.0
        points.append((row.name, row.latency.median_ms, accuracy))
    times, shares = [point[1] for point in points], [point[2] for point in points]

    def place(value: float, values: Sequence[float]) -> float:
        low, high = min(values), max(values)
        return (value - low) / (high - low) if high > low else 0.5

    return [
        {
            "name": name,
            "ms": time,
            "share": share,
            "x": place(time, times),
            "y": place(share, shares),
            "on_front": name in verdict.front,
        }
        for name, time, share in points
    ]


def _latencies(verdict: Verdict) -> list[dict[str, Any]]:
    """Bars on one logarithmic scale: median to p99, and the rounds' medians."""
    timed = [(row, row.latency) for row in verdict.rows if row.latency is not None]
    low = min(min(one.round_medians_ms) for _, one in timed) * 0.8
    high = max(one.p99_ms for _, one in timed) * 1.2

    def place(ms: float) -> float:
        return math.log(ms / low) / math.log(high / low)

    return [
        {
            "row": row,
            "median": place(one.median_ms),
            "p90": place(one.p90_ms),
            "p99": place(one.p99_ms),
            "rounds": [place(ms) for ms in one.round_medians_ms],
        }
        for row, one in timed
    ]


def _layers(verdict: Verdict) -> list[dict[str, Any]]:
    """A curve for each candidate that was followed: error of a layer's range, logarithmic."""
    curves = []
    for row in verdict.rows:
        if not isinstance(row.layers, LayerReport) or not row.layers.layers:
            continue
        errors = [min(1.0, max(_LEAST_ERROR, one.max_rel)) for one in row.layers.layers]
        heights = [1 - math.log10(error) / math.log10(_LEAST_ERROR) for error in errors]
        step = 1 / max(1, len(heights) - 1)
        points = " ".join(f"{60 + 560 * i * step:.1f},{190 - 170 * y:.1f}"
                          for i, y in enumerate(heights))  # fmt: skip
        curves.append({"row": row, "points": points, "enters": row.layers.enters})
    return curves


def _sample(sample: Sample, verdict: Verdict) -> dict[str, Any]:
    """The picture once, and what lies over it as label maps of few colours."""
    palette = verdict.dataset.palette
    reference = sample.labels["reference"]
    layers = [] if sample.truth is None else [("truth", _label_map(sample.truth, palette))]
    for name, labels in sample.labels.items():
        layers.append((name, _label_map(labels, palette)))
        if name != "reference":
            differs = (labels != reference).astype(np.uint8)
            layers.append((f"{name}: difference", _label_map(1 - differs, (_DIFFERS,))))
    return {"name": sample.name, "image": _inlined(sample.image), "layers": layers}


def _label_map(labels: NDArray[np.uint8], palette: Sequence[tuple[int, int, int]]) -> str:
    """A PNG with a palette; ids outside it are transparent."""
    image = Image.fromarray(labels).convert("P")
    height, width = labels.shape
    scale = min(1.0, _WIDEST / max(height, width))
    image = image.resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.NEAREST
    )
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    image.putpalette(colours.tobytes())
    transparency = bytes(255 if index < len(palette) else 0 for index in range(256))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=transparency)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _fitted(picture: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(picture)
    image.thumbnail((_WIDEST, _WIDEST))
    return image


def _inlined(picture: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    _fitted(picture).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _picture(verdict: Verdict) -> bytes:
    """Samples as rows, panels as titled columns, in one JPEG."""
    rows = [_panels(sample, verdict) for sample in verdict.samples[:_ROWS]]
    width, height = _fitted(rows[0][0][1]).size
    sheet = Image.new("RGB", (width * len(rows[0]), _TITLE + height * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for top, panels in enumerate(rows):
        for left, (title, picture) in enumerate(panels):
            if top == 0:
                pen.text((left * width + 4, 2), title, fill="black", font_size=_TITLE - 6)
            panel = _fitted(picture).resize((width, height))
            sheet.paste(panel, (left * width, _TITLE + top * height))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=88)
    return file.getvalue()


def _panels(sample: Sample, verdict: Verdict) -> list[tuple[str, NDArray[np.uint8]]]:
    palette = verdict.dataset.palette
    panels = [("image", sample.image)]
    if sample.truth is not None:
        panels.append(("truth", overlay(sample.image, sample.truth, palette)))
    panels += [
        (name, overlay(sample.image, labels, palette)) for name, labels in sample.labels.items()
    ]
    return panels
