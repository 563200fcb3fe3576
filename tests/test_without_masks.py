"""`calibrate`, `deploy` and engines on a folder of images: agreement with FP32 instead of masks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import segdeploy
from segdeploy.errors import CheckFailed, InputError
from segdeploy.models.metrics import LabelCounts, defined_mean
from segdeploy.models.scenes import write_scenes
from segdeploy.proof.bootstrap import mean_interval

from .conftest import Ran, check_one_line


@pytest.fixture(scope="module")
def folder(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of a data set, without its masks."""
    made = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for image in sorted((dataset / split / "images").iterdir()):
            shutil.copy(image, made / image.name)
    return made


def test_without_masks_calibration_measures_the_labels_of_the_two_graphs(
    graph: Path, folder: Path, tmp_path: Path
) -> None:
    report = segdeploy.calibrate(graph, folder, tmp_path / "int8.onnx")
    found = report.accuracy
    assert not found.is_labeled
    assert found.reference_miou == 1
    assert 0.5 < found.agreement < 1
    assert found.agreement_interval is not None
    assert found.agreement_interval.low <= found.agreement <= found.agreement_interval.high
    # By hand, on the last third of the images, which nothing was chosen on.
    images = sorted(folder.iterdir())
    images = images[len(images) - len(images) // 3 :]
    shares, counts = [], LabelCounts(8, 255)
    with (
        segdeploy.load(graph) as fp32,
        segdeploy.load(report.path, reference_execution=True) as int8,
    ):
        for image in images:
            expected, labels = fp32.predict(image), int8.predict(image)
            shares.append((expected == labels).mean())
            counts.add(expected, labels)
    assert found.frames == len(images)
    assert found.agreement == pytest.approx(np.mean(shares), abs=1e-9)
    assert found.miou == pytest.approx(defined_mean(counts.iou()), abs=1e-9)


def test_without_masks_classes_are_those_of_the_networks_own_labels(
    graph: Path, folder: Path, tmp_path: Path
) -> None:
    report = segdeploy.calibrate(graph, folder, tmp_path / "int8.onnx")
    with segdeploy.load(graph) as network:
        seen = {int(one) for path in folder.iterdir() for one in np.unique(network.predict(path))}
        names = network.contract.classes
    missing = set(report.classes_missing)
    assert {names[one] for one in range(len(names)) if one not in seen} <= missing
    assert len(missing) < len(names)


def test_without_masks_a_budget_of_agreement_keeps_layers_out_of_int8(
    graph: Path, folder: Path, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    plain = segdeploy.calibrate(graph, folder, tmp_path / "plain.onnx").accuracy.agreement
    wanted = (1 + plain) / 2
    report = segdeploy.calibrate(graph, folder, tmp_path / "kept.onnx", min_agreement=wanted)
    assert report.accuracy.agreement >= wanted
    assert report.kept
    with pytest.raises(CheckFailed, match="% of the labels"):
        segdeploy.calibrate(graph, folder, tmp_path / "none.onnx", min_agreement=1.0)
    assert not (tmp_path / "none.onnx").exists()
    both = ("--max-miou-drop", 1, "--min-agreement", 0.9)
    said = ("calibrate", graph, "--data", folder, "-o", tmp_path / "x.onnx")
    check_one_line(run(*said, *both), "--max-miou-drop and --min-agreement: give one of the two")
    shown = run(*said)
    assert "no masks: mIoU between FP32's labels and these" in shown.out
    assert "with 95 % confidence" in shown.out


def test_without_masks_agreement_is_a_budget_of_labeled_frames_too(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    report = segdeploy.calibrate(graph, dataset, tmp_path / "i.onnx", min_agreement=0.5)
    assert report.accuracy.is_labeled
    assert report.accuracy.agreement >= 0.5


def test_without_masks_deploy_ships_what_keeps_the_agreement(
    checkpoint: Path, folder: Path, tmp_path: Path, tensorrt_rtx: object, run: Callable[..., Ran]
) -> None:
    out = tmp_path / "dist"
    made = segdeploy.deploy(
        checkpoint, folder, out, targets=["sm86"], min_agreement=0.5, seconds=0.2
    )
    assert made.passes
    assert made.chosen is not None
    assert "50 % of the labels are those of the FP32 network" in (out / "README.md").read_text()
    rows = json.loads((out / "report" / "bench.json").read_text())["rows"]
    assert all(row["passes"] for row in rows if not row["name"].endswith(".engine"))
    said = ("deploy", checkpoint, "--data", folder, "--target", "sm86", "-o", tmp_path / "x")
    check_one_line(run(*said, "--max-miou-drop", 1), "has no masks, so no mIoU", "--min-agreement")
    with pytest.raises(InputError, match="give one of the two"):
        segdeploy.deploy(
            checkpoint, folder, out, targets=["sm86"], min_agreement=0.5, max_miou_drop=1.0
        )


def test_without_masks_deploy_takes_gray_images_of_16_bits(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    """A checkpoint knows its size and its images: none is read as RGB before."""
    deep = tmp_path / "deep"
    list(write_scenes(deep, {"train": 4, "val": 3}, (48, 64), channels=("gray",), dtype="uint16"))
    trained = tmp_path / "gray.safetensors"
    said = ("train", "deeplabv3", "--data", deep, "--size", "48x64", "--width", 4, "--stride", 2)
    assert run(*said, "--epochs", 1, "-o", trained).code == 0
    images = deep / "val" / "images"
    planned = ("--target", "sm86", "--dry-run", "-o", tmp_path / "dist")
    ran = run("deploy", trained, "--data", images, *planned)
    assert ran.code == 0, ran
    assert "calibrate to int8" in ran.out


def test_without_masks_the_interval_is_that_of_the_mean() -> None:
    shares = list(np.random.default_rng(0).uniform(0.9, 1, 40))
    interval = mean_interval(shares)
    assert interval is not None
    half = 1.96 * np.std(shares) / np.sqrt(len(shares))
    assert interval.low == pytest.approx(np.mean(shares) - half, abs=2e-3)
    assert interval.high == pytest.approx(np.mean(shares) + half, abs=2e-3)
    assert mean_interval([0.5]) is None
