"""The trace proof: what PyTorch executes, whatever its modules' attributes say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

import segdeploy
from segdeploy.errors import CheckFailed
from segdeploy.model_spec import ModelSpec
from segdeploy.profiles import Bounds
from segdeploy.proof.recording import reaches_output, record

SIZE = (24, 32)


class Net(nn.Module):
    """A stem, what a test is about, and a head."""

    def __init__(self, middle: Callable[[], nn.Module]):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = middle()
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.middle(self.stem(x).relu()))


class SetLater(nn.Module):
    """Dilation and padding set after construction, as segmentation_models_pytorch does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.conv.dilation, self.conv.padding = (2, 2), (2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PaddedByHand(nn.Module):
    """TF-"same": a pad on one side, before a convolution that has padding of its own."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value
        self.conv = nn.Conv2d(4, 4, 3, padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 2, 1, 0), value=self.value)
        return F.interpolate(self.conv(x), size=SIZE, mode="nearest")


class ToMultiple(nn.Module):
    """Pads to a multiple of 32, and crops what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % 32, 0, -height % 32))
        return self.conv(x)[:, :, :height, :width]


class Rates(nn.Module):
    """One module with another dilation a call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for rate in (1, 2, 5):
            self.conv.dilation = self.conv.padding = (rate, rate)
            total = total + self.conv(x)
        return total


class Aliased(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class Reentrant(Aliased):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.first, x, use_reentrant=True)


class FunctionalNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        for name in ("mean", "var"):
            self.register_buffer(name, torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(self.conv(x), self.mean, self.var)


class OwnNorm(FunctionalNorm):
    def forward(self, x: Tensor) -> Tensor:
        scale = self.var.rsqrt().view(1, -1, 1, 1)
        return (self.conv(x) - self.mean.view(1, -1, 1, 1)) * scale


def behind(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), module)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.gamma, self.beta = (nn.Parameter(torch.rand(4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.gamma.view(1, -1, 1, 1) + self.beta.view(1, -1, 1, 1)


class WrittenInParts(nn.Module):
    """Branches that are written into parts of one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        joined = x.new_zeros(x.shape)
        joined[:, :2] = self.one(x)
        joined[:, 2:] = self.two(x).relu_()
        return joined


class Conditional(nn.Module):
    """A convolution in each branch of a condition on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.mean() > 0.3, lambda t: self.one(t), lambda t: self.two(t), (x,))


class InInferenceMode(Aliased):
    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward(x)
        with torch.inference_mode():
            return super().forward(x)


class WritesIntoItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).div_(0.2)
        return self.conv(x)


class Dropping(WritesIntoItsInput):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.dropout(x, 0.5))  # on, whatever mode the network is in


class Counting(WritesIntoItsInput):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x) + self.calls


@pytest.mark.parametrize("name", ["Dropping", "Counting"])
def test_recording_a_network_that_is_not_the_same_twice_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="PyTorch itself gives another output for the same image"):
        exported(name, tmp_path)


def test_recording_a_network_may_write_into_its_input(tmp_path: Path) -> None:
    report = exported("WritesIntoItsInput", tmp_path)
    assert all(p.holds and p.limit < 1e-3 for p in report.parity)


class PadsCut(nn.Module):
    """Padding that is padded again, and cut, before a convolution reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.pad(x, (2, 2, 2, 2))[:, :, 1:-1, 1:-1], (1, 0, 0, 1))
        return self.conv(F.pad(x, (0, -1, -1, 0)))


