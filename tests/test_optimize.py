"""`segdeploy optimize` on graphs from elsewhere, and on files that mean harm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import segdeploy
from segdeploy.errors import InputError
from segdeploy.models.registry import build
from segdeploy.onnx_graph.model_file import contract_of, load_onnx

from .conftest import Ran, check_one_line


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's network as PyTorch's own exporter writes it, without anything of ours."""
    path = tmp_path_factory.mktemp("foreign") / "torchvision.onnx"
    torch.manual_seed(0)
    network = build("deeplabv3_mobilenet_v3_large", 5, {}).train()
    with torch.no_grad():  # statistics without which every activation vanishes
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        network(torch.randn(2, 3, 96, 128))
    network.eval()
    torch.onnx.export(network, (torch.zeros(1, 3, 96, 128),), path, dynamo=True, verbose=False)
    return path


def test_optimize_a_foreign_graph_becomes_cheaper_and_stays_the_same(
    run,
    foreign: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "o.onnx"
    ran: Ran = run("optimize", foreign, "-o", out, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    before, after = report["optimization"]["before"], report["optimization"]["after"]
    assert after["macs"] < 0.7 * before["macs"]
    assert out.stat().st_size < 0.7 * report["bytes_before"]
    assert all(
        p["wrong_labels"] == 0 and 0 < p["max_rel"] < 1e-5 for p in report["optimization"]["parity"]
    )
    assert not load_onnx(out).metadata_props
    assert "dead taps" in run("optimize", foreign, "-o", out).out
    assert "skipped (fold linear heads)" in run("optimize", foreign, "-o", out, "-v").out


def test_optimize_the_contract_is_carried_on(dynamic_graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    segdeploy.optimize(dynamic_graph, out)
    contract = contract_of(load_onnx(out), out)
    assert contract.classes == contract_of(load_onnx(dynamic_graph), dynamic_graph).classes
    assert len(contract.provenance["parent_sha256"]) == 64
    with pytest.raises(InputError, match="is the input itself"):
        segdeploy.optimize(out, out)


def hand_made(path: Path, *, x: list = [1, 3, 8, 8], change=lambda model: None) -> Path:  # noqa: B006
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], name="one", pads=[1] * 4),
            helper.make_node("Relu", ["a"], ["y"], name="two"),
        ],
        "hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 8, 8])],
        [numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def claim_gigabytes(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1024, 1024, 1024, 3]


def make_a_cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def leave_the_standard(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "com.example"


def point_outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret.bin")


def ask_for_a_terabyte(model: onnx.ModelProto) -> None:
    shape = numpy_helper.from_array(np.array([1, 2, 2**18, 2**18]), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["huge"]))
    model.graph.node.insert(1, helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["r", "sum"], ["y"]))
    model.graph.node[-2].output[0] = "r"


def ask_for_a_huge_output(model: onnx.ModelProto) -> None:
    shape = numpy_helper.from_array(np.array([1, 2, 2**16, 2**16]), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("Expand", ["one", "shape"], ["y"]))
    model.graph.node[-2].output[0] = "r"
    model.graph.node.insert(2, helper.make_node("ReduceMax", ["r"], ["one"], keepdims=1))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 2**16, 2**16])
    model.graph.output[0].CopyFrom(output)


def claim_no_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def read_nothing(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nothing"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (claim_gigabytes, "weight 'w' declares 3,221,225,472 values but does not hold them"),
        (make_a_cycle, "is not sound ONNX"),
        (ask_for_a_huge_output, "'y' would have 8,589,934,592 values"),
        (claim_no_type, "is not sound ONNX"),
        (ask_for_a_terabyte, "'huge' would have 137,438,953,472 values"),
        (read_nothing, "is not sound ONNX"),
        (leave_the_standard, "node 'two' is com.example.Relu, an operator that is not ONNX's own"),
        (point_outside, "outside"),
    ],
)
def test_optimize_a_hostile_graph_is_refused_in_one_line(
    run,
    change,
    said: str,
    tmp_path: Path,
) -> None:
    path, out = hand_made(tmp_path / "bad.onnx", change=change), tmp_path / "o.onnx"
    check_one_line(run("optimize", path, "-o", out), "bad.onnx", said)
    assert not out.exists()


def test_optimize_external_data_beside_the_file_is_read(tmp_path: Path) -> None:
    path = hand_made(tmp_path / "m.onnx")
    whole = onnx.load(path)
    outside = tmp_path / "external.onnx"
    onnx.save_model(whole, outside, save_as_external_data=True, location="w.bin", size_threshold=0)
    report = segdeploy.optimize(outside, tmp_path / "o.onnx")
    assert report.optimization.after.parameters == 54
    (tmp_path / "w.bin").write_bytes(b"short")
    with pytest.raises(InputError, match=r"external\.onnx: .*w\.bin"):
        segdeploy.optimize(outside, tmp_path / "o.onnx")
    (tmp_path / "w.bin").unlink()
    (tmp_path / "w.bin").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="outside"):
        segdeploy.optimize(outside, tmp_path / "o.onnx")


