"""Sample frames with label overlays, as inline images of the report."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segdeploy.benchmark.accuracy import Sample
from segdeploy.benchmark.verdict import Verdict
from segdeploy.runtime.postprocess import label_colors, overlay

_WIDEST = 480  # pixels of a panel's longer side
_ROWS, _TITLE = 3, 20  # rows of the contact sheet, and its title height in pixels
_DIFFERS = (255, 0, 80)


def layers_of(sample: Sample, verdict: Verdict) -> dict[str, Any]:
    """Return one sample for the template: the image, its label overlays and its error markers."""
    colors = _colors(verdict)
    reference = sample.labels["reference"]
    layers = [] if sample.truth is None else [("truth", _label_map(sample.truth, colors))]
    for name, labels in sample.labels.items():
        layers.append((name, _label_map(labels, colors)))
        if name != "reference":
            differs = (labels != reference).astype(np.uint8)
            layers.append(
                (
                    f"{name}: difference",
                    _label_map(1 - differs, label_colors((_DIFFERS,), bit_planes=False)),
                )
            )
    height, width = sample.image.shape[:2]
    marks = {
        name: (100 * (pixel[1] + 0.5) / width, 100 * (pixel[0] + 0.5) / height)
        for name, pixel in sample.worst_of.items()
        if pixel is not None
    }
    return {
        "name": sample.name,
        "image": _inlined(sample.image),
        "layers": layers,
        "worst_of": list(sample.worst_of),
        "marks": marks,
    }


def _colors(verdict: Verdict) -> NDArray[np.uint8]:
    dataset = verdict.dataset
    return label_colors(dataset.palette, bit_planes=dataset.bit_planes)


def _label_map(labels: NDArray[np.uint8], colors: NDArray[np.uint8]) -> str:
    """Return a label map as the data URL of a palette PNG; ids without a color are transparent."""
    image = Image.fromarray(labels).convert("P")
    height, width = labels.shape
    scale = min(1.0, _WIDEST / max(height, width))
    image = image.resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.NEAREST
    )
    image.putpalette(colors[:, :3].tobytes())
    transparency = colors[:, 3].tobytes()
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=transparency)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _fitted(pixels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail((_WIDEST, _WIDEST))
    return image


def _inlined(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    _fitted(pixels).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def contact_sheet(verdict: Verdict) -> bytes:
    """Return one JPEG with a row for each sample and a titled column for each panel."""
    rows = [_panels(sample, verdict) for sample in verdict.samples[:_ROWS]]
    width, height = _fitted(rows[0][0][1]).size
    sheet = Image.new("RGB", (width * len(rows[0]), _TITLE + height * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for top, panels in enumerate(rows):
        for left, (title, pixels) in enumerate(panels):
            if top == 0:
                pen.text((left * width + 4, 2), title, fill="black", font_size=_TITLE - 6)
            panel = _fitted(pixels).resize((width, height))
            sheet.paste(panel, (left * width, _TITLE + top * height))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=88)
    return file.getvalue()


def _panels(sample: Sample, verdict: Verdict) -> list[tuple[str, NDArray[np.uint8]]]:
    colors = _colors(verdict)
    panels = [("image", sample.image)]
    if sample.truth is not None:
        panels.append(("truth", overlay(sample.image, sample.truth, colors)))
    panels += [
        (name, overlay(sample.image, labels, colors)) for name, labels in sample.labels.items()
    ]
    return panels
