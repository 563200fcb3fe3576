"""Files that were made elsewhere, and what their user states of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import segdeploy
from segdeploy.adoption.statement import Statement
from segdeploy.contract import IMAGENET_MEAN, IMAGENET_STD
from segdeploy.engine.manifest import manifest_path, read_manifest
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.onnx_graph.model_file import contract_of, load_onnx

from .conftest import SIZE, Ran, check_one_line

STATED = {"preprocessing": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}}


@pytest.fixture
def bare(graph: Path, tmp_path: Path) -> Path:
    """The graph as another exporter leaves it: without contract or module names."""
    model = onnx.load(graph)
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
    path = tmp_path / "bare.onnx"
    onnx.save(model, path)
    return path


def test_adopt_what_lacks_a_contract_says_so_and_how_to_state_one(
    run, bare: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    for command in (
        ("calibrate", bare, "--data", dataset, "-o", tmp_path / "o.onnx"),
        ("build-engine", bare, "--target", "sm86", "-o", tmp_path / "o.engine"),
        ("predict", bare, dataset / "x.png", "-o", tmp_path / "o.png"),
    ):
        if command[0] != "predict":
            check_one_line(run(*command), "carries no segdeploy contract", "`segdeploy adopt`")


def test_adopt_a_bare_graph_is_adopted_and_goes_the_whole_way(
    run, bare: Path, graph: Path, dataset: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:  # fmt: skip
    mine = tmp_path / "mine.onnx"
    numbers = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
    ran = run("adopt", bare, "--data", dataset, *numbers, "-o", mine)
    assert ran.code == 0, ran.err
    figures = json.loads(run("evaluate", mine, "--data", dataset, "--json", "--limit", 8).out)
    assert f"has {100 * figures['miou']:.2f} % mIoU on" in ran.err
    contract = contract_of(load_onnx(mine), mine)
    assert (contract.size, contract.classes) == (SIZE, open_dataset(dataset).classes)
    frame = open_dataset(dataset).frames("val")[0].read()[0]
    with segdeploy.load(mine) as ours, segdeploy.load(graph) as theirs:
        assert np.array_equal(ours.predict(frame), theirs.predict(frame))
    int8 = segdeploy.calibrate(mine, dataset, tmp_path / "int8.onnx", limit=4).path
    report = segdeploy.build_engine(int8, tmp_path / "m.engine", targets=["sm86"])
    assert report.int8 > 5


def test_adopt_like_takes_the_contract_of_another_file(
    bare: Path, graph: Path, tmp_path: Path
) -> None:
    path = segdeploy.adopt(bare, Statement(like=graph), out=tmp_path / "mine.onnx")
    ours, theirs = contract_of(load_onnx(path), path), contract_of(load_onnx(graph), graph)
    assert ours == replace(theirs, provenance=ours.provenance)
    assert "parent_sha256" not in ours.provenance  # it was not made from that file's parent


def test_adopt_quantized_by_another_tool_it_is_int8(int8_graph: Path, tmp_path: Path) -> None:
    model = onnx.load(int8_graph)
    del model.metadata_props[:]
    path = tmp_path / "q.onnx"
    onnx.save(model, path)
    statement = Statement(num_classes=8, **STATED)
    adopted = segdeploy.adopt(path, statement, out=tmp_path / "mine.onnx")
    assert contract_of(load_onnx(adopted), adopted).precision == "int8"


def test_adopt_too_little_or_wrong_statements_are_refused(
    bare: Path, graph: Path, dynamic_graph: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.onnx"

    def refuse(said: str, file: Path = bare, **stated: object) -> None:
        with pytest.raises(InputError, match=said):
            segdeploy.adopt(file, Statement(**stated), out=out)
        assert not out.exists()

    refuse("its classes are unknown; give --like FILE, --data DIR or --num-classes N")
    refuse("its normalization is unknown; give --mean and --std", num_classes=8)
    refuse("gives an output of shape .* and 9 channels are stated", num_classes=9, **STATED)
    of_bytes = {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}
    refuse("--mean 123.7,.*give --mean-255", num_classes=8, preprocessing=of_bytes)
    flat = {"mean": IMAGENET_MEAN, "std": (0, 0, 0)}
    refuse("--std 0,0,0: must be a list of", num_classes=8, preprocessing=flat)
    refuse(
        "cannot be run on an image of shape \\(1, 3, 50, 60\\)",
        num_classes=8,
        size=(50, 60),
        **STATED,
    )
    refuse("its input size is unknown; give --size", dynamic_graph, num_classes=8, **STATED)
    refuse("leave --data, --num-classes and --foreground out", like=graph, num_classes=8)
    with pytest.raises(InputError, match="give it a name with --out"):
        segdeploy.adopt(bare, Statement(like=graph))
    with pytest.raises(InputError, match="is the input itself"):
        segdeploy.adopt(bare, Statement(like=graph), out=bare)
    with pytest.raises(InputError, match="apply only to an engine"):
        segdeploy.adopt(bare, Statement(like=graph), out=out, targets=["sm86"])


def test_adopt_an_engine_from_elsewhere_gets_a_manifest_that_says_so(
    run, graph: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:  # fmt: skip
    engine = tmp_path / "theirs.engine"
    segdeploy.build_engine(graph, engine, targets=["sm86"])
    manifest_path(engine).unlink()
    said = ("--backend", "tensorrt-rtx", "--target", "sm86")
    check_one_line(run("adopt", engine, "--like", graph), "name the engine's builder")
    check_one_line(run("adopt", engine, "--like", graph, *said[:2]), "name the compute capability")
    odd = (*said[:2], "--target", "banana")
    check_one_line(run("adopt", engine, "--like", graph, *odd), "--target banana")
    assert run("adopt", engine, "--like", graph, *said).code == 0
    manifest = read_manifest(engine)
    assert manifest.adopted
    assert manifest.compute_capabilities == ("sm86",)
    assert (manifest.input.shape, manifest.output.shape) == ((1, 3, 48, 64), (1, 8, 48, 64))
    assert manifest.input.name is None
    check_one_line(run("adopt", engine, "--like", graph, *said), "has a manifest already")
    check_one_line(run("self-test", engine), "was built without golden vectors; give --golden")


def test_adopt_like_refuses_what_the_graph_itself_computes(
    checkpoint: Path, tmp_path: Path
) -> None:
    """A copy of the graph computes it as before, so that a new statement would be false."""
    stated = {"fit": "letterbox", "pad": (114,)}
    spec = ModelSpec(str(checkpoint), stated=stated)
    bytes_ = tmp_path / "b.onnx"
    segdeploy.export(checkpoint, bytes_, preprocess="RGB")
    source = tmp_path / "s.onnx"
    segdeploy.export(spec, source, preprocess="RGB", source_size=(90, 200))
    out = tmp_path / "o.onnx"
    for file, fields, option in (
        (bytes_, {"mean": (0.1,), "std": (0.2,)}, "--mean"),
        (bytes_, {"normalization": "f32-div"}, "--normalization"),
        (bytes_, {"dtype": "uint16"}, "--dtype"),
        (source, {"fit": "stretch"}, "--fit"),
        (source, {"resize": "opencv-linear"}, "--resize"),
    ):
        with pytest.raises(InputError, match=f"its graph computes what {option} states"):
            segdeploy.adopt(file, Statement(like=file, preprocessing=fields), out=out)
        assert not out.exists()
    segdeploy.adopt(bytes_, Statement(like=bytes_, preprocessing={"fit": "none"}), out=out)


def test_adopt_like_runs_the_graph_before_it_believes_its_output(
    graph: Path, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    said = ("adopt", graph, "--like", graph, "-o", tmp_path / "o.onnx")
    refused = run(*said, "--output", "probabilities")
    assert refused.code == 2
    assert "are not those of a softmax or sigmoid, so its output is logits" in refused.err
    told = run(*said, "--channels", "nir,red,green")
    assert told.code == 0
    assert "assumed how its images are prepared: mean 0,0,0, std 1,1,1" in told.err
