"""Contracts that are inferred from preprocessing functions, which are asked as black boxes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import segdeploy
from segdeploy.adoption.statement import Statement
from segdeploy.contract_inference.function import Preprocessing
from segdeploy.contract_inference.infer import infer
from segdeploy.contract_statement import read_statement, with_stated
from segdeploy.errors import InputError
from segdeploy.preprocessing.preprocess import preprocess

from .conftest import CONTRACT, Ran, check_one_line
from .test_pipelines import PIPELINES, Pipeline, planes

NAMES = {1: ("gray",), 3: ("R", "G", "B"), 4: ("nir", "red", "green", "blue")}
# Resizes to 520 pixels, which takes seconds here; its parts are those of other functions.
SLOW = ("torchvision, transforms() of its weights",)


def images_of(pipeline: Pipeline) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    most = int(np.iinfo(pipeline.dtype).max) + 1
    sizes = [rng.integers(pipeline.least, 260, 2) for _ in range(12)]
    return [
        rng.integers(0, most, (*size, pipeline.channels)).astype(pipeline.dtype) for size in sizes
    ]


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in SLOW])
def test_contract_inference_of_every_pipeline_is_exact(name: str) -> None:
    """The contract is found in every field that shows, and holds for sizes that were not asked."""
    pipeline = PIPELINES[name]
    channels, images = NAMES[pipeline.channels], images_of(pipeline)
    function = Preprocessing(pipeline.run, name, channels)
    found = infer(function, images, channels=channels, dtype=pipeline.dtype)
    assert found.is_exact, (found.largest, found.share, found.stated)
    assert found.calls < 500
    stated = {k: _frozen(v) for k, v in json.loads(json.dumps(found.stated)).items()}
    again = with_stated(CONTRACT.stretched_to(stated.pop("size")), stated)
    for image in images[:3]:
        assert np.array_equal(preprocess(image, again), preprocess(image, found.contract))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("form", ["array", "pillow", "path", "batch", "last", "mapping", "tensor"])
def test_contract_inference_takes_every_form(form: str) -> None:
    def run(given: Any) -> Any:
        if form == "pillow":
            assert isinstance(given, Image.Image)
        if form == "path":
            given = cv2.imread(str(given))[:, :, ::-1]
        if form in ("array", "path") and not isinstance(given, np.ndarray):
            raise TypeError(given)
        pixels = np.asarray(given)
        made = planes(cv2.resize(pixels, (64, 48), interpolation=cv2.INTER_LINEAR)) / 255
        made = made.astype(np.float32)
        if form == "tensor":
            return torch.from_numpy(made)
        if form == "mapping":
            return {"pixel_values": made, "mask": np.ones(3)}
        return {"last": made[0].transpose(1, 2, 0), "batch": made}.get(form, made[0])

    found = infer(Preprocessing(run, "mine"), images_of(PIPELINES["letterbox at 114"]))
    assert found.is_exact
    assert found.contract.size == (48, 64)
    assert (found.contract.resize, found.contract.mean) == ("opencv-linear", (0, 0, 0))


def resized(pixels: np.ndarray) -> np.ndarray:
    return cv2.resize(np.asarray(pixels), (64, 64), interpolation=cv2.INTER_LINEAR)


def lanczos(pixels: np.ndarray) -> np.ndarray:
    """A kernel that no contract has."""
    made = cv2.resize(np.asarray(pixels), (64, 64), interpolation=cv2.INTER_LANCZOS4)
    return planes(made) / np.float32(255)


def test_contract_inference_of_an_unknown_kernel_tells_the_difference() -> None:
    images = images_of(PIPELINES["letterbox at 114"])
    found = infer(Preprocessing(lanczos, "mine"), images)
    assert not found.is_exact
    assert found.contract.fit == "stretch"
    differences = [
        np.abs(preprocess(image, found.contract)[0] - lanczos(image)[0]) for image in images
    ]
    assert found.largest == pytest.approx(max(float(one.max()) for one in differences))
    assert found.share == pytest.approx(np.mean([(one > 0).mean() for one in differences]))


RNG = np.random.default_rng(0)
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "random": (
        *(lambda p: planes(resized(p)) + RNG.random(), "gives another input for the same image"),
    ),
    "fails": (lambda p: 1 / 0, r"failed on an image \(ZeroDivisionError: division by zero\)"),
    "another shape": (lambda p: np.zeros(3, np.float32), r"returns ndarray of shape \(3,\)"),
    "text": (lambda p: "x", "returns str of shape"),
    "NaN": (lambda p: planes(resized(p)) * np.nan, "returns NaN or infinity"),
    "mixed channels": (
        lambda p: planes(resized(p) @ np.float32([[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])),
        "mixes the channels",
    ),
    "gamma": (lambda p: planes(resized(p) ** np.float32(0.5)), "normalizes by no known formula"),
    "mirrored border": (
        lambda p: planes(
            cv2.copyMakeBorder(resized(p), 0, 8, 0, 0, cv2.BORDER_CONSTANT, value=(1, 2, 3))
        ),
        "a rule that no contract states",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_contract_inference_what_cannot_be_stated_is_named(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(InputError, match=f"^mine: .*{reason}|^{reason}|{reason}"):
        infer(Preprocessing(function, "mine"), [])


def by_opencv(given: Any) -> np.ndarray:
    """Preprocessing as it stands in many repositories."""
    bgr = given[:, :, ::-1] if isinstance(given, np.ndarray) else cv2.imread(str(given))
    made = cv2.resize(bgr, (64, 48), interpolation=cv2.INTER_LINEAR) / np.float32(255)
    return planes((made - np.float32(0.5)) / np.float32(0.25))


BY_OPENCV = "tests.test_contract_inference:by_opencv"
RIGHT = {
    **{"channels": ("B", "G", "R"), "resize": "opencv-linear", "normalization": "f32-div"},
    **{"mean": (0.5,) * 3, "std": (0.25,) * 3},
}
WRONG = {
    "channels": ("R", "G", "B"),
    "mean": (0.4, 0.5, 0.5),
    "std": (0.5,) * 3,
    "resize": "pillow-bilinear",
    "normalization": "f32-fused-mul",
}


def test_contract_inference_from_the_command_line(
    run: Callable[..., Ran], dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c.json"
    ran = run("contract", "infer", "--with", BY_OPENCV, "--data", dataset, "-o", out, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["is_exact"]
    assert read_statement(out) == {**RIGHT, "scale": 1 / 255, "fit": "stretch", "size": (48, 64)}
    graph = tmp_path / "m.onnx"
    words = ("export", "deeplabv3", "--num-classes", 3, "--width", 4, "--contract", out)
    assert run(*words, "-o", graph).code == 0
    folder = dataset / "val" / "images"
    for data in (dataset, folder):
        ran = run("contract", "check", graph, "--with", BY_OPENCV, "--data", data)
        assert (ran.code, ran.err) == (0, "")
        assert f"gives the input of {BY_OPENCV} to the bit" in ran.out
    shown = json.loads(run("contract", "show", graph).out)
    assert shown["channels"] == ["B", "G", "R"]
    assert run("contract", "init", "--size", "48x64", "-o", tmp_path / "i.json").code == 0
    assert read_statement(tmp_path / "i.json")["mean"] == (0.485, 0.456, 0.406)
    ran = run("contract", "infer", "--with", f"{__name__}:lanczos", "--data", dataset, "-o", out)
    assert ran.code == 1
    assert "the closest contract" in ran.out
    for bad, reason in (
        (("--with", "tests.nowhere:f", "--data", dataset), "module tests.nowhere cannot be impor"),
        (("--with", "tests.conftest:f", "--data", dataset), "has no callable 'f'"),
        (("--with", BY_OPENCV, "--data", tmp_path / "none"), "none"),
    ):
        none = tmp_path / "none.json"
        check_one_line(run("contract", "infer", *bad, "-o", none), reason)
        assert not none.exists()


@pytest.mark.parametrize("field", WRONG)
def test_contract_inference_a_check_names_the_field_that_differs(
    field: str, dataset: Path, graph: Path, tmp_path: Path
) -> None:
    stated = Statement(like=graph, preprocessing={**RIGHT, field: WRONG[field]})
    path = segdeploy.adopt(graph, stated, out=tmp_path / "m.onnx")
    found = segdeploy.check_contract(path, by_opencv, dataset, limit=3)
    assert not found.is_exact
    assert found.explained
    assert set(found.fields) == {field}
    theirs = json.loads(json.dumps(RIGHT[field]))
    assert found.fields[field][1] == theirs


REAL = [
    cv2.resize(np.random.default_rng(at).integers(0, 256, (9, 12, 3)).astype(np.uint8), (160, 120),
               interpolation=cv2.INTER_CUBIC)
    for at in range(3)
]  # fmt: skip


def stretched(image: np.ndarray, kernel: int = cv2.INTER_LINEAR) -> np.ndarray:
    made = cv2.resize(image, (64, 48), interpolation=kernel).astype(np.float32) / 255
    return made.transpose(2, 0, 1)


def test_contract_inference_a_function_may_change_its_image() -> None:
    def run(image: np.ndarray) -> np.ndarray:
        image[...] = image[..., ::-1].copy()
        made = stretched(image)
        image[...] = 0
        return made

    found = infer(Preprocessing(run, "f"), REAL)
    assert found.is_exact
    assert found.contract.channels == ("B", "G", "R")


def test_contract_inference_a_kernel_that_depends_on_the_size_is_told() -> None:
    """All real images are shrunk by area; only the probes show the other kernel."""

    def run(image: np.ndarray) -> np.ndarray:
        return stretched(image, cv2.INTER_AREA if image.shape[0] > 96 else cv2.INTER_LINEAR)

    found = infer(Preprocessing(run, "f"), REAL)
    assert found.contract.resize == "opencv-area"
    assert (found.share, found.is_exact) == (0, False)
    assert found.probes > 3


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image[:, ::-1],
        lambda image: image[::-1],
        lambda image: cv2.GaussianBlur(image, (31, 31), 0),
    ],
)
def test_contract_inference_another_image_is_refused_and_not_written(
    change: Callable[[np.ndarray], np.ndarray],
) -> None:
    with pytest.raises(InputError, match="f: no contract states what it does; the closest one"):
        infer(
            Preprocessing(lambda image: stretched(np.ascontiguousarray(change(image))), "f"), REAL
        )


def test_contract_inference_ragged_lists_and_rare_randomness_are_refused() -> None:
    with pytest.raises(InputError, match="f: returns lists of different lengths"):
        infer(Preprocessing(lambda image: [[1, 2], [3]], "f"), REAL)
    calls = iter(range(10_000))

    def rare(image: np.ndarray) -> np.ndarray:
        return stretched(image + np.uint8(next(calls) % 5 == 4))

    with pytest.raises(InputError, match="gives another input for the same image"):
        infer(Preprocessing(rare, "f"), REAL)
