"""Each resize kernel gives what the library that it is named after gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize as torchvision_resize

import segdeploy
from segdeploy.adoption.statement import Statement
from segdeploy.contract import RESIZE_KERNELS
from segdeploy.models.dataset import open_dataset
from segdeploy.preprocessing.preprocess import preprocess
from segdeploy.resize_kernels import pillow
from segdeploy.resize_kernels.kernels import KERNELS, resize

from .conftest import CONTRACT, check_one_line

PAIRS = 300
DTYPES = (np.uint8, np.uint16, np.float32)
OPENCV = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
}
# Vendor code in OpenCV's wheels (IPP) rounds otherwise: the largest difference, relative to the
# largest value of floats and in steps of integers, and the largest share of values that differ.
OPENCV_ROUNDS = {
    ("linear", np.uint16): (1, 0.07),
    ("linear", np.float32): (2e-5, 1),
    ("area", np.float32): (3e-7, 1),
    ("cubic", np.uint8): (1, 0.07),
    ("cubic", np.uint16): (1, 0.07),
    ("cubic", np.float32): (2e-5, 1),
}
TORCH = {
    "torch-nearest": ({"mode": "nearest"}, 0.0),
    "torch-nearest-exact": ({"mode": "nearest-exact"}, 0.0),
    "torch-bilinear": ({"mode": "bilinear"}, 2e-5),
    "torch-bilinear-align-corners": ({"mode": "bilinear", "align_corners": True}, 1e-6),
    "torch-bilinear-antialias": ({"mode": "bilinear", "antialias": True}, 2e-5),
    "torch-bicubic": ({"mode": "bicubic"}, 2e-5),
    "torch-bicubic-align-corners": ({"mode": "bicubic", "align_corners": True}, 5e-6),
    "torch-bicubic-antialias": ({"mode": "bicubic", "antialias": True}, 2e-5),
}


def cases(dtype: type, channels: tuple[int, ...]) -> Iterator[tuple[NDArray, tuple[int, int]]]:
    """Images of noise, each with a target size: up, down, halves, thirds and one-pixel sides."""
    rng = np.random.default_rng(0)
    for index in range(PAIRS):
        height, width, *target = (int(side) for side in rng.integers(1, 160, 4))
        if index % 7 in (0, 1):
            parts = 2 + index % 7
            target = [max(1, height // parts), max(1, width // parts)]
            height, width = parts * target[0], parts * target[1]
        count = channels[index % len(channels)]
        shape = (height, width) if count == 1 else (height, width, count)
        if dtype == np.float32:
            image = rng.random(shape, np.float32)
        else:
            image = rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
        yield image, (target[0], target[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["nearest", *pillow.FILTERS])
def test_resize_kernels_pillows_filters_equal_pillow(name: str, dtype: type) -> None:
    """To the bit; a multi-channel image of Pillow has bytes."""
    for image, size in cases(dtype, (1, 3) if dtype == np.uint8 else (1,)):
        expected = Image.fromarray(image).resize(size[::-1], Image.Resampling[name.upper()])
        if name != "nearest":  # in numpy, where `resize` would ask Pillow itself
            found = pillow.filtered(image, size, pillow.FILTERS[name], before_13=False)
            assert np.array_equal(found, np.asarray(expected))
        assert np.array_equal(resize(image, size, f"pillow-{name}"), np.asarray(expected))


@pytest.mark.parametrize("name", list(pillow.FILTERS))
def test_resize_kernels_earlier_pillow_begins_with_the_columns(name: str) -> None:
    """Two resizes of Pillow, each of one axis, have a known order whatever the version."""
    by = Image.Resampling[name.upper()]
    differing = 0
    for image, (height, width) in cases(np.uint8, (3,)):
        wide = Image.fromarray(image).resize((width, image.shape[0]), by)
        expected = np.asarray(wide.resize((width, height), by))
        assert np.array_equal(resize(image, (height, width), f"pillow-pre13-{name}"), expected)
        differing += not np.array_equal(resize(image, (height, width), f"pillow-{name}"), expected)
    assert differing > (0 if name == "box" else 10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(OPENCV))
def test_resize_kernels_opencvs_kernels_equal_opencv(name: str, dtype: type) -> None:
    most, most_differing = OPENCV_ROUNDS.get((name, dtype), (0, 0))
    values = differing = 0
    for image, size in cases(dtype, (1, 3, 4)):
        expected = cv2.resize(image, size[::-1], interpolation=OPENCV[name])
        off = np.abs(resize(image, size, f"opencv-{name}").astype(np.float64) - expected)
        assert off.max() <= most
        values += off.size
        differing += int(np.count_nonzero(off))
    assert differing <= most_differing * values


@pytest.mark.parametrize("name", list(TORCH))
def test_resize_kernels_pytorchs_kernels_equal_pytorch(name: str) -> None:
    settings, most = TORCH[name]
    for image, size in cases(np.float32, (1, 3, 4)):
        if size[1] == 1 and "antialias" in name:
            continue  # PyTorch's own two passes differ from its one call there
        tensor = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)[None].contiguous()
        expected = functional.interpolate(tensor, size, **settings)[0].permute(1, 2, 0).numpy()
        found = resize(image, size, name).reshape(expected.shape)
        assert np.abs(found - expected).max() <= most


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_resize_kernels_torchvisions_bytes_equal_torchvision(name: str) -> None:
    mode = InterpolationMode[name.upper()]
    for image, size in cases(np.uint8, (1, 3, 4)):
        tensor = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1).contiguous()
        expected = torchvision_resize(tensor, list(size), mode, antialias=True)
        found = resize(image, size, f"torchvision-uint8-{name}")
        assert np.array_equal(np.atleast_3d(found), expected.permute(1, 2, 0).numpy())


def test_resize_kernels_any_number_of_channels_is_each_channel_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (41, 67, 7)).astype(np.uint8)
    for name in RESIZE_KERNELS:
        found = resize(image, (24, 90), name)
        alone = [resize(image[..., channel], (24, 90), name) for channel in range(7)]
        assert np.array_equal(found, np.stack(alone, -1)), name


def test_resize_kernels_the_contracts_names_are_the_kernels() -> None:
    assert tuple(sorted(KERNELS)) == tuple(sorted(RESIZE_KERNELS))


def test_resize_kernels_what_cannot_be_resized_is_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        resize(np.zeros((4, 4), np.int64), (2, 2), "opencv-linear")
    with pytest.raises(ValueError, match="uint8 images, and this image is uint16"):
        resize(np.zeros((4, 4), np.uint16), (2, 2), "torchvision-uint8-bilinear")
    with pytest.raises(KeyError):
        resize(np.zeros((4, 4), np.uint8), (2, 2), "lanczos")


def test_resize_kernels_the_contract_decides_what_the_network_sees(
    checkpoint: Path, graph: Path, dataset: Path, tmp_path: Path
) -> None:
    image, _ = open_dataset(dataset).frames("val")[0].read()
    usual = preprocess(image, replace(CONTRACT, size=(48, 64)))
    seen = preprocess(image, replace(CONTRACT, size=(48, 64), resize="opencv-linear"))
    pixels = cv2.resize(image, (64, 48), interpolation=cv2.INTER_LINEAR)
    expected = preprocess(pixels, replace(CONTRACT, size=(48, 64)))
    assert np.array_equal(seen, expected)
    assert not np.array_equal(seen, usual)
    stated = Statement(like=graph, preprocessing={"resize": "opencv-linear"})
    adopted = segdeploy.adopt(graph, stated, out=tmp_path / "m.onnx")
    with segdeploy.load(adopted) as network:
        assert network.contract.resize == "opencv-linear"
        assert np.array_equal(network.prepare(image), network.prepare(pixels))


def test_resize_kernels_from_the_command_line(
    run, graph: Path, dataset: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.onnx"
    options = ("--data", dataset, "--size", "48x64", "--width", 8, "--stride", 2)
    ran = run("export", "deeplabv3", *options, "--resize", "opencv-area", "-o", out)
    assert ran.code == 0
    assert segdeploy.inspect(out).contract.resize == "opencv-area"
    assert run("export", checkpoint, "--resize", "opencv-area", "-o", tmp_path / "c.onnx").code == 0
    assert segdeploy.inspect(tmp_path / "c.onnx").contract.resize == "opencv-area"
    ran = run("bench", out, "--reference", graph, "--data", dataset, "--seconds", "0.1")
    check_one_line(ran, "its resize is opencv-area, but the reference has pillow-bilinear")
