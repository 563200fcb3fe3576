"""Parity with PyTorch of a graph that includes preprocessing or postprocessing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.models.bit_planes import plane
from segdeploy.preprocessing.preprocess import ordered, preprocess
from segdeploy.proof.graph_session import runner
from segdeploy.proof.parity import (
    NOISE,
    Parity,
    Scale,
    compare,
    compare_labels,
    reference_of,
)
from segdeploy.proof.test_inputs import (
    Shape,
    breaking_images,
    breaking_inputs,
    exact_input,
    noise_values,
    random_images,
)
from segdeploy.runtime.late_upsampling import late_labels
from segdeploy.runtime.postprocess import sigmoid, softmax, with_background

if TYPE_CHECKING:
    import onnx
    from torch import nn


def check_ends(
    network: nn.Module,
    graph: onnx.ModelProto,
    contract: Contract,
    shapes: Iterable[Shape],
    *,
    of_network: Contract,
    has_softmax: bool = False,
) -> list[Parity]:
    """Run the finished graph on the inputs of its contract and compare its outputs with PyTorch's.

    The inputs are noise of each shape and the edge-case images. Image bytes are normalized in
    float64 for PyTorch, as `of_network` says, the contract of PyTorch's network. Low-resolution
    logits are turned into labels as segdeploy's runtimes do.
    `has_softmax` states that the network itself outputs probabilities.

    Raises:
        CheckFailed: if ONNX Runtime cannot run the graph.
    """
    run = runner(graph)
    scale: Scale | None = None
    results = []
    for name, given, images in _inputs(contract, of_network, shapes):
        logits = reference_of(network, images)
        if contract.output == "probabilities" and not has_softmax:
            logits = _probabilities(logits, contract)
        scale = scale or Scale.of(logits, per_class=contract.has_bit_planes)
        result = _compared(logits, run(given), contract, images.shape, scale, of_network)
        results.append(replace(result, image=name))
    return results


def _probabilities(logits: NDArray[np.float32], contract: Contract) -> NDArray[np.float32]:
    if contract.head != "multiclass":
        return sigmoid(logits)
    return np.stack([softmax(one) for one in logits])


def _compared(
    logits: NDArray[np.float32],
    output: NDArray[Any],
    contract: Contract,
    shape: tuple[int, ...],
    scale: Scale,
    of_network: Contract,
) -> Parity:
    what, per_class = f"PyTorch's {contract.output}", contract.has_bit_planes
    if contract.output != "labels":
        return compare(shape, logits, output, what, scale, per_class=per_class)
    labels = _labels(output, contract, (shape[2], shape[3]))
    if contract.head != "multiclass":
        thresholds = np.array(of_network.threshold_scores, np.float32)
        above = logits - thresholds[:, None, None]
        logits = with_background(above.reshape(-1, 1, *above.shape[2:]))
    if per_class:  # one row for each class, as the logits
        planes = [plane(labels, index) for index in range(contract.score_channels)]
        labels = np.stack(planes, axis=1).reshape(-1, *labels.shape[1:])
    return compare_labels(shape, logits, labels, what, scale)


def _inputs(
    contract: Contract, of_network: Contract, shapes: Iterable[Shape]
) -> Iterable[tuple[str, NDArray[Any], NDArray[np.float32]]]:
    """Yield the name of each input, the graph's input array, and the same images for PyTorch."""
    if contract.layout != "NHWC":
        for shape in shapes:
            images = random_images(shape)
            yield NOISE, images, images
        for name, image in breaking_inputs(contract).items():
            yield name, image, image
        return
    order = [contract.channels.index(name) for name in of_network.channels]
    for batch, channels, height, width in shapes:
        sides = contract.source_size or (height, width)
        given = noise_values((batch, *sides, channels), contract)
        given = given.astype(contract.input_dtype)
        planes = [_prepared(image, contract, of_network) for image in given[..., order]]
        yield NOISE, given, np.concatenate(planes)
    for name, image in breaking_images(contract).items():
        given = np.ascontiguousarray(ordered(image, contract)[None], contract.input_dtype)
        yield name, given, _prepared(given[0][..., order], contract, of_network)


def _prepared(image: NDArray[Any], contract: Contract, of_network: Contract) -> NDArray[np.float32]:
    """Return the network's input for an image `(H, W, C)` in the network's channel order."""
    if contract.source_size is None:
        return exact_input(image, of_network)
    fitted = replace(
        of_network, normalization="f64", source_channels=of_network.channels, gray=None
    )
    return preprocess(image, fitted)


def _labels(output: NDArray[Any], contract: Contract, size: tuple[int, int]) -> NDArray[np.integer]:
    if contract.upsampling is None:
        return output
    return np.stack([late_labels(one, size, contract) for one in output])
