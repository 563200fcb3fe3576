"""Networks and weights of others: outputs, classes, prefixes and sizes are found, and told."""

from __future__ import annotations

import logging
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import segdeploy
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.checkpoint import load_weights, read_weights
from segdeploy.models.errors import ModelInputError
from segdeploy.models.network import Network
from segdeploy.network_loading import load_network
from segdeploy.onnx_graph.model_file import contract_of, load_onnx
from segdeploy.profiles import Bounds
from segdeploy.runtime.inference_options import InferenceOptions

from .conftest import check_one_line

SIZE = (32, 48)


class Two(nn.Module):
    """Two maps that differ, in any kind of output."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any], classes: int = 3):
        super().__init__()
        torch.manual_seed(0)
        self.main, self.aux = nn.Conv2d(3, classes, 1), nn.Conv2d(3, classes, 3, padding=1)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.main(x), self.aux(x))


@dataclass
class Output:
    logits: Tensor
    hidden: list[Tensor]


class Plain:
    def __init__(self, pred: Tensor):
        self.pred = pred


Named = namedtuple("Named", ("first", "second"))

WRAPS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "tensor": (lambda main, aux: main, ""),
    "out": (lambda main, aux: {"aux": aux, "out": main}, "out"),
    "logits": (lambda main, aux: {"loss": aux.mean(), "logits": main}, "logits"),
    "pred": (lambda main, aux: {"pred": main}, "pred"),
    "one_map": (lambda main, aux: {"vector": aux.mean((2, 3)), "mine": main}, "mine"),
    "tuple": (lambda main, aux: (main, aux), "0"),
    "list": (lambda main, aux: [main, [aux, aux]], "0"),
    "nested": (lambda main, aux: {"heads": {"out2": main}, "x": aux.mean()}, "heads.out2"),
    "dataclass": (lambda main, aux: Output(main, [aux]), "logits"),
    "object": (lambda main, aux: Plain(main), "pred"),
    "namedtuple": (lambda main, aux: Named(main, aux.mean()), "first"),
}


@pytest.mark.parametrize("kind", sorted(WRAPS))
def test_intake_the_logits_are_found_in_any_output(kind: str) -> None:
    wrap, taken = WRAPS[kind]
    network = Network(Two(wrap).eval(), None, SIZE, "net").eval()
    assert network.taken == taken
    assert network.num_classes == 3
    image = torch.rand(1, 3, *SIZE)
    assert torch.equal(network(image), network.module.main(image))


def test_intake_several_maps_without_a_usual_name_are_asked_for() -> None:
    network = Two(lambda main, aux: {"fine": main, "coarse": aux}).eval()
    with pytest.raises(
        ModelInputError, match=r"several 4-D tensors \(fine \(1, 3, 32, 48\), coarse .*--take"
    ):
        Network(network, None, SIZE, "net")
    image = torch.rand(1, 3, *SIZE)
    for take in ("coarse", "1"):
        taken = Network(network, None, SIZE, "net", take).eval()
        assert torch.equal(taken(image), network.aux(image))
    with pytest.raises(ModelInputError, match=r"--take none: no such output; .* fine .*coarse"):
        Network(network, None, SIZE, "net", "none")


def test_intake_a_class_count_chooses_among_maps() -> None:
    def wrap(main: Tensor, aux: Tensor) -> dict[str, Tensor]:
        return {"edges": aux[:, :2], "areas": main}

    assert Network(Two(wrap).eval(), 3, SIZE, "net").taken == "areas"


def two_maps() -> nn.Module:
    return Two(WRAPS["out"][0])


def one_channel() -> nn.Module:
    return Two(WRAPS["tensor"][0], classes=1)


def needs_classes(num_classes: int) -> nn.Module:
    return Two(WRAPS["tensor"][0], classes=num_classes)


def scripted() -> nn.Module:
    return torch.jit.script(nn.Conv2d(3, 3, 1))


def factory(name: str, **options: Any) -> ModelSpec:
    return ModelSpec(f"{__name__}:{name}", size=SIZE, **options)


def test_intake_classes_and_the_taken_output_are_read_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="segdeploy"):
        report = segdeploy.export(factory("two_maps"), tmp_path / "m.onnx")
    assert report.contract.classes == ("class_0", "class_1", "class_2")
    assert report.contract.provenance["output_taken"] == "out"
    message = " ".join(caplog.messages)
    assert "took the output out of 2 (others: aux)" in message
    assert "has 3 classes, read from its output" in message


class WithSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (5 * self.conv(x)).softmax(1)


def test_intake_a_second_softmax_is_not_put_behind_the_first(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    report = segdeploy.export(factory("WithSoftmax"), out, output="probabilities")
    assert "the network already ends in a softmax; no second softmax is added" in report.notes
    assert [n.op_type for n in load_onnx(out).graph.node].count("Softmax") == 1
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    with segdeploy.load(out) as predictor:
        found = predictor.probabilities(image)
        given = torch.from_numpy(predictor.prepare(image))
    with torch.no_grad():
        assert np.allclose(found, WithSoftmax()(given)[0].numpy(), atol=1e-5)
    plain = segdeploy.export(factory("two_maps"), out, output="probabilities")
    assert plain.notes == ("aux leads to no output; not exported",)


def test_intake_what_cannot_be_a_network_says_what_can(run, tmp_path: Path) -> None:
    assert load_network(factory("one_channel")).contract.head == "binary"
    with pytest.raises(InputError, match="its num_classes has no default; give --num-classes N"):
        load_network(factory("needs_classes"))
    assert load_network(factory("needs_classes", num_classes=4)).network.num_classes == 4
    with pytest.raises(InputError, match="returned a TorchScript module.*return the nn.Module"):
        load_network(factory("scripted"))
    path = tmp_path / "scripted.pt"
    torch.jit.save(scripted(), path)
    for spec in (factory("two_maps", weights=path), ModelSpec(str(path), size=SIZE)):
        with pytest.raises((InputError, ModelInputError), match="is a TorchScript module"):
            load_network(spec)


@pytest.mark.parametrize("prefix", ["model.", "net.", "_orig_mod.", "module.", "a.b._orig_mod."])
@pytest.mark.parametrize(
    "envelope", [(), ("state_dict",), ("ema",), ("model_state_dict",), ("ema", "module")]
)
def test_intake_any_common_prefix_and_envelope_is_taken_off(
    tmp_path: Path, prefix: str, envelope: tuple[str, ...]
) -> None:
    torch.manual_seed(1)
    source = Two(WRAPS["tensor"][0])
    held: Any = {f"{prefix}{key}": value for key, value in source.state_dict().items()}
    for key in reversed(envelope):
        held = {key: held, "epoch": 3}
    path = tmp_path / "weights.pth"
    torch.save(held, path)
    target = two_maps()
    notes = load_weights(target, read_weights(path), str(path), "net")
    assert torch.equal(target.main.weight, source.main.weight)
    assert notes == [f"{path}: the prefix {prefix} was removed from the keys"]


def test_intake_what_lacks_the_prefix_is_told_and_two_networks_are_refused(tmp_path: Path) -> None:
    state = Two(WRAPS["tensor"][0]).state_dict()
    prefixed = {f"model.{key}": value for key, value in state.items()}
    loss = {"criterion.weight": torch.ones(3)}
    notes = load_weights(two_maps(), prefixed | loss, "w", "net")
    assert notes[1] == "w: left out: criterion.weight, which lack that prefix"
    twice = prefixed | {f"ema.{key}": value for key, value in state.items()}
    with pytest.raises(ModelInputError, match=r"several such networks, under model\., ema\."):
        load_weights(two_maps(), twice, "w", "net")
    with pytest.raises(ModelInputError, match="the weights are not those of net"):
        load_weights(two_maps(), {"model.other": torch.ones(1)}, "w", "net")


class Stepped(nn.Module):
    """Takes multiples of 16 alone, as encoders without padding do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv2d(3, 4, 3, stride=16, padding=1)
        self.skip, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.interpolate(self.down(x), scale_factor=16) + self.skip(x))


