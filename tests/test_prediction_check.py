"""`contract check --predict`: what explains that a user's pipeline gives other labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import segdeploy
from segdeploy.contract import IMAGENET_MEAN, IMAGENET_STD
from segdeploy.errors import InputError
from segdeploy.models import scenes

from .conftest import SIZE, Ran, check_one_line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Road scenes of another size than the network's input."""
    made = tmp_path_factory.mktemp("images")
    for seed in range(3):
        image = scenes.draw_scene(np.random.default_rng(seed), (110, 140))[0]
        Image.fromarray(image).save(made / f"{seed}.png")
    return made


Pipeline = Callable[[np.ndarray], np.ndarray]


def pipeline(graph: Path, **mistake: Any) -> Pipeline:
    """A pipeline of Pillow, PyTorch and ONNX Runtime, with one mistake."""
    session = onnxruntime.InferenceSession(str(graph))
    mean, std = (np.array(one, np.float32) for one in (IMAGENET_MEAN, IMAGENET_STD))

    def predict(image: np.ndarray) -> np.ndarray:
        size = mistake.get("size", SIZE)
        if mistake.get("opencv"):
            resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        else:
            kernel = mistake.get("kernel", Image.BILINEAR)
            resized = np.asarray(Image.fromarray(image).resize(size[::-1], kernel))
        if mistake.get("reversed"):
            resized = resized[:, :, ::-1]
        values = resized / np.float32(mistake.get("divisor", 255))
        made = ((values - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
        (scores,) = session.run(None, {session.get_inputs()[0].name: made})
        if mistake.get("nearest"):
            labels = scores[0].argmax(0).astype(np.uint8)
            return np.asarray(Image.fromarray(labels).resize(image.shape[1::-1], Image.NEAREST))
        aligned = bool(mistake.get("aligned"))
        enlarged = F.interpolate(
            torch.from_numpy(scores), image.shape[:2], mode="bilinear", align_corners=aligned
        )
        return enlarged[0].argmax(0).numpy() + mistake.get("offset", 0)

    return predict


def test_prediction_check_a_pipeline_without_a_mistake_is_equal(graph: Path, folder: Path) -> None:
    found = segdeploy.check_predictions(graph, pipeline(graph), folder)
    assert found.is_equal
    assert found.frames == 3
    assert found.suspects == {}


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ({"reversed": True}, "the channels are B,G,R"),
        ({"divisor": 1}, "values are not divided by 255"),
        ({"divisor": 255 * 255}, "values are divided by 255 twice"),
        ({"kernel": Image.NEAREST}, "the resize kernel is pillow-nearest"),
        ({"opencv": True}, "the resize kernel is opencv-linear"),
        ({"offset": 1}, "labels are +1"),
        ({"nearest": True}, "labels are enlarged by nearest neighbor, not the scores"),
        ({"aligned": True}, "scores are enlarged with align_corners"),
    ],
)
def test_prediction_check_a_mistake_is_named(
    graph: Path, folder: Path, mistake: dict[str, Any], told: str
) -> None:
    found = segdeploy.check_predictions(graph, pipeline(graph, **mistake), folder)
    assert not found.is_equal
    assert found.explained == told
    assert next(iter(found.suspects)) == told
    assert found.suspects[told] > found.agreement


def test_prediction_check_two_mistakes_are_not_called_one(graph: Path, folder: Path) -> None:
    wrong = pipeline(graph, reversed=True, offset=1)
    found = segdeploy.check_predictions(graph, wrong, folder)
    assert not found.is_equal
    assert found.explained is None


def test_prediction_check_labels_of_the_networks_size_are_compared(
    graph: Path, folder: Path
) -> None:
    session = onnxruntime.InferenceSession(str(graph))

    def predict(image: np.ndarray) -> np.ndarray:
        with segdeploy.load(graph) as network:
            made = network.prepare(image)
        (scores,) = session.run(None, {session.get_inputs()[0].name: made})
        return scores.argmax(1)

    assert segdeploy.check_predictions(graph, predict, folder).is_equal
    wrong = segdeploy.check_predictions(
        graph, lambda image: predict(image[:, :, ::-1].copy()), folder
    )
    assert wrong.explained == "the channels are B,G,R"


