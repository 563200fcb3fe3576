"""One network has one number of multiply-accumulates, whichever command counts: PyTorch's."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import segdeploy
from segdeploy.artifact import open_artifact
from segdeploy.benchmark.roofline import work_of, work_of_network
from segdeploy.calibration.layers import fix_shape
from segdeploy.model_spec import ModelSpec
from segdeploy.models.summary import anatomy
from segdeploy.network_loading import load_network
from segdeploy.onnx_graph.model_file import load_onnx
from segdeploy.optimizer.cost import cost_of
from segdeploy.runtime.torch_session import TorchSession

SIZE = (24, 32)


class Decoder(nn.Sequential):
    """Dilated, grouped, strided and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1),
        )


def counted_by_pytorch(module: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 3, *SIZE))
    return counter.get_total_flops() // 2


def decoder() -> nn.Module:
    torch.manual_seed(0)
    return Decoder()


def test_multiply_accumulates_are_pytorchs_in_every_command(tmp_path: Path) -> None:
    expected = counted_by_pytorch(decoder())
    spec = ModelSpec("tests.test_multiply_accumulates:decoder", size=SIZE)
    loaded = load_network(spec)
    assert anatomy(loaded.network, SIZE).macs == expected
    graph = segdeploy.export(spec, tmp_path / "m.onnx", optimized=False).path
    seen = segdeploy.inspect(graph)
    assert seen.macs == expected
    assert [layer.macs for layer in seen.layers] == [
        24 * 32 * 8 * 3 * 9,
        12 * 16 * 8 * 2 * 9,
        12 * 16 * 8 * 4 * 16,
    ]
    shaped = ir.serde.deserialize_model(fix_shape(load_onnx(graph), (1, 3, *SIZE)))
    assert cost_of(shaped).macs == expected


def test_multiply_accumulates_without_padding_count_the_taps_on_pixels(tmp_path: Path) -> None:
    spec = ModelSpec("tests.test_multiply_accumulates:decoder", size=SIZE)
    graph = segdeploy.export(spec, tmp_path / "m.onnx", optimized=False).path
    ones, pixels = torch.ones(1, 1, *SIZE), 0
    # A convolution of ones with ones counts the taps that read a pixel.
    pixels += 8 * 3 * int(nn.functional.conv2d(ones, torch.ones(1, 1, 3, 3), None, 1, 2, 2).sum())
    pixels += 8 * 2 * int(nn.functional.conv2d(ones, torch.ones(1, 1, 3, 3), None, 2, 1).sum())
    pixels += 12 * 16 * 8 * 4 * 16
    work = work_of(open_artifact(graph))
    assert work is not None
    assert sum(work.macs.values()) == pixels
    loaded = load_network(spec)
    with TorchSession(loaded.network, loaded.contract) as session:
        assert work_of_network(session, SIZE).macs == {"fp32": pixels}
