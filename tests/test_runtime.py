"""Sessions and what surrounds them: pre- and postprocessing, and one answer on every runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

import segdeploy
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.onnx_graph.model_file import contract_of, set_contract
from segdeploy.preprocessing.preprocess import preprocess
from segdeploy.runtime.postprocess import label_colors, labels_at, overlay, upsample
from segdeploy.runtime.session import open_session

from .conftest import CONTRACT


@pytest.fixture(scope="module")
def frame(dataset: Path) -> np.ndarray:
    return open_dataset(dataset).frames("val")[0].read()[0]


def test_runtime_preprocessing_equals_torchvisions_on_a_pillow_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3)).astype(np.uint8)
    expected = v2.Compose(
        [
            v2.Resize(CONTRACT.size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CONTRACT.mean, CONTRACT.std),
        ]
    )(Image.fromarray(image))
    found = preprocess(image, CONTRACT)
    assert (found.shape, found.dtype) == ((1, 3, *CONTRACT.size), np.float32)
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-5)


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(0, 2**16),
)
def test_runtime_upsampling_equals_pytorchs(
    shape: tuple[int, int, int], size: tuple[int, int], seed: int
) -> None:
    maps = np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(maps)[None], size=size, mode="bilinear")[0].numpy()
    np.testing.assert_allclose(upsample(maps, size), expected, atol=1e-5)
    labels = labels_at(maps, size)
    assert labels.dtype == np.uint8
    # Where the winner is clear, PyTorch and we name the same.
    ranked = np.sort(expected, axis=0)
    clear = ranked[-1] - (ranked[-2] if len(ranked) > 1 else -np.inf) > 3e-5
    assert np.array_equal(labels[clear], expected.argmax(0)[clear])


def test_runtime_overlay_leaves_ignored_pixels_alone() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    colors = label_colors([(200, 0, 0)], bit_planes=False)
    mixed = overlay(image, np.array([[0, 255]], np.uint8), colors, opacity=0.5)
    assert mixed.tolist() == [[[150, 50, 50], [100, 100, 100]]]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["graph", "dynamic_graph"])
def test_runtime_every_runtime_gives_pytorchs_logits(
    name: str, backend: str, checkpoint: Path, frame: np.ndarray, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    with segdeploy.load(checkpoint) as torch_predictor:
        expected = torch_predictor.logits(frame)
    with segdeploy.load(path, backend=backend) as predictor:
        found = predictor.logits(frame)
        assert predictor.session.backend == backend
        assert predictor.session.input.name == "image"
        assert predictor.session.output.name == "logits"
        labels = predictor.predict(frame)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.ptp(expected))
    assert labels.shape == frame.shape[:2]


def test_runtime_the_contract_travels_from_checkpoint_to_graph(
    checkpoint: Path, graph: Path
) -> None:
    with segdeploy.load(checkpoint) as before, segdeploy.load(graph) as after:
        for field in ("classes", "palette", "ignore_index", "size", "mean", "std"):
            assert getattr(before.contract, field) == getattr(after.contract, field)
        assert after.contract.provenance["parent_sha256"]


def test_runtime_predict_takes_a_path_and_refuses_other_arrays(graph: Path, dataset: Path) -> None:
    image = open_dataset(dataset).frames("val")[0].image
    with segdeploy.load(graph) as predictor:
        assert predictor.predict(image).shape == (96, 128)
        for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
            with pytest.raises(InputError, match=r"must be \(H, W, 3\) uint8"):
                predictor.predict(wrong)


def test_runtime_a_graph_that_gives_nan_names_its_output(
    graph: Path, tmp_path: Path, frame: np.ndarray
) -> None:
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.name == "backbone.0.conv1.weight":
            tensor.raw_data = np.full(tuple(tensor.dims), np.nan, np.float32).tobytes()
    broken = tmp_path / "nan.onnx"
    onnx.save(model, broken)
    with segdeploy.load(broken) as predictor, pytest.raises(InputError, match="'logits' holds NaN"):
        predictor.predict(frame)


def test_runtime_files_that_are_no_graphs(graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(InputError, match="no such file"):
        open_session(path)
    for backend in ("onnxruntime", "openvino"):
        for content in (b"", b"rubbish", graph.read_bytes()[:2000]):
            path.write_bytes(content)
            with pytest.raises(InputError, match=r"m\.onnx"):
                open_session(path, backend)
    with pytest.raises(InputError, match="no such backend; there are onnxruntime, onnx.*openvino"):
        open_session(graph, "tflite")
    model = onnx.load(graph)
    del model.metadata_props[:]
    onnx.save(model, path)
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(InputError, match="carries no segdeploy contract"):
            open_session(path, backend)


def test_runtime_a_contract_that_is_not_the_graphs_is_refused(graph: Path, tmp_path: Path) -> None:
    model = onnx.load(graph)
    contract = contract_of(model, graph)
    changes = (
        {"size": (40, 40)},
        {"classes": ("a", "b"), "palette": ((0, 0, 0), (1, 1, 1))},
    )
    for change in changes:
        set_contract(model, replace(contract, **change))
        path = tmp_path / "other.onnx"
        onnx.save(model, path)
        for backend in ("onnxruntime", "openvino"):
            with pytest.raises(InputError, match="but its contract says"):
                open_session(path, backend)
        with pytest.raises(InputError, match="but its contract says"):
            segdeploy.build_engine(path, tmp_path / "m.engine", targets=["sm86"])


def test_runtime_a_size_is_not_given_to_a_file_that_has_one(graph: Path) -> None:
    with pytest.raises(InputError, match="the network is static at 48x64"):
        segdeploy.load(ModelSpec(str(graph), size=(32, 32)))
