"""An image is fitted to the network's input as its framework does, and its labels come back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

import segdeploy
from segdeploy.adoption.statement import Statement
from segdeploy.contract import RESIZE_KERNELS, Contract
from segdeploy.contract_json import read_contract
from segdeploy.contract_statement import with_stated
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.preprocessing.fit import placement
from segdeploy.preprocessing.preprocess import preprocess
from segdeploy.profiles import Bounds
from segdeploy.proof.golden_vectors import golden_path
from segdeploy.runtime.inference_options import InferenceOptions
from segdeploy.runtime.postprocess import labels_at, nearest

from .conftest import CONTRACT, Ran, check_one_line

PLAIN = replace(CONTRACT, size=(48, 64), mean=(0.0,) * 3, std=(1.0,) * 3, resize="opencv-linear")
NETWORK = "tests.test_stated_preprocessing:network"
STATED = {"fit": "letterbox", "pad": (114.0, 114.0, 114.0), "resize": "opencv-linear"}


def letterboxed(image: NDArray[np.uint8], size: tuple[int, int], side: str) -> NDArray[np.uint8]:
    """Write the letterbox of detection frameworks with OpenCV: scale, round, border of 114."""
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    if (width, height) != inner:
        image = cv2.resize(image, inner, interpolation=cv2.INTER_LINEAR)
    down, right = size[0] - inner[1], size[1] - inner[0]
    top, left = (down // 2, right // 2) if side == "center" else (0, 0)
    borders = (top, down - top, left, right - left)
    return cv2.copyMakeBorder(image, *borders, cv2.BORDER_CONSTANT, value=(114, 114, 114))


@pytest.mark.parametrize("side", ["center", "bottom-right"])
def test_fit_a_letterbox_is_opencvs(side: str) -> None:
    rng = np.random.default_rng(0)
    contract = replace(PLAIN, fit="letterbox", pad_side=side, pad=(114.0,) * 3)
    for _ in range(300):
        height, width = rng.integers(1, 200, 2)
        image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        expected = letterboxed(image, (48, 64), side)
        as_bytes = preprocess(image, replace(contract, layout="NHWC"))
        assert np.array_equal(as_bytes[0], expected)
        assert np.array_equal(preprocess(image, contract), preprocess(expected, PLAIN))


@pytest.mark.parametrize("side", ["center", "bottom-right"])
def test_fit_the_way_back_leaves_the_padding_out(side: str) -> None:
    """As cropping the network's output to the image, and resizing that to the image's size."""
    rng = np.random.default_rng(0)
    contract = replace(PLAIN, fit="letterbox", pad_side=side, pad=(0.0,) * 3)
    for _ in range(100):
        size = (int(rng.integers(1, 200)), int(rng.integers(1, 200)))
        place = placement(size, contract)
        rows, columns = (
            slice(span.start, span.start + span.length) for span in (place.rows, place.columns)
        )
        scores = rng.normal(size=(5, 48, 64)).astype(np.float32)
        shown = torch.from_numpy(scores[None, :, rows, columns])
        expected = functional.interpolate(shown, size, mode="bilinear")[0].argmax(0).numpy()
        assert np.mean(labels_at(scores, size, place) == expected) > 0.999
        labels = scores.argmax(0).astype(np.uint8)
        assert np.array_equal(nearest(labels, size, place), nearest(labels[rows, columns], size))


def test_fit_low_resolution_scores_come_back_to_their_place() -> None:
    """A wide image in a square letterbox; its left third is class 1 at an eighth of the size."""
    contract = replace(PLAIN, size=(96, 96), fit="letterbox", pad=(0.0,) * 3)
    place = placement((100, 300), contract)
    assert (place.rows.start, place.rows.length) == (32, 32)
    scores = np.zeros((2, 12, 12), np.float32)
    scores[1, 4:8, :4] = 1
    scores[0, 4:8, 4:] = 1
    labels = labels_at(scores, (100, 300), place)
    assert labels[:, :95].min() == 1
    assert labels[:, 105:].max() == 0


@pytest.fixture(scope="module")
def letterbox_graph(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ModelSpec(NETWORK, size=(48, 64), stated=STATED)
    out = tmp_path_factory.mktemp("letterbox") / "m.onnx"
    torch.manual_seed(3)  # the weights are random
    return segdeploy.export(spec, out, data=dataset).path


def test_fit_every_answer_is_at_the_images_own_size(letterbox_graph: Path, dataset: Path) -> None:
    image, _ = open_dataset(dataset).frames("val")[0].read()
    image = np.ascontiguousarray(image[:, :40])  # upright: padding at the left and right
    with segdeploy.load(letterbox_graph) as network:
        assert network.contract.fit == "letterbox"
        batch = preprocess(letterboxed(image, (48, 64), "center"), replace(
            network.contract, fit="stretch", pad=None))  # fmt: skip
        place = placement(image.shape[:2], network.contract)
        columns = slice(place.columns.start, place.columns.start + place.columns.length)
        assert 0 < columns.start < columns.stop < 64
        scores = network.session.run(batch)[..., columns]
        expected = functional.interpolate(
            torch.from_numpy(scores), image.shape[:2], mode="bilinear"
        )[0].numpy()
        labels = expected.argmax(0)
        assert np.mean(network.predict(image) == labels) > 0.999
        assert np.mean(network.predict_batch([image])[0] == labels) > 0.999
        found = network.probabilities(image)
        np.testing.assert_allclose(
            found, functional.softmax(torch.from_numpy(expected), 0), atol=1e-5
        )
        assert network.predict(image, InferenceOptions(tile=True)).shape == image.shape[:2]
    exported = letterbox_graph.with_name("labels.onnx")
    spec = ModelSpec(NETWORK, size=(48, 64), stated=STATED)
    segdeploy.export(spec, exported, data=open_dataset(dataset).root, output="labels")
    with segdeploy.load(exported) as network:
        assert network.predict(image).shape == image.shape[:2]


def test_fit_every_step_keeps_it(
    run: Callable[..., Ran], letterbox_graph: Path, dataset: Path, tmp_path: Path, tensorrt_rtx
) -> None:
    int8 = segdeploy.calibrate(letterbox_graph, dataset, tmp_path / "int8.onnx").path
    engine = segdeploy.build_engine(int8, tmp_path / "m.engine", targets=["sm86"]).path
    for path in (int8, engine):
        contract: Contract = segdeploy.inspect(path).contract
        assert {name: getattr(contract, name) for name in STATED} == STATED
    golden = golden_path(engine)
    assert run("self-test", int8, "--golden", golden).code == 0
    verdict = segdeploy.bench([int8], reference=letterbox_graph, data=dataset, limit=2)
    assert verdict.rows[1].evaluation is not None
    stretched = segdeploy.export(
        ModelSpec(NETWORK, size=(48, 64)), tmp_path / "s.onnx", data=dataset
    ).path
    ran = run("bench", stretched, "--reference", letterbox_graph, "--data", dataset)
    check_one_line(ran, "its fit is stretch, but the reference has letterbox")
    named = (NETWORK, "--size", "48x64", "--data", dataset)
    ran = run("bench", letterbox_graph, "--reference", *named)
    check_one_line(ran, "but the reference has stretch", "--fit, --pad, --resize")


def test_fit_a_copied_contract_is_restated(letterbox_graph: Path, tmp_path: Path) -> None:
    def restated(**stated: object) -> Contract:
        out = tmp_path / "a.onnx"
        statement = Statement(like=letterbox_graph, preprocessing=stated)
        segdeploy.adopt(letterbox_graph, statement, out=out)
        return segdeploy.inspect(out).contract

    assert restated(fit="stretch").pad is None
    assert restated(pad_side="bottom-right").pad == (114.0,) * 3
    assert restated(pad=(0.0,) * 3).fit == "letterbox"
    assert restated().assumed == ("channels", "mean", "std")
    assert restated(channels=("B", "G", "R")).assumed == ("mean", "std")


CROP = {"fit": "shortest-edge,center-crop", "edge": 80}
FOLLOWING = {"fit": "shortest-edge,pad-to-multiple", "edge": 40, "pad": (0.0,), "pad_multiple": 16}


@pytest.fixture(scope="module")
def crop_graph(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ModelSpec("deeplabv3", arguments={"width": 4, "stride": 2}, size=(48, 64), stated=CROP)
    return segdeploy.export(spec, tmp_path_factory.mktemp("crop") / "m.onnx", data=dataset).path


def test_fit_outside_a_crop_is_the_ignore_index(
    run: Callable[..., Ran], crop_graph: Path, dataset: Path, tmp_path: Path
) -> None:
    image, mask = open_dataset(dataset).frames("val")[0].read()
    size = mask.shape
    with segdeploy.load(crop_graph) as network:
        place = placement(size, network.contract)
        assert place.resized == (80, int(80 * size[1] / size[0]))
        resized = Image.fromarray(image).resize(place.resized[::-1], Image.Resampling.BILINEAR)
        top, left = -place.rows.start, -place.columns.start
        cropped = np.asarray(resized)[top : top + 48, left : left + 64]
        plain = network.contract.stretched_to((48, 64))
        assert np.array_equal(network.prepare(image), preprocess(cropped, plain))
        labels, sure = network.predict(image), network.probabilities(image)
        rows, columns = network.crop_window(size)
    window = np.zeros(size, bool)
    window[rows, columns] = True
    # Exactly the pixels whose centers lie in the crop.
    for axis, (start, length, total) in enumerate(
        ((top, 48, place.resized[0]), (left, 64, place.resized[1]))
    ):
        centers = (np.arange(size[axis]) + 0.5) * total / size[axis]
        inside = (centers >= start) & (centers <= start + length)
        assert np.array_equal(window.any(1 - axis), inside)
    assert (labels[~window] == 255).all()
    assert (labels[window] < 8).all()
    assert not sure[:, ~window].any()
    np.testing.assert_allclose(sure[:, window].sum(0), 1, atol=1e-5)
    # What the network did not see counts in no metric.
    found = json.loads(run("evaluate", crop_graph, "--data", dataset, "--json").out)
    verdict = segdeploy.bench([crop_graph], reference=crop_graph, data=dataset, limit=4)
    assert verdict.rows[1].evaluation.accuracy.miou == pytest.approx(found["miou"], abs=1e-9)
    with pytest.raises(InputError, match="1x2000000 would be resized to 80x160000000, more than"):
        placement((1, 2_000_000), with_stated(CONTRACT.stretched_to((48, 64)), CROP))
    small = np.zeros((20, 20, 3), np.uint8)
    cut = segdeploy.adopt(
        crop_graph,
        Statement(like=crop_graph, preprocessing={"fit": "center-crop"}),
        out=tmp_path / "c.onnx",
    )
    with (
        segdeploy.load(cut) as network,
        pytest.raises(
            InputError,
            match="the image is 20x20 where 48x64 are cropped from it; give a larger image",
        ),
    ):
        network.predict(small)


def test_fit_an_input_that_follows_the_image(
    run: Callable[..., Ran], dataset: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(
        "deeplabv3", arguments={"width": 4, "stride": 2}, size=(48, 64), stated=FOLLOWING
    )
    static = segdeploy.export(spec, tmp_path / "s.onnx", data=dataset).path
    torch.manual_seed(0)
    dynamic = segdeploy.export(spec, tmp_path / "d.onnx", data=dataset, dynamic=True).path
    torch.manual_seed(0)
    labels = segdeploy.export(
        spec, tmp_path / "l.onnx", data=dataset, dynamic=True, output="labels", late_upsampling=True
    ).path
    sizes = ((96, 128), (50, 40), (30, 90), (96, 128))
    images = [np.random.default_rng(0).integers(0, 256, (*s, 3)).astype(np.uint8) for s in sizes]
    with segdeploy.load(dynamic) as network, segdeploy.load(labels) as ending:
        assert network.prepare(images[1]).shape == (1, 3, 64, 48)
        found = [network.predict(image) for image in images]
        assert [one.shape for one in found] == list(sizes)
        for one, other in zip(found, network.predict_batch(images), strict=True):
            assert np.array_equal(one, other)
        for one, image in zip(found, images, strict=True):
            assert np.mean(one == ending.predict(image)) > 0.99
    with segdeploy.load(static) as network:
        assert network.predict(images[0]).shape == sizes[0]  # 96x128 becomes 40x53, then 48x64
        with pytest.raises(
            InputError, match="a 50x40 image becomes 64x48 by --fit shortest-edge,pad-to-multiple"
        ):
            network.predict(images[1])


def test_fit_an_input_outside_the_bounds_was_never_proven(tmp_path: Path) -> None:
    spec = ModelSpec(
        "deeplabv3", 3, arguments={"width": 4, "stride": 2}, size=(48, 64), stated={"fit": "none"}
    )
    bounds = Bounds((32, 32), (96, 128))
    graph = segdeploy.export(spec, tmp_path / "d.onnx", dynamic=True, bounds=bounds).path
    with segdeploy.load(graph) as network:
        assert network.predict(np.zeros((96, 128, 3), np.uint8)).shape == (96, 128)
        for size in ((16, 40), (97, 64), (40, 300)):
            with pytest.raises(InputError, match="outside the graph's 32x32 to 96x128"):
                network.predict(np.zeros((*size, 3), np.uint8))
    with pytest.raises(InputError, match="its input follows the image by --fit none; leave --size"):
        segdeploy.load(graph, size=(64, 64))


def test_fit_calibration_on_inputs_that_follow_the_image(
    run: Callable[..., Ran], dataset: Path, tmp_path: Path
) -> None:
    """The frames of 96x128 become 64x85, and the graph was exported at 64x96."""
    stated = {"fit": "shortest-edge", "edge": 64, "rounding": "mmcv"}
    spec = ModelSpec("deeplabv3", arguments={"width": 4, "stride": 2}, size=(64, 96), stated=stated)
    dynamic = segdeploy.export(spec, tmp_path / "d.onnx", data=dataset, dynamic=True).path
    report = segdeploy.calibrate(dynamic, dataset, tmp_path / "int8.onnx", limit=3)
    assert report.int8
    assert report.accuracy.agreement > 0.9
    static = segdeploy.export(spec, tmp_path / "s.onnx", data=dataset).path
    ran = run("calibrate", static, "--data", dataset, "-o", tmp_path / "no.onnx")
    check_one_line(ran, "a 96x128 image becomes 64x85 by --fit shortest-edge", "--dynamic")


def test_fit_bytes_never_wrap_around(letterbox_graph: Path) -> None:
    """PyTorch's bicubic filter overshoots."""
    edge = np.zeros((20, 20, 3), np.uint8)
    edge[:, 10:] = 255
    for name in RESIZE_KERNELS:
        contract = replace(PLAIN, resize=name)
        floats = preprocess(edge, contract)[0].transpose(1, 2, 0) * 255
        as_bytes = preprocess(edge, replace(contract, layout="NHWC"))[0]
        assert np.abs(as_bytes - np.clip(floats, 0, 255)).max() < 0.51, name