@pytest.mark.parametrize(
    ("predict", "told"),
    [
        (lambda image: 1 / 0, "failed on an image (ZeroDivisionError"),
        (lambda image: image, "labels are (H, W) of integers"),
        (lambda image: np.full(image.shape[:2], 0.5), "labels are (H, W) of integers"),
        (lambda image: np.full(image.shape[:2], 300), "labels of 300 to 300, not 0..255"),
        (lambda image: np.zeros((3, 5), int), "they must have the size of the image"),
    ],
)
def test_prediction_check_what_is_no_pipeline_is_refused(
    graph: Path, folder: Path, predict: Pipeline, told: str
) -> None:
    with pytest.raises(InputError) as caught:
        segdeploy.check_predictions(graph, predict, folder)
    assert told in str(caught.value)


def test_prediction_check_from_the_command_line(
    graph: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Ran],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their_pipeline.py").write_text(
        "import segdeploy\n"
        f"network = segdeploy.load({str(graph)!r})\n"
        "def right(image):\n    return network.predict(image)\n"
        "def wrong(image):\n    return network.predict(image[:, :, ::-1].copy())\n"
    )
    said = ("contract", "check", graph, "--data", folder)
    ran = run(*said, "--predict", "their_pipeline:right")
    assert ran.code == 0
    assert "100.000 % of the labels on 3 images are those of their_pipeline:right" in ran.out
    ran = run(*said, "--predict", "their_pipeline:wrong")
    assert ran.code == 1
    assert "explained: in their_pipeline:wrong, the channels are B,G,R" in ran.out
    check_one_line(run(*said), "give --with MODULE:FUNCTION, or --predict MODULE:FUNCTION")


def test_prediction_check_a_pipeline_that_changes_its_image_is_compared_on_a_copy(
    graph: Path, folder: Path
) -> None:
    own = pipeline(graph)

    def predict(image: np.ndarray) -> np.ndarray:
        image[...] = image[..., ::-1].copy()
        return own(image)

    found = segdeploy.check_predictions(graph, predict, folder)
    assert not found.is_equal
    assert found.explained == "the channels are B,G,R"


def test_prediction_check_labels_of_other_types_are_taken(graph: Path, folder: Path) -> None:
    own = pipeline(graph)
    for form in (
        lambda labels: labels.astype(np.float32),
        lambda labels: labels[None, :, :, None],
        lambda labels: torch.from_numpy(labels)[None],
    ):
        assert segdeploy.check_predictions(graph, lambda x, f=form: f(own(x)), folder).is_equal
    found = segdeploy.check_predictions(graph, lambda x: own(x).astype(np.int64) - 1, folder)
    assert found.explained == "labels are -1, and 0 is ignored"  # -1 is the ignored class
    wrapped = segdeploy.check_predictions(graph, lambda x: own(x).astype(np.uint8) - 1, folder)
    assert wrapped.explained == "labels are -1, and 0 is ignored"


def test_prediction_check_a_random_pipeline_and_one_class_are_told(
    graph: Path, folder: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    with pytest.raises(InputError, match="gives other labels for the same image in another call"):
        segdeploy.check_predictions(
            graph, lambda image: np.full(image.shape[:2], next(calls) % 2), folder
        )
    found = segdeploy.check_predictions(graph, lambda x: np.zeros(x.shape[:2], bool), folder)
    assert found.classes == 1
    monkeypatch.syspath_prepend(str(folder))
    (folder / "one_class.py").write_text(
        "import numpy\ndef predict(image):\n    return numpy.zeros(image.shape[:2], int)\n"
    )
    ran = run("contract", "check", graph, "--predict", "one_class:predict", "--data", folder)
    assert "all labels are of one class, so that equal labels prove nothing" in ran.out
