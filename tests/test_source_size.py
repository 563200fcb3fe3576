"""Graphs that resize, crop and pad images of one size themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import segdeploy
from segdeploy.calibration.session import session_options
from segdeploy.errors import InputError
from segdeploy.exporter.resize_nodes import KERNELS, Steps, add_fit
from segdeploy.model_spec import ModelSpec
from segdeploy.models.images import encoded
from segdeploy.preprocessing.fit import placement
from segdeploy.proof.golden_vectors import golden_path, read_golden
from segdeploy.resize_kernels.kernels import resize
from segdeploy.runtime.inference_options import InferenceOptions

from .conftest import CONTRACT, Ran, check_one_line

SOURCE = (90, 150)
ROUNDED = ("torch-bilinear", "torch-bilinear-align-corners")  # float32 in another order


def sizes() -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Random pairs, exact halving, one-pixel sides, and a portrait that Pillow begins with rows."""
    drawn = np.random.default_rng(0).integers(1, 100, (24, 4)).tolist()
    pairs = [((a, b), (c, d)) for a, b, c, d in drawn]
    pairs += [((40, 60), (20, 30)), ((1, 1), (5, 7)), ((50, 1), (1, 9)), ((192, 108), (51, 51))]
    return [*pairs, ((2, 180), (3, 4)), ((30, 40), (30, 20))]


