"""Parity of a graph's ends: from the camera's bytes to probabilities or labels, against PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.exporter.parity import (
    Parity,
    Shape,
    compare,
    compare_labels,
    open_graph,
    random_bytes,
    random_images,
)
from segdeploy.runtime.late_upsampling import labels_of_small_map
from segdeploy.spec import Contract

if TYPE_CHECKING:
    import onnx
    from torch import nn


def check_ends(
    network: nn.Module, graph: onnx.ModelProto, contract: Contract, shapes: Iterable[Shape]
) -> list[Parity]:
    """Run the finished graph on what its contract takes, and compare with PyTorch at each shape.

    Bytes are normalised in float64 for PyTorch, scores turned into labels as our runtimes do.
    """
    import torch

    session = open_graph(graph)
    name = session.get_inputs()[0].name
    results = []
    for shape in shapes:
        given, images = _inputs(shape, contract)
        with torch.inference_mode():
            logits = network(torch.from_numpy(images))
            probabilities = logits.softmax(1).numpy()
        output = session.run(None, {name: given})[0]
        what = f"PyTorch's {contract.output}"
        if contract.output == "labels":
            labels = _labels(output, contract, (shape[2], shape[3]))
            results.append(compare_labels(shape, logits.numpy(), labels, what))
        else:
            expected = logits.numpy() if contract.output == "logits" else probabilities
            results.append(compare(shape, expected, output, what))
    return results


def _inputs(shape: Shape, contract: Contract) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """What the graph takes, and the same images as PyTorch takes them."""
    if contract.layout != "NHWC":
        images = random_images(shape)
        return images, images
    batch, channels, height, width = shape
    pictures = random_bytes((batch, height, width, channels))
    rgb = pictures[..., ::-1] if contract.colour == "BGR" else pictures
    normalised = (rgb / 255 - np.array(contract.mean)) / np.array(contract.std)
    return pictures, np.ascontiguousarray(normalised.transpose(0, 3, 1, 2), dtype=np.float32)


def _labels(output: NDArray[Any], contract: Contract, size: tuple[int, int]) -> NDArray[np.integer]:
    if contract.upsampling is None:
        return output
    aligned = contract.upsampling == "align-corners"
    return np.stack([labels_of_small_map(one, size, align_corners=aligned) for one in output])
