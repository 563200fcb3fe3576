"""Drawings of a network's dilated kernels and its effective receptive field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from segdeploy.models.errors import ModelInputError
from segdeploy.models.network import channel_count
from segdeploy.models.receptive_field import receptive_field
from segdeploy.models.summary import Anatomy

_CELL, _GAP, _TITLE = 6, 12, 22
_TAP, _HOLE, _FRAME = (118, 185, 0), (225, 225, 225), (220, 60, 40)
_DRAWS = 4
_LARGEST_KERNEL = 400  # pixels across; larger kernels are not drawn


def dilated_kernel(kernel: tuple[int, int], dilation: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a dilated kernel as an array: 1 at a tap, 0 in a hole.

    `kernel` and `dilation` are (rows, columns).
    """
    sides = [receptive_field(*axis) for axis in zip(kernel, dilation, strict=True)]
    taps = np.zeros(sides, np.uint8)
    taps[:: dilation[0], :: dilation[1]] = 1
    return taps


def effective_receptive_field(network: nn.Module, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return how strongly each pixel affects the center of the output, `(H, W)`, maximum 1.

    The value is the mean absolute gradient over random images (Luo et al. 2016, arXiv 1701.04128,
    section 2.2).

    Raises:
        ModelInputError: if no gradient flows through the network.
    """
    network.eval()
    height, width = size
    channels = channel_count(network)
    generator = torch.Generator().manual_seed(0)
    total = np.zeros(size)
    for _ in range(_DRAWS):
        image = torch.randn(1, channels, height, width, generator=generator).requires_grad_()
        middle: Tensor = network(image)[0, :, height // 2, width // 2]
        if not middle.requires_grad:
            raise ModelInputError(
                "the network's output has no gradient, so its effective receptive field cannot be "
                "drawn; leave --image out"
            )
        (gradient,) = torch.autograd.grad(middle.sum(), image)
        total += gradient[0].abs().sum(0).numpy()
    largest = total.max()
    field: NDArray[np.float64] = total / largest if largest > 0 else total
    return field


def draw_network(anatomy: Anatomy, field: NDArray[np.float64], title: str) -> Image.Image:
    """Draw each distinct dilated kernel, and the effective field in the theoretical field's frame.

    Large kernels are drawn at a smaller scale. `field` comes from `effective_receptive_field`.
    """
    kinds = sorted(
        {
            ((la.kernel, la.kernel_width), (la.dilation, la.dilation_width))
            for la in anatomy.layers
            if la.kind == "conv"
        }
    )
    kernels = [_kernel_panel(*kind) for kind in kinds]
    seen = _field_panel(anatomy, field)
    width = max(sum(k.width + _GAP for k in kernels) + _GAP, seen.width + 2 * _GAP)
    top = _TITLE + max((k.height for k in kernels), default=0) + _GAP
    sheet = Image.new("RGB", (width, top + seen.height + _GAP), "white")
    ImageDraw.Draw(sheet).text((_GAP, 4), title, fill="black", font_size=14)
    _paste_row(sheet, kernels, _TITLE)
    sheet.paste(seen, (_GAP, top))
    return sheet


def _paste_row(sheet: Image.Image, panels: Sequence[Image.Image], top: int) -> None:
    left = _GAP
    for panel in panels:
        sheet.paste(panel, (left, top))
        left += panel.width + _GAP


def _kernel_panel(kernel: tuple[int, int], dilation: tuple[int, int]) -> Image.Image:
    rows, columns = dilation
    label = f"{kernel[0]}x{kernel[1]}, dilation {rows if rows == columns else f'{rows}x{columns}'}"
    if max(receptive_field(k, d) for k, d in zip(kernel, dilation, strict=True)) > _LARGEST_KERNEL:
        drawn = Image.new("RGB", (116, 14), "white")
        ImageDraw.Draw(drawn).text((0, 0), "too large to draw", fill="black", font_size=11)
    else:
        taps = dilated_kernel(kernel, dilation)
        cell = max(1, min(_CELL, 220 // max(taps.shape)))
        colors = np.array([_HOLE, _TAP], np.uint8)[taps]
        drawn = Image.fromarray(colors.repeat(cell, 0).repeat(cell, 1))
    panel = Image.new("RGB", (max(drawn.width, 116), drawn.height + 18), "white")
    ImageDraw.Draw(panel).text((0, 2), label, fill="black", font_size=11)
    panel.paste(drawn, (0, 18))
    return panel


def _field_panel(anatomy: Anatomy, field: NDArray[np.float64]) -> Image.Image:
    height, width = field.shape
    # The square root makes the faint rim visible, which is most of the field.
    shade = (255 * (1 - np.sqrt(field))).astype(np.uint8)
    heat = Image.fromarray(np.stack([shade, shade, np.full_like(shade, 255)], axis=2))
    pen = ImageDraw.Draw(heat)
    size = anatomy.output.size
    text = f"receptive field {size} pixels" if size else "receptive field: the whole image"
    if anatomy.output.pooled:
        text += ", and the whole image through global pooling"
    if size:
        half = size // 2
        row, column = height // 2, width // 2
        corners = (column - half, row - half, column + half, row + half)
        pen.rectangle(corners, outline=_FRAME)
    panel = Image.new("RGB", (max(width, 560), height + 18), "white")
    ImageDraw.Draw(panel).text((0, 2), f"{text}; effective field in blue", "black", font_size=11)
    panel.paste(heat, (0, 18))
    return panel