class Pyramid(nn.Module):
    """Adaptive pooling to bins that do not divide the map."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4 * 5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [
            F.interpolate(F.adaptive_avg_pool2d(x, bins), size=x.shape[2:], mode="bilinear")
            for bins in (1, 2, 3, 6)
        ]
        return self.mix(torch.cat([x, *pooled], 1))


MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "set_later": SetLater,
    "padded_by_hand": PaddedByHand,
    "padded_with_ones": lambda: PaddedByHand(1.0),
    "to_multiple": ToMultiple,
    "rates": Rates,
    "aliased": Aliased,
    "reentrant": Reentrant,
    "functional_norm": FunctionalNorm,
    "own_norm": OwnNorm,
    "frozen_norm": lambda: behind(FrozenBatchNorm2d(4)),
    "instance_norm": lambda: behind(nn.InstanceNorm2d(4, track_running_stats=True)),
    "layer_scale": Scaled,
    "pyramid": Pyramid,
    "written_in_parts": WrittenInParts,
    "conditional": Conditional,
    "pads_cut": PadsCut,
    "inference_mode": InInferenceMode,
    "zero_pad": lambda: nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3, stride=2), nn.Upsample(SIZE)
    ),
}


def __getattr__(name: str) -> Callable[[], nn.Module]:
    if name in MIDDLES:
        return lambda: Net(MIDDLES[name]).eval()
    raise AttributeError(name)


def exported(name: str, folder: Path, **options: Any) -> segdeploy.ExportReport:
    return segdeploy.export(
        ModelSpec(f"{__name__}:{name}", size=SIZE), folder / "m.onnx", **options
    )


@pytest.mark.parametrize("name", sorted(MIDDLES))
def test_recording_a_right_graph_gets_through_and_gives_pytorchs_numbers(
    name: str, tmp_path: Path
) -> None:
    report = exported(name, tmp_path)
    assert all(proof.holds for proof in report.convolutions)
    # The branch that did not run while it was recorded is told.
    assert len(report.unmatched_convolutions) == (name == "conditional")
    network = globals().get(name) or __getattr__(name)
    torch.manual_seed(0)
    image = torch.rand(1, 3, *SIZE)
    image[:, :, :5] = 0
    with torch.no_grad():
        expected = network()(image).numpy()
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (found,) = session.run(None, {"image": image.numpy()})
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)


def test_recording_pads_belong_to_their_convolution(tmp_path: Path) -> None:
    proofs = {p.module: p for p in exported("padded_by_hand", tmp_path).convolutions}
    # (1, 0) of its own, and one row above and two columns at the right by hand.
    assert proofs["middle.conv"].expected.padding == (2, 0, 1, 2)
    proofs = {p.module: p for p in exported("padded_with_ones", tmp_path).convolutions}
    assert proofs["middle.conv"].expected.padding == (1, 0, 1, 0)  # ones are no zeros
    proofs = {p.module: p for p in exported("rates", tmp_path).convolutions}
    rates = [proofs[f"middle.conv{n}"].expected.dilation[0] for n in ("", " [2]", " [3]")]
    assert rates == [1, 2, 5]


@pytest.mark.parametrize("name", ["pyramid", "to_multiple", "rates"])
def test_recording_a_dynamic_graph_holds_at_sizes_that_were_never_traced(
    name: str, tmp_path: Path
) -> None:
    report = exported(name, tmp_path, dynamic=True, bounds=Bounds((16, 16), (96, 96), 3))
    assert all(proof.holds for proof in report.convolutions)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    network = __getattr__(name)()
    for shape in ((1, 3, 17, 45), (2, 3, 96, 33)):
        image = torch.rand(shape)
        with torch.no_grad():
            expected = network(image).numpy()
        (found,) = session.run(None, {"image": image.numpy()})
        assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)


class Normalized(nn.Module):
    """Where an image is black the sum is zero, and a tiny constant keeps it from dividing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        return self.head(y / (y.sum(1, keepdim=True) + 1e-9))


def test_recording_a_tiny_constant_survives(tmp_path: Path) -> None:
    torch.manual_seed(3)
    exported("Normalized", tmp_path)
    torch.manual_seed(3)
    network = Normalized().eval()
    image = torch.rand(1, 3, *SIZE)
    image[:, :, :8] = 0  # a black border
    with torch.no_grad():
        expected = network(image).numpy()
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (found,) = session.run(None, {"image": image.numpy()})
    assert np.isfinite(found).all()
    assert np.array_equal(found.argmax(1), expected.argmax(1))


