"""Frames with label maps to lay over them, as pictures inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segdeploy.benchmark.accuracy import Sample
from segdeploy.benchmark.verdict import Verdict
from segdeploy.runtime.postprocess import overlay

_WIDEST = 480  # pixels of a panel
_ROWS, _TITLE = 3, 20  # of the one picture
_DIFFERS = (255, 0, 80)


def layers_of(sample: Sample, verdict: Verdict) -> dict[str, Any]:
    """The picture once, and what lies over it as label maps of few colours."""
    palette = verdict.dataset.palette
    reference = sample.labels["reference"]
    layers = [] if sample.truth is None else [("truth", _label_map(sample.truth, palette))]
    for name, labels in sample.labels.items():
        layers.append((name, _label_map(labels, palette)))
        if name != "reference":
            differs = (labels != reference).astype(np.uint8)
            layers.append((f"{name}: difference", _label_map(1 - differs, (_DIFFERS,))))
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


def contact_sheet(verdict: Verdict) -> bytes:
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
