"""The verdict as JSON, as a self-contained HTML page and as one picture."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segdeploy.benchmark.accuracy import Sample
from segdeploy.benchmark.run import Row, Verdict, miou_drop
from segdeploy.errors import InputError
from segdeploy.files import write_atomically
from segdeploy.runtime.postprocess import overlay

SCHEMA = 1
_WIDEST = 480  # pixels of a panel
_ROWS, _TITLE = 3, 20  # of the one picture


def to_json(verdict: Verdict) -> str:
    """Serialise everything but the pictures."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "dataset": str(verdict.dataset.root),
            "split": verdict.split,
            "frames": verdict.frames,
            "size": list(verdict.size),
            "environment": asdict(verdict.environment),
            "rows": [_row(row, verdict.reference) for row in verdict.rows],
        },
        indent=2,
    )


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
    """Write `index.html`, `bench.json` and `samples.jpg` into `folder`; returns the page's path."""
    import jinja2

    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    pages = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    pages.filters["percent"] = _percent
    page = pages.from_string(template).render(
        verdict=verdict,
        rows=[_row(row, verdict.reference) for row in verdict.rows],
        samples=[_sample(sample, verdict) for sample in verdict.samples],
        classes=list(zip(verdict.dataset.classes, verdict.dataset.palette, strict=True)),
        command=" ".join(command),
    )
    check_folder(folder)
    folder.mkdir(exist_ok=True)
    index = folder / "index.html"
    write_atomically(index, page.encode())
    write_atomically(folder / "bench.json", to_json(verdict).encode() + b"\n")
    write_atomically(folder / "samples.jpg", _picture(verdict))
    return index


def _percent(share: float | None, digits: int) -> str:
    return "undefined" if share is None else f"{100 * share:.{digits}f}"


def _row(row: Row, reference: Row) -> dict[str, Any]:
    accuracy = row.judgement.accuracy
    fidelity = row.judgement.fidelity
    return {
        "name": row.name,
        "backend": row.backend,
        "precision": row.precision,
        "bytes": row.bytes,
        "miou": accuracy.miou,
        "miou_drop": miou_drop(reference, row),
        "pixel_accuracy": accuracy.pixel_accuracy,
        "iou": accuracy.iou,
        "agreement": fidelity.agreement if fidelity else None,
        "max_abs": fidelity.max_abs if fidelity else None,
        "max_rel": fidelity.max_rel if fidelity else None,
        "kernel_agreement": row.judgement.kernels,
        "latency": {
            **asdict(row.latency),
            "speedup": reference.latency.median_ms / row.latency.median_ms,
        },
    }


def _panels(sample: Sample, verdict: Verdict) -> list[tuple[str, NDArray[np.uint8]]]:
    palette = verdict.dataset.palette
    panels = [("image", sample.image), ("truth", overlay(sample.image, sample.truth, palette))]
    panels += [
        (name, overlay(sample.image, labels, palette)) for name, labels in sample.labels.items()
    ]
    return panels


def _sample(sample: Sample, verdict: Verdict) -> dict[str, Any]:
    panels = [
        {"title": title, "source": _inlined(picture)} for title, picture in _panels(sample, verdict)
    ]
    return {"name": sample.name, "panels": panels}


def _fitted(picture: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(picture)
    image.thumbnail((_WIDEST, _WIDEST))
    return image


def _inlined(picture: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    _fitted(picture).save(file, "JPEG", quality=88)
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