class UpTwice(nn.Module):
    """Gives another size than it is shown, unless that is a multiple of four."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.head = nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.Conv2d(4, 3, 1)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.up(self.head(self.down(x))))


def test_intake_a_step_is_found_by_trying_and_kept_everywhere(run, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    bounds = Bounds((20, 20), (130, 130), 3)
    report = segdeploy.export(factory("Stepped"), out, dynamic=True, bounds=bounds)
    assert report.contract.multiple == 16
    assert report.contract.bounds == ((32, 32), (128, 128), 3)
    assert "takes only multiples of 16 (--multiple-of, found by trial runs)" in report.notes
    assert all(side % 16 == 0 for p in report.parity for side in p.shape[2:])
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    network = load_network(factory("Stepped")).network
    with segdeploy.load(out) as predictor:
        assert predictor.predict(image).shape == (70, 90)
        assert predictor.predict(image, InferenceOptions(tile=True)).shape == (70, 90)
        # 1.4 times 32x48 is 44x67: the scale is run at the multiples below.
        logits = predictor.logits(image, InferenceOptions(scales=(1.4, 1.0)))
        given = torch.from_numpy(predictor.prepare(image))
        with torch.no_grad():
            large = F.interpolate(given, size=(32, 64), mode="bilinear", align_corners=True)
            resized = F.interpolate(network(large), size=SIZE, mode="bilinear", align_corners=True)
            expected = (resized + network(given)) / 2
        assert np.allclose(logits, expected[0].numpy(), atol=1e-5)
    with pytest.raises(InputError, match="takes only multiples of 16; 40x48 is not a multiple"):
        segdeploy.load(out, size=(40, 48))
    check_one_line(
        run("export", f"{__name__}:Stepped", "--size", "33x48", "-o", out),
        "cannot take a 33x48 RGB image",
        "it takes multiples of 16, such as 48x48",
    )


def test_intake_scales_in_the_graph_keep_the_step(tmp_path: Path) -> None:
    report = segdeploy.export(factory("Stepped"), tmp_path / "m.onnx", scales=(0.7, 1.0), flip=True)
    assert report.contract.multiple == 16
    assert all(p.holds for p in report.parity)


def test_intake_a_stated_step_is_taken_at_its_word(tmp_path: Path) -> None:
    bounds = Bounds((24, 24), (96, 96), 2)
    options = {"dynamic": True, "bounds": bounds, "multiple_of": 8}
    report = segdeploy.export(factory("two_maps"), tmp_path / "m.onnx", **options)
    assert report.contract.multiple == 8
    contract = contract_of(load_onnx(tmp_path / "m.onnx"), tmp_path / "m.onnx")
    assert contract.multiple == 8
    bounds = Bounds((24, 24), (96, 96), 2, multiple=16)  # said by the bounds themselves
    report = segdeploy.export(factory("two_maps"), tmp_path / "n.onnx", dynamic=True, bounds=bounds)
    assert report.contract.multiple == 16
    with pytest.raises(
        InputError, match="--size 32x48: is not a multiple of 32, as --multiple-of requires"
    ):
        segdeploy.export(factory("two_maps"), tmp_path / "m.onnx", **{**options, "multiple_of": 32})


@pytest.mark.parametrize("shape", [(70, 90), (65, 66), (67, 83)])
def test_intake_a_dynamic_graph_gives_the_size_that_it_is_given(
    tmp_path: Path, shape: tuple
) -> None:
    import onnxruntime

    out = tmp_path / "m.onnx"
    spec = ModelSpec(f"{__name__}:UpTwice", size=(64, 96))
    segdeploy.export(spec, out, dynamic=True, bounds=Bounds((64, 64), (256, 256), 2))
    session = onnxruntime.InferenceSession(str(out))
    (found,) = session.run(None, {"image": np.zeros((1, 3, *shape), np.float32)})
    assert found.shape == (1, 3, *shape)


class Impossible(nn.Module):
    """ONNX Runtime refuses an output padding that is no smaller than the stride."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1)
        self.up = nn.ConvTranspose2d(6, 3, 2, stride=1, padding=1, dilation=2, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.first(x))