def test_fit_a_longest_edge_above_the_shorter_side_fits_landscapes() -> None:
    """`LongestMaxSize(64)` and `PadIfNeeded(48, 64)`: a portrait is refused where it occurs."""
    contract = with_stated(
        replace(CONTRACT, size=(48, 64)), {"fit": "longest-edge,pad", "edge": 64, "pad": 0}
    )
    assert preprocess(np.zeros((90, 120, 3), np.uint8), contract).shape == (1, 3, 48, 64)
    with pytest.raises(InputError, match="64x48, larger than the input of 48x64"):
        preprocess(np.zeros((120, 90, 3), np.uint8), contract)


def test_fit_what_contradicts_itself_is_refused(
    run: Callable[..., Ran], dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.onnx"
    words = ("export", NETWORK, "--data", dataset, "--size", "48x64", "-o", out)
    check_one_line(
        run(*words, "--fit", "letterbox"), "--fit letterbox: needs --pad, such as --pad 114"
    )
    check_one_line(
        run(*words, "--pad", "114"),
        "--pad 114,114,114: goes with --fit letterbox or longest-edge,pad",
    )
    fractional = ("--fit", "letterbox", "--pad", "114.5", "--preprocess", "RGB")
    check_one_line(run(*words, *fractional), "--pad 114.5", "the padding is a whole number")
    check_one_line(run(*words, "--fit", "letterbox", "--pad", "300"), "--pad 300,300,300", "0..255")
    check_one_line(
        run(*words, "--fit", "letterbox", "--pad", "1,2"),
        "--pad 1,2: has 2 values, and the network takes 3 channels",
    )
    ran = run("train", "deeplabv3", "--data", dataset, "--size", "48x64", "--fit", "letterbox",
              "--pad", "0", "-o", tmp_path / "m.safetensors")  # fmt: skip
    check_one_line(ran, "--fit, --pad: training has its own scaling", "leave the option out")
    for options, message in (
        (("--fit", "shortest-edge"), "--fit shortest-edge: needs --edge, such as --edge 512"),
        (("--edge", "80"), "--edge 80: goes with --fit shortest-edge or longest-edge"),
        (("--fit", "shortest-edge", "--edge", 80, "--longest-edge", 70), "is below --edge 80"),
        (("--fit", "shortest-edge,center-crop", "--edge", 40), "is below the crop of 48x64"),
        (("--fit", "longest-edge,pad", "--edge", 65, "--pad", 0), "is above the input of 48x64"),
        (
            ("--fit", "pad-to-multiple", "--pad", 0, "--pad-multiple", 32),
            "--pad-multiple 32: does not divide the input size 48x64",
        ),
        (("--fit", "letterbox", "--pad", 0, "--pad-normalized", 0), "give one of the two"),
        (
            ("--fit", "letterbox", "--pad-normalized", 0, "--preprocess", "RGB"),
            "--pad-normalized 0,0,0: the graph normalizes, so the padding lies before it",
        ),
        (
            ("--channels", "gray", "--mean", "0.4,0.5,0.6"),
            ("has 3 values", "takes 1 channel (gray)"),
        ),
        (("--channels", "R,R,B"), "'R,R,B' is not a list of channels"),
        (("--gray", "pillow"), "--gray pillow: converts RGB to one channel"),
        (("--rescale", 1), "--rescale 1: changes the units of the mean and the standard deviation"),
        (("--rescale", "1/0"), "'1/0' is not a factor such as 1/255"),
        (("--normalization", "none", "--mean", "0.5"), "--normalization none: has no mean"),
        (
            ("--normalization", "none", "--rescale", "1/255"),
            "none: has no scale; leave --rescale out",
        ),
        (("--mean", "0.5", "--mean-255", "127"), "--mean-255: is the same as --mean"),
        (("--dtype", "uint16", "--resize", "torchvision-uint8-bilinear"), "resizes uint8 images"),
    ):
        message, *more = (message,) if isinstance(message, str) else message
        check_one_line(run(*words, *options), message, *more)
    assert list(tmp_path.iterdir()) == []
    values = json.loads(replace(CONTRACT, fit="letterbox", pad=(0.0,) * 3).to_json())
    assert read_contract(json.dumps(values), "m").pad == (0.0, 0.0, 0.0)
    for wrong in ({"pad": None}, {"fit": "stretch"}):
        with pytest.raises(InputError, match="its contract contradicts itself"):
            read_contract(json.dumps({**values, **wrong}), "m")
    assert values["schema"] == 2  # so that earlier readers, which would stretch, refuse it
    with pytest.raises(InputError, match=r"contradicts itself \(--pad 1e\+09,-5,300: must be in"):
        read_contract(json.dumps({**values, "pad": [1e9, -5, 300]}), "m")
    with pytest.raises(InputError, match="'fit' is wrong"):
        read_contract(json.dumps({**values, "fit": "squeeze"}), "m")
