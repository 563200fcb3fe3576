"""`inspect`: a checkpoint, a graph and an engine say the same of the same network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import segdeploy
from segdeploy.commands.inspect import differences
from segdeploy.errors import InputError
from segdeploy.files import sha256_of_file

from .conftest import check_one_line


def test_inspect_the_chain_leads_back_to_the_checkpoint(
    checkpoint: Path, graph: Path, int8_graph: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    engine = segdeploy.build_engine(int8_graph, tmp_path / "m.engine", targets=["sm86"]).path
    hashes = [sha256_of_file(path) for path in (int8_graph, graph, checkpoint)]
    seen = segdeploy.inspect(engine)
    assert [parent.split(": ")[-1] for parent in seen.parents] == hashes
    assert segdeploy.inspect(int8_graph).parents == tuple(hashes[1:])
    assert seen.engine["backend"] == "tensorrt-rtx"
    assert seen.precision == "int8"
    ours = segdeploy.inspect(int8_graph)
    assert [one.precision for one in seen.layers] == [one.precision for one in ours.layers]
    assert seen.macs == ours.macs


def test_inspect_layers_have_their_dilation_precision_and_work(
    checkpoint: Path, graph: Path, int8_graph: Path, dynamic_graph: Path
) -> None:
    before, after, int8, dynamic = map(
        segdeploy.inspect, (checkpoint, graph, int8_graph, dynamic_graph)
    )
    assert before.dilations == (1, 2, 4, 6, 12, 18)
    assert after.dilations == (1, 2, 4, 6, 12, 18)
    assert {layer.precision for layer in after.layers} == {"fp32"}
    kinds = [layer.precision for layer in int8.layers]
    assert kinds.count("int8") >= 8
    assert set(kinds) == {"int8", "fp16"}
    assert 0 < after.macs <= before.macs
    assert int8.macs == after.macs
    assert dynamic.macs >= after.macs  # taps that are dead at one size are not at all
    by_module = {layer.module: layer for layer in after.layers}
    assert by_module["backbone.0.conv1"].padding == (1, 1, 1, 1)
    geometry = {one.module: (one.dilation, one.stride, one.groups) for one in before.layers}
    for module, layer in by_module.items():  # the head's last ones were folded into the branches
        assert geometry[module] == (layer.dilation, layer.stride, layer.groups)
    assert by_module["aspp.conv4"].dilation == (18, 18)
    assert after.parameters > 1000
    assert after.contract.classes[0] == "sky"


def test_inspect_what_differs_is_told(
    run, graph: Path, int8_graph: Path
) -> None:  # fmt: skip
    found = {
        name: (a, b) for name, a, b in differences(*map(segdeploy.inspect, (graph, int8_graph)))
    }
    assert found["precision"] == ("fp32", "int8")
    assert found["contract.precision"] == ("fp32", "int8")
    assert found["layer aspp.conv4.precision"] == ("fp32", "int8")
    assert "contract.classes" not in found
    ran = run("inspect", "--diff", graph, int8_graph)
    assert "contract.precision" in ran.out
    assert run("inspect", "--diff", graph, graph).out.strip() == "no differences"


def test_inspect_as_json_and_in_words(run, graph: Path) -> None:
    described = json.loads(run("inspect", graph, "--json").out)
    assert described["kind"] == "onnx"
    assert described["dilations"] == [1, 2, 4, 6, 12, 18]
    assert described["layers"][0]["macs"] > 0
    said = run("inspect", graph).out
    assert "convolutions, dilations 1, 2, 4, 6, 12, 18" in said
    assert "aspp.conv4" in said


def test_inspect_a_graph_without_a_contract_is_shown_too(run, graph: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(graph)
    del model.metadata_props[:]
    path = tmp_path / "bare.onnx"
    onnx.save(model, path)
    assert (
        "no segdeploy contract; `segdeploy adopt` needs --data DIR or" in run("inspect", path).out
    )


def test_inspect_other_files_are_refused(run, tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("x")
    check_one_line(run("inspect", path), "is neither a checkpoint (.safetensors), nor an .onnx")
    check_one_line(run("inspect", tmp_path / "no.onnx"), "no such file")
    check_one_line(run("inspect", path, path), "give one FILE, or two files with --diff")
    (tmp_path / "m.engine").write_bytes(b"plan")
    with pytest.raises(InputError, match="has no manifest"):
        segdeploy.inspect(tmp_path / "m.engine")