def test_intake_what_a_runtime_refuses_is_a_failed_check(run, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    ran = run("export", f"{__name__}:Impossible", "--size", "32x48", "-o", out)
    assert ran.code == 1
    assert "at input 1x3x32x48 ONNX Runtime cannot run the graph at node " in ran.err
    assert "(ConvTranspose) of up: " in ran.err
    assert "a bug" not in ran.err
    assert not out.exists()


def test_intake_a_rejected_graph_is_refused_by_what_is_in_it(
    run, tmp_path: Path, dataset: Path
) -> None:  # fmt: skip
    out, renamed = tmp_path / "m.onnx", tmp_path / "sound.onnx"
    run("export", f"{__name__}:Impossible", "--size", "32x48", "-o", out)
    (tmp_path / "m.rejected.onnx").rename(renamed)
    image = next((dataset / "val" / "images").iterdir())
    for command in (
        ("predict", renamed, image, "-o", tmp_path / "o.png"),
        ("optimize", renamed, "-o", tmp_path / "o.onnx"),
        ("build-engine", renamed, "--target", "sm86", "-o", tmp_path / "o.engine"),
        ("bench", renamed, "--reference", renamed, "--data", dataset),
        ("predict", renamed, image, "--backend", "openvino", "-o", tmp_path / "o.png"),
    ):
        check_one_line(run(*command), "failed its proof when it was exported")
