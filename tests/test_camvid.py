"""Real road scenes and a real trained network, from beside the checkout."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import segdeploy
from segdeploy.adoption.statement import Statement
from segdeploy.contract import IMAGENET_MEAN, IMAGENET_STD
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset

NAME = "deeplabv3_mobilenet_v3_large"


@pytest.fixture(scope="module")
def spec(camvid_weights: Path) -> ModelSpec:
    return ModelSpec(NAME, weights=camvid_weights, size=(360, 480))


@pytest.fixture(scope="module")
def exported(spec: ModelSpec, camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("camvid") / "m.onnx"
    report = segdeploy.export(spec, out, data=camvid)
    assert {max(p.expected.dilation) for p in report.convolutions} == {1, 2, 12, 24, 36}
    assert all(p.holds for p in report.convolutions + report.parity)
    return out


@pytest.fixture(scope="module")
def int8(exported: Path, camvid: Path) -> Path:
    out = exported.with_name("m.int8.onnx")
    return segdeploy.calibrate(exported, camvid, out, limit=16).path


def test_camvid_the_data_set_is_whole(camvid: Path) -> None:
    dataset = open_dataset(camvid)
    assert len(dataset.classes) == 11
    assert [len(dataset.frames(split)) for split in ("train", "val")] == [367, 101]
    for frame in dataset.frames("val", 10):
        image, mask = frame.read()
        assert image.shape == (360, 480, 3)
        assert set(np.unique(mask)) <= {*range(11), 255}


def test_camvid_the_published_miou_is_reached(spec: ModelSpec, camvid: Path) -> None:
    accuracy = segdeploy.evaluate(spec, camvid)
    assert accuracy.frames == 101
    assert 100 * accuracy.miou == pytest.approx(54.28, abs=0.02)
    assert 100 * accuracy.pixel_accuracy == pytest.approx(88.49, abs=0.02)


def test_camvid_a_bare_graph_is_adopted_with_the_normalization_that_its_masks_show(
    exported: Path, camvid: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody states mean, standard deviation or the order of the channels."""
    bare = onnx.load(exported)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    with caplog.at_level(logging.INFO):
        segdeploy.adopt(tmp_path / "bare.onnx", Statement(data=camvid), out=tmp_path / "a.onnx")
    (told,) = (line for line in caplog.messages if "found by trying" in line)
    assert "ImageNet's mean and std in R,G,B has the best mIoU" in told
    found = segdeploy.inspect(tmp_path / "a.onnx").contract
    assert (found.mean, found.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert found.channels == ("R", "G", "B")
    for one in bare.graph.initializer:  # noise instead of the trained weights
        values = numpy_helper.to_array(one)
        if values.ndim == 4:
            noise = np.random.default_rng(0).normal(0, 0.05, values.shape)
            one.CopyFrom(numpy_helper.from_array(noise.astype(np.float32), one.name))
    onnx.save(bare, tmp_path / "noise.onnx")
    with pytest.raises(InputError, match=r"its normalization is unknown, and mIoU does not tell"):
        segdeploy.adopt(tmp_path / "noise.onnx", Statement(data=camvid), out=tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_camvid_int8_stays_near_on_frames_that_it_was_not_calibrated_on(
    exported: Path, int8: Path, camvid: Path
) -> None:
    agreements = []
    with (
        segdeploy.load(exported) as fp32,
        segdeploy.load(int8, reference_execution=True) as quantized,
    ):
        for frame in open_dataset(camvid).frames("val")[::20]:
            image, _ = frame.read()
            agreements.append(np.mean(fp32.predict(image) == quantized.predict(image)))
    assert np.mean(agreements) > 0.97
    assert int8.stat().st_size < 0.30 * exported.stat().st_size


def test_camvid_tensorrt_rtx_builds_both_with_every_dilation(
    exported: Path, int8: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    for path in (exported, int8):
        report = segdeploy.build_engine(path, tmp_path / "m.engine", targets=["sm86", "sm89"])
        # 70, and the pooled branch's share of the projection; on the 23x30 map all taps but the
        # center of rate 36 are dead, and the upper and lower ones of rate 24.
        assert len(report.convolutions) == 71
        assert all(proof.holds for proof in report.convolutions)
        assert {max(p.found.dilation) for p in report.convolutions} == {1, 2, 12, 24}
