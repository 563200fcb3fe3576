"""The handle of an exported file reads each part once, and never two states of the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import segdeploy
from segdeploy.adoption.statement import Statement
from segdeploy.artifact import EngineFile, OnnxFile, artifact_of, is_artifact, open_artifact
from segdeploy.contract import Contract
from segdeploy.engine.manifest import manifest_path
from segdeploy.errors import InputError
from segdeploy.files import sha256_of_file
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.onnx_graph import model_file
from segdeploy.onnx_graph.model_file import load_onnx, save_onnx, set_contract
from segdeploy.runtime.inference_options import InferenceOptions
from segdeploy.runtime.session import open_session

from .conftest import Ran, check_one_line


@pytest.fixture
def copied(graph: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(graph, tmp_path / "m.onnx"))


def with_contract(path: Path, **changes: object) -> None:
    """Write a graph again, with another contract."""
    model = load_onnx(path)
    set_contract(model, replace(OnnxFile(path).contract, **changes))
    save_onnx(model, path)


def test_artifact_a_file_is_read_once(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    parsed = model_file._parsed
    monkeypatch.setattr(model_file, "_parsed", lambda path: (reads.append(path), parsed(path))[1])
    file = open_artifact(copied)
    assert isinstance(file, OnnxFile)
    assert reads == []
    file.check()
    assert file.contract.classes
    assert file.precision == "fp32"
    assert file.input.shape == (1, 3, 48, 64)
    assert file.key == sha256_of_file(copied)
    with segdeploy.load(file) as network:
        assert network.contract == file.contract
    assert len(reads) == 1
    assert file.graph.graph.node  # released by the session, and read again where it is needed
    assert len(reads) == 2


def test_artifact_a_file_that_changes_under_the_handle_is_refused(copied: Path) -> None:
    file = OnnxFile(copied)
    file.check()
    with_contract(copied, mean=(0.1, 0.1, 0.1))
    for use in (lambda: segdeploy.load(file), lambda: file.key):
        with pytest.raises(InputError, match=r"m\.onnx: was changed or replaced while"):
            use()
    later = OnnxFile(copied)
    copied.unlink()
    with pytest.raises(InputError, match=r"m\.onnx"):
        later.check()


def test_artifact_content_in_memory_is_what_every_runtime_runs(copied: Path, dataset: Path) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(load_onnx(copied))
    for tensor in other.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(0.5), tensor.name))
    file = OnnxFile(copied, other.SerializeToString())
    assert file.key != sha256_of_file(copied)
    batch = np.ones((1, 3, 48, 64), np.float32)
    expected = open_session(file).run(batch)
    assert not np.allclose(expected, open_session(copied).run(batch))
    np.testing.assert_allclose(open_session(file, "openvino").run(batch), expected, atol=1e-4)


def test_artifact_names_and_kinds(graph: Path, tmp_path: Path) -> None:
    assert is_artifact(Path("a.onnx"))
    assert is_artifact(Path("a.plan"))
    assert not is_artifact(Path("a.safetensors"))
    assert artifact_of(ModelSpec("deeplabv3")) is None
    with pytest.raises(InputError, match="no such file"):
        open_artifact(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="neither an .onnx file nor an .engine"):
        open_artifact(Path(__file__))
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"plan")
    assert isinstance(open_artifact(engine), EngineFile)
    with pytest.raises(InputError, match="has no manifest"):
        _ = open_artifact(engine).contract


def graph_of(inputs: int, outputs: int) -> onnx.ModelProto:
    """Return sums of several images, without a contract."""
    kind, shape = TensorProto.FLOAT, (1, 3, 8, 8)
    images = [helper.make_tensor_value_info(f"i{n}", kind, shape) for n in range(inputs)]
    sums = [helper.make_tensor_value_info(f"o{n}", kind, shape) for n in range(outputs)]
    names = [image.name for image in images] or ["c"]
    constant = helper.make_tensor("c", kind, shape, np.zeros(192, np.float32))
    nodes = [helper.make_node("Sum", names, [f"o{n}"]) for n in range(max(outputs, 1))]
    made = helper.make_graph(nodes, "g", images, sums, [constant])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    return model


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (0, 1), (1, 0)])
def test_artifact_a_graph_of_other_inputs_or_outputs_is_refused_by_every_step(
    run: Callable[..., Ran], graph: Path, dataset: Path, tmp_path: Path, inputs: int, outputs: int
) -> None:
    path = tmp_path / "g.onnx"
    model = graph_of(inputs, outputs)
    contract: Contract = OnnxFile(graph).contract
    set_contract(model, replace(contract, size=(8, 8)))
    save_onnx(model, path)
    image = open_dataset(dataset).frames("val")[0].image
    out = tmp_path / "o.onnx"
    for words in (
        ("predict", path, image, "-o", tmp_path / "o.png"),
        ("calibrate", path, "--data", dataset, "-q", "-o", out),
        ("build-engine", path, "--target", "sm86", "-q", "-o", tmp_path / "o.engine"),
        ("serve-repo", path, "-o", tmp_path / "repo"),
    ):
        check_one_line(run(*words), "g.onnx: ")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["g.onnx"]


def test_artifact_an_operator_of_others_is_not_served(
    run: Callable[..., Ran], copied: Path, tmp_path: Path
) -> None:
    model = load_onnx(copied)
    model.graph.node[0].domain = "com.evil"
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    copied.write_bytes(model.SerializeToString())
    ran = run("serve-repo", copied, "-o", tmp_path / "repo")
    check_one_line(ran, "is not ONNX's own")
    assert not (tmp_path / "repo").exists()


def test_artifact_steps_for_graphs_say_what_an_engine_is(
    run: Callable[..., Ran], dataset: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"plan")
    for words in (("calibrate", engine, "--data", dataset), ("optimize", engine)):
        ran = run(*words, "-o", tmp_path / "o.onnx")
        check_one_line(ran, "is an engine; give the .onnx that it was built from")


def test_artifact_a_contract_is_copied_from_an_engine_by_its_manifest_alone(
    graph: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    built = segdeploy.build_engine(graph, tmp_path / "m.engine", targets=["sm86"]).path
    built.write_bytes(b"another plan")
    assert manifest_path(built).is_file()
    stated = Statement(like=built)
    adopted = segdeploy.adopt(graph, stated, out=tmp_path / "a.onnx")
    assert OnnxFile(adopted).contract.classes == OnnxFile(graph).contract.classes


def test_artifact_options_that_no_network_can_run_are_refused(
    dynamic_graph: Path, dataset: Path
) -> None:
    assert InferenceOptions(np.array([0.5, 1.0])).scales == (0.5, 1.0)
    assert not InferenceOptions(()).is_augmented
    for wrong in (("x",), (0,), (float("nan"),), (True,), (100,)):
        with pytest.raises(InputError, match="must be positive, and below 100"):
            InferenceOptions(wrong)
    with pytest.raises(InputError, match="neither mean nor max"):
        InferenceOptions(fuse="median")
    image, _ = open_dataset(dataset).frames("val")[0].read()
    scales = (0.75, 1.0)
    with (
        segdeploy.load(dynamic_graph) as plain,
        segdeploy.load(dynamic_graph, scales=scales) as looped,
    ):
        for fuse in ("mean", "max"):
            expected = plain.logits(image, InferenceOptions(scales, fuse=fuse))
            assert np.array_equal(looped.logits(image, InferenceOptions(fuse=fuse)), expected)
