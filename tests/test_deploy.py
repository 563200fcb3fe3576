"""The whole path in one command: done once, and not again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import segdeploy
from segdeploy.benchmark.verdict import Limits
from segdeploy.commands.deploy import Bundle
from segdeploy.engine.manifest import read_manifest
from segdeploy.errors import InputError
from segdeploy.onnx_graph.model_file import contract_of, load_onnx

from .conftest import check_one_line

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


@pytest.fixture(scope="module")
def shipped(
    checkpoint: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory, tensorrt_rtx: object
) -> Bundle:
    out = tmp_path_factory.mktemp("ship") / "dist"
    return segdeploy.deploy(
        checkpoint, dataset, out, targets=["sm86", "sm89"], max_miou_drop=20.0, seconds=0.2
    )


def test_deploy_the_folder_holds_what_is_to_be_shipped(shipped) -> None:
    names = {path.name for path in shipped.folder.iterdir()}
    assert {"model.onnx", "model.fp16.onnx", "model.int8.onnx", "labels.txt", "README.md",
            "report", "steps.ledger"} <= names  # fmt: skip
    assert shipped.passes
    (engine,) = shipped.engines
    manifest = read_manifest(engine)
    assert manifest.compute_capabilities == ("sm86", "sm89")
    assert manifest.parent == shipped.chosen.name
    assert shipped.chosen.name == "model.int8.onnx"
    assert "no engine was timed" in shipped.why
    readme = (shipped.folder / "README.md").read_text()
    assert f'segdeploy.load("{engine.name}")' in readme
    labels = (shipped.folder / "labels.txt").read_text().split("\n")[:-1]
    assert tuple(labels) == contract_of(load_onnx(shipped.chosen), shipped.chosen).classes
    assert (shipped.folder / "report" / "index.html").exists()
    assert segdeploy.self_test(
        shipped.chosen, golden=shipped.folder / f"{engine.name}.golden.safetensors"
    ).holds


def test_deploy_what_was_done_is_not_done_again(
    run, shipped, checkpoint: Path, dataset: Path
) -> None:  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in shipped.folder.glob("model*")}
    common = ("--data", dataset, "--target", "sm86", "--target", "sm89", "-o", shipped.folder)
    budget = ("--max-miou-drop", 20, "--seconds", 0.2)
    ran = run("deploy", checkpoint, *common, *budget, "--dry-run")
    assert ran.code == 0
    assert ran.out.count(": is done") == 7
    ran = run("deploy", checkpoint, *common, "--max-miou-drop", 21, "--dry-run")
    assert "export: is done" in ran.out
    assert "calibrate to fp16: is done" in ran.out
    assert "calibrate to int8: would be done" in ran.out
    assert "bench: would be done" in ran.out
    (shipped.folder / "model.fp16.onnx").write_bytes(b"damaged")
    ran = run("deploy", checkpoint, *common, *budget, "--dry-run")
    assert "calibrate to fp16: would be done" in ran.out
    segdeploy.deploy(
        checkpoint,
        dataset,
        shipped.folder,
        targets=["sm86", "sm89"],
        max_miou_drop=20.0,
        seconds=0.2,
    )
    after = {path: path.stat().st_mtime_ns for path in shipped.folder.glob("model*")}
    changed = {path.name for path in after if before.get(path) != after[path]}
    assert changed == {"model.fp16.onnx"}  # and its engine is that of the same graph


def test_deploy_a_budget_that_nothing_keeps_ships_nothing(
    run, checkpoint: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    from segdeploy.commands import deploy

    monkeypatch.setattr(deploy, "Limits", lambda **_: Limits(max_latency_ms=1e-6))
    out = tmp_path / "dist"
    ran = run("deploy", checkpoint, "--data", dataset, "--target", "sm86",
              "--max-miou-drop", 20, "--seconds", 0.2, "-o", out, "--json")  # fmt: skip
    assert ran.code == 1
    described = json.loads(ran.out)
    assert described["chosen"] is None
    assert described["why"] == "no candidate keeps the budget"
    assert not (out / "README.md").exists()


def test_deploy_what_cannot_be_deployed_is_refused_before_anything_is_done(
    run, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    common = ("--data", dataset, "-o", tmp_path / "dist")
    check_one_line(run("deploy", checkpoint, *common, "--target", "sm1"), "--target sm1")
    check_one_line(run("deploy", checkpoint, *common), "name the GPU's compute capability")
    with pytest.raises(InputError, match="does not exist; make it first"):
        segdeploy.deploy(checkpoint, dataset, tmp_path / "a" / "b", targets=["sm86"])
    assert list(tmp_path.iterdir()) == []
