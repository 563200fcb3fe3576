"""`predict` in its shapes: arrays, Pillow images, paths, batches, tiles, threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segdeploy
from segdeploy.errors import InputError
from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import ModelInputError
from segdeploy.runtime.inference_options import InferenceOptions
from segdeploy.runtime.postprocess import labels_at, softmax
from segdeploy.runtime.tiling import starts, tiled

BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def frames(dataset: Path) -> list[np.ndarray]:
    return [frame.read()[0] for frame in open_dataset(dataset).frames("val")[:4]]


def test_predictor_arrays_images_and_paths_are_the_same(
    graph: Path, frames: list[np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "frame.png"
    Image.fromarray(frames[0]).save(path)
    with segdeploy.load(graph) as network:
        network.warm_up()
        expected = network.predict(frames[0])
        for given in (path, str(path), Image.open(path), Image.open(path).convert("RGBA")):
            assert np.array_equal(network.predict(given), expected)
        network.close()  # the block closes it again, which does nothing


def test_predictor_images_that_would_be_changed_silently_are_refused(
    graph: Path, frames: list[np.ndarray]
) -> None:
    turned = Image.fromarray(frames[0])
    turned.getexif()[0x0112] = 6  # a phone held upright
    with segdeploy.load(graph) as network:
        height, width = frames[0].shape[:2]
        assert network.predict(turned).shape == (width, height)
        deep = Image.fromarray(np.zeros((48, 64), np.uint16))
        with pytest.raises(ModelInputError, match="has 16 bits a channel, and 8 are read"):
            network.predict(deep)
        for odd in (None, [frames[0]], b"x"):
            with pytest.raises(InputError, match="give an array"):
                network.predict(odd)


def test_predictor_a_dynamic_network_is_run_at_another_size(
    graph: Path, dynamic_graph: Path, frames: list[np.ndarray]
) -> None:
    with segdeploy.load(dynamic_graph, size=(80, 112)) as network:
        assert network.logits(frames[0]).shape[1:] == (80, 112)
        with pytest.raises(InputError, match="scale x: must be positive"):
            network.predict(frames[0], InferenceOptions(scales=("x",)))
    with pytest.raises(InputError, match="the network is static at 48x64"):
        segdeploy.load(graph, size=(80, 112))


def test_predictor_probabilities_are_of_the_images_size_and_sum_to_one(
    checkpoint: Path, graph: Path, frames: list[np.ndarray], tmp_path: Path
) -> None:
    with segdeploy.load(graph) as network:
        found = network.probabilities(frames[0])
        assert found.shape == (8, *frames[0].shape[:2])
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
        assert np.array_equal(found.argmax(0), network.predict(frames[0]))
    path = tmp_path / "labels.onnx"
    segdeploy.export(checkpoint, path, output="labels")
    said = "the graph gives labels; use one that ends in logits"
    with segdeploy.load(path) as network, pytest.raises(InputError, match=said):
        network.probabilities(frames[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["graph", "dynamic_graph"])
def test_predictor_a_batch_gives_what_single_images_give(
    name: str, backend: str, frames: list[np.ndarray], request: pytest.FixtureRequest
) -> None:
    images = [frames[0], frames[1][:-7, :-3], frames[2], *frames]
    with segdeploy.load(request.getfixturevalue(name), backend=backend) as network:
        together = network.predict_batch(images)
        for image, labels in zip(images, together, strict=True):
            assert labels.shape == image.shape[:2]
            assert np.mean(labels == network.predict(image)) > 0.999
        assert network.predict_batch([]) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_predictor_threads_give_what_one_gives(
    graph: Path, backend: str, frames: list[np.ndarray]
) -> None:
    with segdeploy.load(graph, backend=backend) as network:
        expected = [network.predict(frame) for frame in frames]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(network.predict, frames * 5))
    for index, labels in enumerate(found):
        assert np.array_equal(labels, expected[index % len(frames)])


@pytest.mark.parametrize(("length", "window"), [(10, 10), (5, 10), (11, 10), (100, 30), (3, 2)])
def test_predictor_windows_cover_and_overlap(length: int, window: int) -> None:
    begins = starts(length, window)
    covered = np.zeros(max(length, window), int)
    for begin in begins:
        covered[begin : begin + window] += 1
    assert covered.min() >= 1
    assert begins[0] == 0
    assert begins[-1] == max(0, length - window)
    assert all(b - a <= window * 2 / 3 + 1 for a, b in pairwise(begins))


def whole(bands: Iterator[tuple[slice, np.ndarray]]) -> np.ndarray:
    return np.concatenate([band for _, band in bands], axis=-2)


def test_predictor_tiles_of_a_pointwise_network_are_the_whole() -> None:
    """Where a pixel's scores depend on that pixel alone, blending must change nothing."""
    image = np.random.default_rng(0).integers(0, 256, (70, 95, 3), dtype=np.uint8)

    def scores(part: np.ndarray) -> np.ndarray:
        assert part.shape == (32, 48, 3)
        return part.transpose(2, 0, 1).astype(np.float32)

    joined = whole(tiled(scores, image, (32, 48)))
    np.testing.assert_allclose(joined, image.transpose(2, 0, 1), rtol=1e-5)
    labels = whole(tiled(lambda part: part[:, :, 0], image, (32, 48)))
    assert np.array_equal(labels, image[:, :, 0])
    small = whole(tiled(scores, image[:20, :30], (32, 48)))
    np.testing.assert_allclose(small, image[:20, :30].transpose(2, 0, 1), rtol=1e-5)


