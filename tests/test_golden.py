"""Golden vectors, and the self-test that any host can run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import segdeploy
from segdeploy.errors import CheckFailed, InputError
from segdeploy.onnx_graph.model_file import contract_of, load_onnx, set_contract
from segdeploy.proof.golden_vectors import golden_content, golden_path, read_golden, sample

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, graph: Path, tensorrt_rtx: object) -> Path:
    out = tmp_path_factory.mktemp("golden") / "road.engine"
    segdeploy.build_engine(graph, out, targets=["sm86"])
    return out


def test_golden_the_reference_itself_passes_bit_for_bit(graph: Path, engine: Path) -> None:
    result = segdeploy.self_test(graph, golden=golden_path(engine))
    assert result.holds
    assert len(result.images) == 3
    for stage in result.images:
        assert (stage.input_difference, stage.agreement) == (0, 1)
        assert stage.output_difference < 1e-5


def test_golden_images_are_of_several_sizes_and_their_labels_too(engine: Path) -> None:
    vectors = read_golden(golden_path(engine))
    assert len({vector.image.shape for vector in vectors}) == 3
    assert all(vector.labels.shape == vector.image.shape[:2] for vector in vectors)
    assert len({int(label) for vector in vectors for label in np.unique(vector.labels)}) > 2


def test_golden_frames_of_a_data_set_are_taken_where_there_is_one(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.engine"
    segdeploy.build_engine(graph, out, targets=["sm86"], data=dataset)
    from segdeploy.models.dataset import open_dataset

    first = open_dataset(dataset).frames("val")[0].read()[0]
    assert np.array_equal(read_golden(golden_path(out))[0].image, first)


def test_golden_another_mean_is_found_in_preprocessing(
    run, graph: Path, engine: Path, tmp_path: Path
) -> None:  # fmt: skip
    model = load_onnx(graph)
    contract = contract_of(model, graph)
    set_contract(model, replace(contract, mean=(0.5, 0.5, 0.5)))
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    ran = run("self-test", path, "--golden", golden_path(engine))
    assert ran.code == 1
    assert "image 0: the network's input differs by 0." in ran.err
    assert "resizes or normalizes differently" in ran.err


def test_golden_another_weight_is_found_in_the_labels(
    graph: Path, engine: Path, tmp_path: Path
) -> None:
    model = load_onnx(graph)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(values[::-1].copy(), tensor.name))
            break
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    result = segdeploy.self_test(path, golden=golden_path(engine))
    assert not result.holds
    assert "the network's output differs by" in str(result.failure)
    kinder = replace(result, max_output_difference=None)
    assert "of the labels are the reference's, less than 99.9%" in str(kinder.failure)


def test_golden_scaled_logits_are_found_although_labels_are_the_same(
    graph: Path, engine: Path, tmp_path: Path
) -> None:
    model = load_onnx(graph)
    scaled = onnx.helper.make_node("Mul", ["unscaled", "thousand"], [model.graph.output[0].name])
    for node in model.graph.node:
        if model.graph.output[0].name in node.output:
            node.output[0] = "unscaled"
    model.graph.node.append(scaled)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1000), "thousand"))
    path = tmp_path / "scaled.onnx"
    onnx.save(model, path)
    result = segdeploy.self_test(path, golden=golden_path(engine))
    assert all(stage.agreement == 1 for stage in result.images)
    assert not result.holds


def test_golden_a_network_that_gives_nan_is_not_built(graph: Path, tmp_path: Path) -> None:
    model = load_onnx(graph)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight"):
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(np.nan), tensor.name))
    path = tmp_path / "nan.onnx"
    onnx.save(model, path)
    with pytest.raises(CheckFailed, match="the scores 'logits' hold NaN or infinity"):
        segdeploy.build_engine(path, tmp_path / "m.engine", targets=["sm86"])
    assert list(tmp_path.iterdir()) == [path]


def test_golden_the_command_says_what_it_compared(
    run, graph: Path, engine: Path
) -> None:  # fmt: skip
    ran = run("self-test", graph, "--golden", golden_path(engine))
    assert ran.code == 0
    assert "onnxruntime reproduces road.engine.golden.safetensors" in ran.out


def test_golden_vectors_that_are_missing_swapped_or_damaged(
    graph: Path, engine: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"model\.onnx\.golden\.safetensors: no such file"):
        segdeploy.self_test(graph)
    for path in engine.parent.iterdir():
        shutil.copy(path, tmp_path)
    ours, golden = tmp_path / engine.name, golden_path(tmp_path / engine.name)
    golden.write_bytes(golden_content(read_golden(golden)[:1], graph))
    with pytest.raises(InputError, match="is not the file that road.engine was built with"):
        segdeploy.self_test(ours)
    golden.write_bytes(golden.read_bytes()[:200])
    with pytest.raises(InputError, match="holds no golden vectors"):
        read_golden(golden)


@pytest.mark.parametrize("size", [1, 5, 4096, 4097, 100_000])
def test_golden_samples_reach_from_the_first_to_the_last(size: int) -> None:
    values = np.arange(size, dtype=np.float32)
    taken = sample(values)
    assert len(taken) == min(size, 4096)
    assert (taken[0], taken[-1]) == (0, size - 1)
    assert np.all(np.diff(taken) > 0)
