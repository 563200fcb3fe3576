"""How images are prepared is stated, or the file says what was assumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import segdeploy
from segdeploy.adoption.statement import Statement
from segdeploy.contract import PREPROCESSING
from segdeploy.contract_json import read_contract
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.preprocessing.preprocess import preprocess

from .conftest import CONTRACT, Ran, check_one_line

NETWORK = "tests.test_stated_preprocessing:network"
STATED = {"resize": "opencv-linear", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def network(num_classes: int = 8) -> object:
    from segdeploy.models import SemanticSegmentationModel

    return SemanticSegmentationModel(num_classes, width=4)


def test_stated_preprocessing_what_nobody_stated_is_told(
    run: Callable[..., Ran], dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.onnx"
    ran = run("export", NETWORK, "--data", dataset, "--size", "48x64", "-o", out)
    assert ran.code == 0
    (line,) = [one for one in ran.err.splitlines() if "assumed" in one]
    assert (
        "fit stretch, resize pillow-bilinear, channels R,G,B, mean 0.485,0.456,0.406, std 0.229,"
        in line
    )
    assert (
        "--fit (and --pad), --resize, --channels, --mean and --std, or with --contract FILE" in line
    )
    assert segdeploy.inspect(out).contract.assumed == PREPROCESSING
    assert (
        "assumed, since nobody stated it: fit stretch, resize pillow-bilinear"
        in run("inspect", out).out
    )
    verdict = segdeploy.bench([out], reference=out, data=dataset, limit=2)
    assert any("nobody stated how the images are prepared" in note for note in verdict.notes)


def test_stated_preprocessing_is_part_of_every_file(dataset: Path, tmp_path: Path) -> None:
    spec = ModelSpec(NETWORK, size=(48, 64), stated=STATED)
    path = segdeploy.export(spec, tmp_path / "m.onnx", data=dataset).path
    contract = segdeploy.inspect(path).contract
    assert {name: getattr(contract, name) for name in STATED} == STATED
    assert contract.assumed == ("fit", "channels")
    image, _ = open_dataset(dataset).frames("val")[0].read()
    with (
        segdeploy.load(path) as exported,
        segdeploy.load(spec, dataset=open_dataset(dataset)) as own,
    ):
        assert np.array_equal(exported.prepare(image), own.prepare(image))
        assert np.array_equal(exported.prepare(image), preprocess(image, contract))


def test_stated_preprocessing_a_trained_network_assumes_nothing(
    checkpoint: Path, graph: Path, tmp_path: Path
) -> None:
    assert segdeploy.inspect(checkpoint).contract.assumed == ()
    assert segdeploy.inspect(graph).contract.assumed == ()
    out = tmp_path / "m.onnx"
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    stated = Statement(num_classes=8, preprocessing=half)
    segdeploy.adopt(graph, stated, out=out)
    assert segdeploy.inspect(out).contract.assumed == ("fit", "resize", "channels")
    more = {"fit": "stretch", "resize": "opencv-area", "channels": ("B", "G", "R")}
    stated = replace(stated, preprocessing=half | more)
    segdeploy.adopt(graph, stated, out=out)
    assert segdeploy.inspect(out).contract.assumed == ()


def test_stated_preprocessing_that_cannot_be_is_refused(
    run: Callable[..., Ran], checkpoint: Path, graph: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.onnx"
    words = ("export", NETWORK, "--data", dataset, "--size", "48x64", "-o", out)
    ran = run(*words, "--mean", "123.7,116.3,103.5")
    check_one_line(ran, "--mean 123.7,116.3,103.5", "give --mean-255 for values of 0..255")
    check_one_line(run(*words, "--std", "0,1,1"), "--std 0,1,1", "must be a list of numbers")
    check_one_line(run(*words, "--resize", "lanczos"), "'lanczos' is not one of", "opencv-linear")
    ran = run("evaluate", graph, "--data", dataset, "--mean", "0.5,0.5,0.5")
    check_one_line(ran, "leave out --mean; `segdeploy adopt ", "--like")
    assert not out.exists()


def test_stated_preprocessing_of_a_checkpoint_is_restated(
    run: Callable[..., Ran], checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    """A network that was trained on stretched frames can be deployed with another fit."""
    (tmp_path / "c.json").write_text('{"fit": "letterbox", "pad": 114, "min_confidence": 0.3}')
    restated = ("--contract", tmp_path / "c.json", "--resize", "opencv-linear")
    ran = run("export", checkpoint, *restated, "-o", tmp_path / "m.onnx")
    assert ran.code == 0, ran.err
    contract = segdeploy.inspect(tmp_path / "m.onnx").contract
    before = segdeploy.inspect(checkpoint).contract
    assert (contract.fit, contract.pad, contract.resize) == ("letterbox", (114,) * 3, restated[3])
    assert (contract.min_confidence, contract.classes) == (0.3, before.classes)
    answers = []
    for file, words in ((checkpoint, restated), (tmp_path / "m.onnx", ())):
        ran = run("evaluate", file, "--data", dataset, *words, "--json")
        assert ran.code == 0, ran.err
        answers.append(ran.out)
    assert json.loads(answers[0])["miou"] == pytest.approx(json.loads(answers[1])["miou"], abs=1e-3)


def test_stated_preprocessing_a_contract_with_unknown_assumptions_is_refused() -> None:
    values = json.loads(CONTRACT.to_json())
    assert read_contract(json.dumps(values), "m").assumed == ()
    del values["assumed"]  # a file of an earlier version
    assert read_contract(json.dumps(values), "m").assumed == ()
    with pytest.raises(InputError, match="'assumed' is wrong"):
        read_contract(json.dumps({**values, "assumed": ["weather"]}), "m")
    with pytest.raises(InputError, match="'assumed' is wrong"):
        read_contract(json.dumps({**values, "assumed": [["fit"]]}), "m")