@pytest.mark.parametrize("kernel", KERNELS)
def test_source_size_every_kernel_is_equal_to_the_bit(kernel: str) -> None:
    rng = np.random.default_rng(1)
    for index, (source, size) in enumerate(sizes()):
        image = rng.integers(0, 256, (*source, 3)).astype(np.uint8)
        if index % 2:  # black and white, where filters with negative taps overshoot
            image = (image > 127) * np.uint8(255)
        contract = replace(CONTRACT, size=size, resize=kernel)
        steps = Steps("x")
        add_fit(steps, source, placement(source, contract), contract)
        tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in steps.constants.items()]
        graph = helper.make_graph(
            steps.nodes,
            "fit",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, *source))],
            [helper.make_tensor_value_info(steps.last, TensorProto.FLOAT, None)],
            tensors,
        )
        opsets = [helper.make_opsetid("", 20)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        session = onnxruntime.InferenceSession(model.SerializeToString(), session_options())
        given = image.transpose(2, 0, 1)[None].astype(np.float32)
        (found,) = session.run(None, {"x": given})
        expected = resize(image, size, kernel).transpose(2, 0, 1)
        if kernel in ROUNDED:
            np.testing.assert_allclose(found[0], expected, atol=0.01)
        else:
            assert np.array_equal(found[0], expected), (source, size)


FITS: dict[str, dict[str, Any]] = {
    "stretch": {"resize": "opencv-linear"},
    "letterbox": {"fit": "letterbox", "pad": (114, 50, 7.5), "resize": "pillow-bicubic"},
    "letterbox-normalized": {
        **{"fit": "letterbox", "pad": (0.0,), "pad_normalized": True},
        "pad_side": "bottom-right",
    },
    "crop": {"fit": "shortest-edge,center-crop", "edge": 55},
    "to-multiple": {
        **{"fit": "longest-edge,pad-to-multiple", "edge": 64, "pad": (0.0,)},
        **{"pad_multiple": 16, "resize": "torchvision-uint8-bilinear"},
    },
    "blue-first": {"channels": ("B", "G", "R"), "resize": "torch-nearest"},
}


@pytest.mark.parametrize("name", FITS)
def test_source_size_the_labels_are_those_of_the_runtime(name: str, tmp_path: Path) -> None:
    size = (48, 64)
    spec = ModelSpec(
        "deeplabv3", 8, arguments={"width": 4, "stride": 2}, size=size, stated=FITS[name]
    )
    image = np.random.default_rng(0).integers(0, 256, (*SOURCE, 3)).astype(np.uint8)
    image[20:60, 30:90] = 200
    found = {}
    for kind, options in {
        "runtime": {},
        "logits": {"preprocess": "RGB", "source_size": SOURCE},
        "labels": {"preprocess": "BGR", "source_size": SOURCE, "output": "labels"},
    }.items():
        import torch

        torch.manual_seed(0)
        path = segdeploy.export(spec, tmp_path / f"{kind}.onnx", **options).path
        with segdeploy.load(path) as network:
            network.warm_up()
            found[kind] = network.predict(image)
            if kind != "runtime":
                assert network.contract.source_size == SOURCE
                assert network.prepare(image).shape == (1, *SOURCE, 3)
    for kind in ("logits", "labels"):
        assert found[kind].shape == SOURCE
    assert np.mean(found["logits"] == found["runtime"]) > 0.999
    # Labels at the network's size are enlarged by nearest neighbor.
    assert np.mean(found["labels"] == found["runtime"]) > 0.9


def test_source_size_goes_the_whole_way(
    run: Callable[..., Ran], checkpoint: Path, dataset: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    size = segdeploy.inspect(checkpoint).contract.size
    frame = segdeploy.models.dataset.open_dataset(dataset).frames("val")[0].read_image()
    source = frame.shape[:2]
    graph = segdeploy.export(
        checkpoint, tmp_path / "m.onnx", preprocess="RGB", source_size=source, data=dataset
    ).path
    plain = segdeploy.export(checkpoint, tmp_path / "p.onnx", data=dataset).path
    assert source != size
    ran = run("evaluate", graph, "--data", dataset, "--json")
    other = run("evaluate", plain, "--data", dataset, "--json")
    assert json.loads(ran.out)["miou"] == pytest.approx(json.loads(other.out)["miou"], abs=1e-3)
    ran = run("bench", graph, "--reference", plain, "--data", dataset, "--seconds", 0.1)
    assert ran.code == 0, ran.err
    report = segdeploy.build_engine(graph, tmp_path / "m.engine", targets=["sm86"])
    assert report.golden
    for vector in read_golden(golden_path(tmp_path / "m.engine")):
        assert vector.image.shape == (*source, 3)
    assert run("serve-repo", graph, "-o", tmp_path / "repo").code == 0
    (tmp_path / "x.png").write_bytes(encoded(frame[:30, :40], "PNG"))
    ran = run("predict", graph, tmp_path / "x.png", "-o", tmp_path / "o.png")
    check_one_line(ran, f"takes images of {source[0]}x{source[1]} alone", "this one is 30x40")
    with segdeploy.load(graph) as network, pytest.raises(InputError, match="without --source-size"):
        network.predict(frame, InferenceOptions(tile=True))


def test_source_size_what_cannot_be_is_refused(run: Callable[..., Ran], tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    words = ("export", "deeplabv3", "--num-classes", 3, "--width", 4, "--size", "48x64", "-o", out)
    source = ("--source-size", "90x150")

    def refused(*more: object, reason: str) -> None:
        ran = run(*words, *more)
        assert ran.code == 2
        assert reason in ran.err.splitlines()[-1]
        assert not out.exists()

    refused(*source, reason="--source-size: goes with --preprocess")
    refused(*source, "--preprocess", "RGB", "--dynamic", reason="leave --dynamic out")
    refused(*source, "--preprocess", "RGB", "--resize", "opencv-area",
            reason="a graph does not compute the kernel opencv-area")  # fmt: skip
    refused(*source, "--preprocess", "RGB", "--fit", "shortest-edge", "--edge", 48,
            reason="becomes 48x80 by --fit shortest-edge")  # fmt: skip
    refused(*source, "--preprocess", "RGB", "--dtype", "uint16", reason="images of uint8")
    refused("--source-size", "10x10", "--preprocess", "RGB", "--fit", "center-crop",
            reason="the image is 10x10 where 48x64 are cropped")  # fmt: skip
    refused("--source-size", "60000x60000", "--preprocess", "RGB", reason="more than 100000000")
