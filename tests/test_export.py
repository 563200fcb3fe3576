"""Export: the proofs hold for true graphs, and fail for every kind of false one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import segdeploy
from segdeploy.commands import export
from segdeploy.contract import CALL_KEY, MODULE_KEY
from segdeploy.errors import CheckFailed, InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.network import Network
from segdeploy.network_loading import load_network
from segdeploy.onnx_graph import external_data
from segdeploy.onnx_graph.convolutions import ConvGeometry
from segdeploy.onnx_graph.model_file import note_of
from segdeploy.proof.dilation import prove_dilations
from segdeploy.proof.parity import NOISE, check_parity, compare
from segdeploy.proof.recording import record
from segdeploy.proof.test_inputs import probe_shapes, random_images

from .conftest import SIZE
from .graphs import set_ints


@pytest.fixture(scope="module")
def loaded(checkpoint: Path):
    return load_network(ModelSpec(str(checkpoint)))


def conv(model: onnx.ModelProto, module: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if note_of(n, CALL_KEY) == module)


def failed_proofs(network: nn.Module, size: tuple[int, int], model: onnx.ModelProto) -> list:
    image = torch.from_numpy(random_images((1, 3, *size)))
    run = Network(network.eval(), None, size, "net").eval()
    calls = record(network, run, image).live
    return [p for p in prove_dilations(calls, model, image)[0] if not p.holds]


def test_export_a_true_graph_is_proven_at_every_shape(files: Path, checkpoint: Path) -> None:
    report = segdeploy.export(checkpoint, files / "proven.onnx", dynamic=True)
    assert all(proof.holds for proof in report.convolutions)
    assert {max(p.expected.dilation) for p in report.convolutions} == {1, 2, 4, 6, 12, 18}
    assert len(report.convolutions) == 16
    shapes = [p.shape for p in report.parity if p.against == "PyTorch" and p.image == NOISE]
    odd, largest = (1, 3, 61, 71), (32, 3, 24, 32)
    above = (1, 3, 192, 256)
    assert shapes == [(1, 3, 48, 64), (2, 3, 24, 32), odd, (3, 3, 48, 64), largest, above]
    shown = [p.image for p in report.parity if p.image != NOISE]
    assert len(shown) == len(set(shown)) == 6  # black, white, half black, letterboxed, ...
    others = [p.shape[0] for p in report.parity if p.against != "PyTorch"]
    assert others == [2, 2, 3, 3, 32, 32]  # each alone, and in another order
    assert all(p.holds and p.max_rel < 1e-5 for p in report.parity)


@pytest.mark.parametrize("module", ["backbone.1.conv1", "aspp.conv3"])
def test_export_a_tampered_dilation_is_found_by_module(loaded, graph: Path, module: str) -> None:
    model = onnx.load(graph)
    node = conv(model, module)
    dilation = loaded.network.module.get_submodule(module).dilation[0]
    set_ints(node, "dilations", [1, 1])
    set_ints(node, "pads", [1, 1, 1, 1])
    failed = failed_proofs(loaded.network.module, SIZE, model)
    assert [p.module for p in failed] == [module]
    assert f"has dilation (1, 1) instead of ({dilation}, {dilation})" in failed[0].failure()
    # Parity alone would notice too: the numbers are no longer PyTorch's.
    assert not check_parity(loaded.network, model, probe_shapes(SIZE))[0].holds


@pytest.mark.parametrize(
    ("attribute", "values", "said"),
    [
        ("pads", [1, 2, 3, 2], r"padding (1, 2, 3, 2) instead of (2, 2, 2, 2)"),
        ("strides", [1, 2], r"stride (1, 2) instead of (1, 1)"),
    ],
)
def test_export_tampered_padding_and_stride(
    loaded, graph: Path, attribute: str, values: list[int], said: str
) -> None:
    model = onnx.load(graph)
    set_ints(conv(model, "backbone.1.conv2"), attribute, values)
    failed = failed_proofs(loaded.network.module, SIZE, model)
    assert len(failed) == 1
    assert said in failed[0].failure()


def test_export_a_convolution_that_is_gone_is_missed(loaded, graph: Path) -> None:
    model = onnx.load(graph)
    node = conv(model, "backbone.0.conv2")
    del node.metadata_props[:]
    failed = failed_proofs(loaded.network.module, SIZE, model)
    assert failed[0].failure() == "convolution backbone.0.conv2 has no node in the graph"


def test_export_one_changed_weight_fails_parity(loaded, graph: Path) -> None:
    model = onnx.load(graph)
    tensor = next(t for t in model.graph.initializer if t.name == "backbone.2.conv1.weight")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0, 1, 1] += 0.5
    tensor.raw_data = values.tobytes()
    (result,) = check_parity(loaded.network, model, probe_shapes(SIZE))
    assert not result.holds
    assert "at input 1x3x48x64 the output differs from PyTorch by" in result.failure()


def test_export_a_failed_proof_keeps_the_graph_aside_and_the_old_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.onnx"
    out.write_bytes(b"old")
    true_trace = export.trace

    def tampered(*arguments, **options):
        model = true_trace(*arguments, **options)
        node = next(n for n in model.graph.node if "aspp.conv2.weight" in n.input)
        set_ints(node, "dilations", [1, 1])
        set_ints(node, "pads", [1, 1, 1, 1])
        return model

    monkeypatch.setattr(export, "trace", tampered)
    with pytest.raises(CheckFailed, match=r"convolution aspp\.conv2 .* instead of \(6, 6\)"):
        segdeploy.export(checkpoint, out)
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.rejected.onnx"]


def test_export_nothing_of_the_users_paths_is_shipped(graph: Path, checkpoint: Path) -> None:
    data = graph.read_bytes()
    for trace in (b"site-packages", b"stack_trace", b".py", str(Path.cwd()).encode()):
        assert trace not in data


def test_export_nothing_of_them_is_shipped_inside_a_branch(tmp_path: Path) -> None:
    spec = ModelSpec("tests.test_recording:conditional", size=(24, 32))
    data = segdeploy.export(spec, tmp_path / "m.onnx", optimized=False).path.read_bytes()
    for trace in (b"site-packages", b"stack_trace", b".py", str(Path.cwd()).encode()):
        assert trace not in data


def test_export_every_node_of_a_layer_names_its_module(loaded, graph: Path) -> None:
    modules = dict(loaded.network.module.named_modules())
    for node in onnx.load(graph).graph.node:
        named = [e.value for e in node.metadata_props if e.key == MODULE_KEY]
        assert all(name in modules for name in named)
        if node.op_type in ("Conv", "Relu", "ReduceMean"):
            assert named, node.name


def test_export_the_graph_is_opset_20_and_clean(graph: Path) -> None:
    model = onnx.load(graph)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import if not o.domain] == [("", 20)]
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, *SIZE]


class Odd(nn.Module):
    """Every way that a convolution may be padded and grouped, and one that is never run."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.same = nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(2, 1))
        self.even = nn.Conv2d(4, 4, 4, padding="same")
        self.grouped = nn.Conv2d(4, 8, 3, padding=(3, 2), dilation=(3, 2), groups=2)
        self.reflected = nn.Conv2d(8, 8, 3, padding=2, dilation=2, padding_mode="reflect")
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.never = nn.Conv2d(8, 8, 3)
        self.last = nn.Conv2d(8, num_classes, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.reflected(self.grouped(self.even(self.same(x)).relu()))
        return {"out": self.last(self.twice(self.twice(x).relu()))}


def odd_network(num_classes: int) -> nn.Module:
    return Odd(num_classes)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_export_padding_of_every_kind_is_proven(tmp_path: Path) -> None:
    spec = ModelSpec(f"{__name__}:odd_network", 3, {}, None, (20, 24))
    report = segdeploy.export(spec, tmp_path / "odd.onnx")
    proofs = {p.module: p for p in report.convolutions}
    assert list(proofs) == ["same", "even", "grouped", "reflected", "twice", "twice [2]", "last"]
    assert all(p.holds for p in report.convolutions)
    assert proofs["same"].expected == ConvGeometry((3, 5), (2, 1), (1, 1), (2, 2, 2, 2), 1)
    assert proofs["even"].expected.padding == (1, 1, 2, 2)
    assert proofs["grouped"].expected.groups == 2
    assert report.left_out == ()


class Branching(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if float(x.mean()) >= 0 else self.conv(-x)


def branching_network(num_classes: int) -> nn.Module:
    return Branching(num_classes)


def test_export_a_network_that_cannot_be_traced_says_why(tmp_path: Path) -> None:
    spec = ModelSpec(f"{__name__}:branching_network", 3, {}, None, (20, 24))
    with pytest.raises(InputError, match="cannot be exported to ONNX: .*data-dependent"):
        segdeploy.export(spec, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_export_what_runs_is_recorded_and_nothing_else() -> None:
    network = Odd(2).eval()
    run = Network(network, 2, (20, 24), "odd").eval()
    calls = record(network, run, torch.zeros(1, 3, 20, 24)).convolutions
    labels = [call.label for call in calls]
    assert labels == ["same", "even", "grouped", "reflected", "twice", "twice [2]", "last"]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_export_an_output_that_is_not_finite_never_passes(wrong: float) -> None:
    reference = np.random.default_rng(0).normal(0, 1, (1, 2, 3, 3)).astype(np.float32)
    output = reference.copy()
    assert compare((1,), reference, output).holds
    output[0, 0, 0, 0] = wrong
    assert not compare((1,), reference, output).holds
    assert not compare((1,), reference, reference[:, :, :2]).holds


def test_export_a_constant_reference_is_no_division_by_zero() -> None:
    constant = np.ones((1, 2, 2, 2), np.float32)
    assert compare((1,), constant, constant).max_rel == 0
    assert not compare((1,), constant, constant + 1).holds


def test_export_a_masked_class_does_not_hide_wrong_labels() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(0, 1, (1, 5, 20, 20)).astype(np.float32)
    reference[:, 4] = -1e4  # makes the range so large that any error is small beside it
    assert compare((1,), reference, reference).holds
    output = reference + rng.uniform(-0.9, 0.9, reference.shape).astype(np.float32)
    result = compare((1,), reference, output)
    assert result.max_rel < 1e-4
    assert result.wrong_labels > 0
    assert not result.holds


def test_export_a_near_tie_may_fall_either_way() -> None:
    reference = np.random.default_rng(0).normal(0, 1, (1, 2, 9, 9)).astype(np.float32)
    reference[0, :, 4, 4] = (1.0, 1.0 + 1e-6)
    output = reference.copy()
    output[0, :, 4, 4] = (1.0 + 1e-6, 1.0)
    result = compare((1,), reference, output)
    assert result.agreement < 1
    assert result.holds


class Eighth(nn.Module):
    """Right at multiples of 8, too large elsewhere: it enlarges by a factor, not to a size."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 3, stride=8, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(self.conv(x), scale_factor=8.0, mode="bilinear")


def eighth(num_classes: int) -> nn.Module:
    return Eighth(num_classes)


def test_export_a_dynamic_graph_gives_the_inputs_size_everywhere(tmp_path: Path) -> None:
    spec = ModelSpec(f"{__name__}:eighth", 3, {}, None, (48, 64))
    out = tmp_path / "m.onnx"
    report = segdeploy.export(spec, out, dynamic=True)
    assert (1, 3, 61, 71) in [p.shape for p in report.parity]
    session = onnxruntime.InferenceSession(str(out))
    (logits,) = session.run(None, {"image": np.zeros((1, 3, 61, 71), np.float32)})
    assert logits.shape == (1, 3, 61, 71)


class Mixed(nn.Module):
    """Convolutions that a weight's name alone would not find, or find for another module."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1))
        self.near = nn.Conv2d(4, 4, 3, padding=1)
        self.far = nn.Conv2d(4, 4, 3, padding=5, dilation=5)
        self.far.weight = self.near.weight
        self.up = nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.image = nn.Parameter(torch.ones(1))
        self.last = nn.Conv2d(4, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.normed(x * self.image).relu()
        x = (self.near(x) + self.far(x)).relu()
        x = nn.functional.conv2d(x, self.near.weight, padding=3, dilation=3).relu()
        return self.last(self.up(x).relu())


def mixed(num_classes: int) -> nn.Module:
    return Mixed(num_classes)


def test_export_shared_normed_transposed_and_functional_convolutions_are_proven(
    tmp_path: Path,
) -> None:
    spec = ModelSpec(f"{__name__}:mixed", 3, {}, None, (20, 24))
    report = segdeploy.export(spec, tmp_path / "m.onnx")
    proofs = {p.module: p for p in report.convolutions}
    assert set(proofs) == {"normed", "near", "far", "forward", "up", "last"}
    assert proofs["forward"].found.dilation == (3, 3)
    assert proofs["near"].found.dilation == (1, 1)
    assert proofs["far"].found.dilation == (5, 5)
    assert proofs["up"].found.transposed
    assert report.unmatched_convolutions == ()
    model = onnx.load(tmp_path / "m.onnx")
    node = next(n for n in model.graph.node if n.op_type == "ConvTranspose")
    set_ints(node, "pads", [0, 0, 2, 2])
    assert [p.module for p in failed_proofs(mixed(3), (20, 24), model)] == ["up"]


def test_export_a_module_that_runs_twice_needs_two_nodes(tmp_path: Path) -> None:
    spec = ModelSpec(f"{__name__}:odd_network", 3, {}, None, (20, 24))
    segdeploy.export(spec, tmp_path / "odd.onnx", optimized=False)
    model = onnx.load(tmp_path / "odd.onnx")
    conv(model, "twice [2]").op_type = "Identity"
    assert [p.module for p in failed_proofs(Odd(3), (20, 24), model)] == ["twice [2]"]


def test_export_nothing_but_the_reason_is_printed_when_tracing_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = ModelSpec(f"{__name__}:branching_network", 3, {}, None, (20, 24))
    with pytest.raises(InputError):
        segdeploy.export(spec, tmp_path / "m.onnx")
    assert capfd.readouterr().err == ""


class Special(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(self.conv(x))


def test_export_an_operator_that_onnx_lacks_is_named_with_the_users_line(tmp_path: Path) -> None:
    spec = ModelSpec(f"{__name__}:Special", 3, {}, None, (20, 24))
    said = r"bessel_j0.* has no ONNX form .*test_export\.py, line \d+: return torch\.special"
    with pytest.raises(InputError, match=said):
        segdeploy.export(spec, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_export_weights_beyond_protobufs_limit_lie_beside_the_graph(
    checkpoint: Path, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered here; docs/how-to/foreign-network.md has figures of a 2.2 GB network."""
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    with segdeploy.load(graph) as whole:
        expected = whole.predict(image)
    monkeypatch.setattr(external_data, "LIMIT", 50_000)
    link, out = tmp_path / "link.onnx", tmp_path / "apart" / "m.onnx"
    out.parent.mkdir()
    link.symlink_to(out)
    report = segdeploy.export(checkpoint, link)
    assert all(p.holds for p in report.parity)
    assert any("rewrites left out" in note for note in report.notes)
    graph_file, weights = sorted(out.parent.iterdir(), key=lambda path: path.suffix)
    assert graph_file == out
    assert weights.suffix == ".weights"
    assert out.stat().st_size < 50_000
    assert report.bytes == out.stat().st_size + weights.stat().st_size
    onnx.checker.check_model(str(out), full_check=True)
    for backend in ("onnxruntime", "openvino"):
        with segdeploy.load(out, backend=backend) as split:
            assert (split.predict(image) == expected).mean() > 0.999
    with pytest.raises(InputError, match="is over 2 GiB"):
        segdeploy.optimize(out, tmp_path / "o.onnx")