def test_predictor_a_image_of_the_windows_size_is_one_tile(
    graph: Path, frames: list[np.ndarray]
) -> None:
    image = np.asarray(Image.fromarray(frames[0]).resize((64, 48)))
    with segdeploy.load(graph) as network:
        assert np.array_equal(
            network.predict(image, InferenceOptions(tile=True)), network.predict(image)
        )
        large = np.tile(image, (3, 3, 1))
        assert network.predict(large, InferenceOptions(tile=True)).shape == large.shape[:2]
        found = network.probabilities(large, InferenceOptions(tile=True))
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
        with pytest.raises(InputError, match="tiles go with one scale"):
            network.predict(large, InferenceOptions(tile=True, flip=True))


def test_predictor_a_dynamic_network_takes_what_fits_in_one_piece(
    dynamic_graph: Path, frames: list[np.ndarray]
) -> None:
    image = frames[0][:90, :110]
    with segdeploy.load(dynamic_graph) as network:
        from dataclasses import replace

        from segdeploy.preprocessing.preprocess import preprocess

        whole = replace(network.contract, size=(90, 110))
        expected = labels_at(network.session.run(preprocess(image, whole))[0], (90, 110))
        assert np.array_equal(network.predict(image, InferenceOptions(tile=True)), expected)


def test_predictor_labels_are_tiled_without_blending(
    checkpoint: Path, frames: list[np.ndarray], tmp_path: Path
) -> None:
    for name, options in (("now", {}), ("late", {"late_upsampling": True})):
        path = tmp_path / f"{name}.onnx"
        segdeploy.export(checkpoint, path, output="labels", **options)
        with segdeploy.load(path) as network:
            labels = network.predict(np.tile(frames[0], (2, 2, 1)), InferenceOptions(tile=True))
            assert labels.shape == (2 * frames[0].shape[0], 2 * frames[0].shape[1])
            assert labels.max() < 8


def test_predictor_softmax_of_large_logits_is_finite() -> None:
    logits = np.array([1e4, 0, -1e4], np.float32).reshape(3, 1, 1)
    assert softmax(logits).ravel().tolist() == [1, 0, 0]


def test_predictor_tiles_from_the_command_line(graph: Path, dataset: Path, tmp_path: Path) -> None:
    from segdeploy.commands.predict import predict_file

    image = open_dataset(dataset).frames("val")[0].image
    shares = predict_file(graph, image, tmp_path / "o.png", options=InferenceOptions(tile=True))
    assert abs(sum(shares.values()) - 1) < 1e-6