def test_recording_an_image_that_makes_nan_is_named(tmp_path: Path) -> None:
    torch.manual_seed(3)
    with pytest.raises(CheckFailed, match="a white image, PyTorch itself gives NaN or infinity"):
        exported("Overflows", tmp_path)


class Overflows(Normalized):
    """Finite but for what is brighter than anything in noise of ten thousand values."""

    def forward(self, x: Tensor) -> Tensor:
        bright = (x.amin((1, 2, 3), keepdim=True) > 1.5).float()
        return self.head(self.conv(x)) / (1 - bright)


class Branches(nn.Module):
    """Two dilated branches, one with weights that parity cannot see."""

    def __init__(self, change: str | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.change = change
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(3, 4, 3, padding=4, dilation=4)
        for parameter in (*self.one.parameters(), *self.two.parameters()):
            parameter.data *= 1e-6
        self.wide = nn.Conv2d(3, 4, 3, padding=2, dilation=2)
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        change = self.change if torch.compiler.is_compiling() else None
        if change == "dilation":
            two = F.conv2d(x, self.two.weight, self.two.bias, padding=2, dilation=2)
        else:
            two = self.two(x)
        read = x - 2 * two[:, :3] if change == "input" else x
        parts = [two, self.one(read), self.wide(x)]
        if change == "order":
            parts = [parts[1], parts[0], parts[2]]
        joined = F.avg_pool2d(torch.cat(parts, 1), 2)
        corners = change == "corners"
        large = F.interpolate(
            joined * 1e-7, size=x.shape[2:], mode="bilinear", align_corners=corners
        )
        return self.head(large)


def changed(kind: str) -> Callable[[], nn.Module]:
    return lambda: Branches(kind).eval()


changed_dilation, changed_order, changed_input, changed_corners, unchanged = (
    changed(kind) for kind in ("dilation", "order", "input", "corners", "nothing")
)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("changed_dilation", r"convolution two .* has dilation \(2, 2\) instead of \(4, 4\)"),
        ("changed_order", r"joins one \| two \| wide instead of two \| one \| wide"),
        ("changed_input", r"convolution one .* reads the image, two instead of the image"),
        ("changed_corners", r"resize of forward .* has align_corners True instead of False"),
    ],
)
def test_recording_a_trace_that_differs_is_refused_though_parity_cannot_see_it(
    name: str, said: str, tmp_path: Path
) -> None:
    exported("unchanged", tmp_path)  # the network as it runs is sound
    with pytest.raises(CheckFailed, match=said) as raised:
        exported(name, tmp_path)
    assert "differs from PyTorch" not in str(raised.value)  # parity alone would have passed it


class Heads(nn.Module):
    """Auxiliary heads of every kind: a module, a call of a shared one, an unused stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.aux = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 3, 1))
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.stem(x)
        return {
            "aux": self.aux(features),
            "out": self.head(features),
            "own": self.head(features * 2),
        }


def test_recording_what_leads_to_no_output_is_left_out_and_told(tmp_path: Path) -> None:
    report = exported("Heads", tmp_path)
    assert report.left_out == ("aux", "one call of head")
    assert "aux, one call of head lead to no output; not exported" in report.notes
    assert [proof.module for proof in report.convolutions] == ["stem", "head"]
    network = Heads().eval()
    run = _Main(network)
    image = torch.rand(1, 3, *SIZE)
    assert [call.label for call in record(network, run, image).live] == ["stem", "head"]
    # The same, found by spoiling what they give.
    assert not reaches_output(network, run, image, {"aux.0", "aux.1", "head [2]"})
    assert reaches_output(network, run, image, {"head"})


class _Main(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)["out"]
