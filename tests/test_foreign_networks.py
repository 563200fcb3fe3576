"""Networks that others wrote get through, and give what PyTorch gives.

`benchmarks/foreign_networks.py` takes each of them through every step; here each is exported, and
two go the whole way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import segdeploy
from segdeploy.model_spec import ModelSpec
from segdeploy.profiles import Bounds

from . import foreign_networks
from .foreign_networks import NETWORKS, logits_of

SIZE = (128, 160)
# Heads and stages that lead nowhere.
LEFT_OUT = {
    "tv_deeplabv3_mobilenet": ("aux_classifier",),
    "tv_fcn_resnet50": ("aux_classifier",),
    "hf_upernet": ("auxiliary_head",),
    "hf_mobilenet_v2": ("mobilenet_v2.conv_1x1",),
}


def spec_of(name: str) -> ModelSpec:
    return ModelSpec(f"{foreign_networks.__name__}:{name}", size=SIZE)


def check_logits(path: Path, name: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(shape, generator=generator)
    images[:, :, :20] = -2
    with torch.no_grad():
        expected = logits_of(NETWORKS[name](), images).numpy()
    session = onnxruntime.InferenceSession(str(path))
    (found,) = session.run(None, {"image": images.numpy()})
    assert np.abs(found - expected).max() < 2e-5 * np.ptp(expected)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_foreign_networks_a_network_of_others_is_exported_and_proven(
    name: str, tmp_path: Path
) -> None:
    report = segdeploy.export(spec_of(name), tmp_path / "m.onnx")
    assert all(proof.holds for proof in report.convolutions)
    assert report.unmatched_convolutions == ()
    skipped = [line for step in report.optimization.steps for line in step.skipped]
    assert not any(line.startswith("undone") for line in skipped)
    assert len(report.contract.classes) == foreign_networks.CLASSES
    if not name.startswith("smp_pspnet_mobilenet"):  # whose encoder has seven stages too many
        assert report.left_out == LEFT_OUT.get(name, ())
    check_logits(tmp_path / "m.onnx", name, (1, 3, *SIZE))


@pytest.mark.parametrize("name", ["smp_deeplabv3plus_resnet18_16", "hf_segformer"])
def test_foreign_networks_a_network_of_others_goes_the_whole_way(
    name: str, dataset: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    bounds = Bounds((96, 96), (256, 256), 2)
    dynamic = tmp_path / "dynamic.onnx"
    segdeploy.export(spec_of(name), dynamic, data=dataset, dynamic=True, bounds=bounds)
    check_logits(dynamic, name, (2, 3, 128, 224))
    fused = tmp_path / "fused.onnx"
    report = segdeploy.export(spec_of(name), fused, scales=(1.0, 1.25), flip=True, output="labels")
    assert all(p.holds for p in report.parity)
    static, int8 = tmp_path / "static.onnx", tmp_path / "int8.onnx"
    segdeploy.export(spec_of(name), static, data=dataset)
    measured = segdeploy.calibrate(static, dataset, int8, limit=4)
    assert measured.int8
    for graph in (static, int8):
        built = segdeploy.build_engine(graph, graph.with_suffix(".engine"), targets=["sm86"])
        assert all(proof.holds for proof in built.convolutions)