@pytest.mark.parametrize("cut", [0, 1, 40, 200])
def test_optimize_a_truncated_file_is_refused(run, cut: int, tmp_path: Path) -> None:
    path = hand_made(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:cut])
    check_one_line(run("optimize", path, "-o", tmp_path / "o.onnx"), "m.onnx")


def test_optimize_an_input_that_is_no_image_is_refused(tmp_path: Path) -> None:
    def two_inputs(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))

    path = hand_made(tmp_path / "m.onnx", change=two_inputs)
    with pytest.raises(InputError, match="has 2 inputs"):
        segdeploy.optimize(path, tmp_path / "o.onnx")


def test_optimize_weights_in_the_body_of_an_if_are_read_and_checked(tmp_path: Path) -> None:
    def branch(name: str, location: str | None) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.full((1, 3, 8, 8), 2.0, np.float32), f"{name}_w")
        if location:
            (tmp_path / "body.bin").write_bytes(weight.raw_data)
            weight.ClearField("raw_data")
            weight.data_location = TensorProto.EXTERNAL
            weight.external_data.add(key="location", value=location)
        return helper.make_graph(
            [helper.make_node("Mul", ["x", f"{name}_w"], [f"{name}_y"], name=name)],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [1, 3, 8, 8])],
            [weight],
        )

    for location, said in (("body.bin", None), ("../body.bin", "outside")):
        graph = helper.make_graph(
            [
                helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
                helper.make_node("Greater", ["m", "zero"], ["c"]),
                helper.make_node(
                    "If", ["c"], ["y"],
                    then_branch=branch("yes", location), else_branch=branch("no", None),
                ),
            ],
            "branching",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])],
            [numpy_helper.from_array(np.array(0, np.float32), "zero")],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        path = tmp_path / "if.onnx"
        path.write_bytes(model.SerializeToString())
        if said:
            with pytest.raises(InputError, match=said):
                segdeploy.optimize(path, tmp_path / "o.onnx")
        else:
            segdeploy.optimize(path, tmp_path / "o.onnx")
            (tmp_path / "body.bin").unlink()
            session = ort.InferenceSession(tmp_path / "o.onnx")
            x = np.ones((1, 3, 8, 8), np.float32)
            assert (session.run(None, {"x": x})[0] == 2).all()


def float16_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def nan_weight(model: onnx.ModelProto) -> None:
    values = np.full((2, 3, 3, 3), np.nan, np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))


def wrong_pads(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].ints[:] = [1, 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (float16_input, "neither float32 nor uint8|not sound ONNX"),
        (nan_weight, "the graph as given yields NaN"),
        (wrong_pads, "is not sound ONNX|cannot be run"),
    ],
)
def test_optimize_a_graph_that_cannot_be_run_is_refused(change, said: str, tmp_path: Path) -> None:
    path = hand_made(tmp_path / "m.onnx", change=change)
    with pytest.raises(InputError, match=said):
        segdeploy.optimize(path, tmp_path / "o.onnx")


def test_optimize_a_network_that_needs_even_sizes_and_one_image_is_compared_where_it_runs(
    tmp_path: Path,
) -> None:
    class Even(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = torch.nn.Conv2d(3, 4, 3, stride=4, padding=1)
            self.up = torch.nn.ConvTranspose2d(4, 3, 4, stride=4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.up(self.down(x))

    torch.manual_seed(0)
    path = tmp_path / "m.onnx"
    dims = {"x": {2: "h", 3: "w"}}
    torch.onnx.export(
        Even().eval(), (torch.zeros(1, 3, 32, 32),), path, dynamo=False, input_names=["x"],
        dynamic_axes=dims,
    )  # fmt: skip
    report = segdeploy.optimize(path, tmp_path / "o.onnx", size=(32, 48))
    assert [p.shape for p in report.optimization.parity] == [(1, 3, 32, 48), (1, 3, 64, 80)] or (
        report.optimization.parity == ()
    )


def test_optimize_weights_that_are_inputs_too_become_constants(tmp_path: Path) -> None:
    def listed(model: onnx.ModelProto) -> None:
        model.graph.input.append(
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3, 3, 3])
        )

    path = hand_made(tmp_path / "m.onnx", change=listed)
    segdeploy.optimize(path, tmp_path / "o.onnx")
    assert [v.name for v in load_onnx(tmp_path / "o.onnx").graph.input] == ["x"]
