"""Killed at any point, or out of disk: the output is the old file, the new one whole, or absent."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import segdeploy
from segdeploy.engine.manifest import read_manifest
from segdeploy.errors import InputError
from segdeploy.models.checkpoint import read_metadata, read_weights
from segdeploy.onnx_graph.model_file import contract_of, load_onnx
from segdeploy.proof.golden_vectors import read_golden

from . import forked_program

CRASH = Path(__file__).with_name("crash_points.py")
OLD = b"what was there before"


def is_old_or(whole: Callable[[Path], object], path: Path) -> None:
    if path.exists() and path.read_bytes() != OLD:
        whole(path)


def whole_graph(path: Path) -> None:
    contract_of(load_onnx(path), path)


def whole_checkpoint(path: Path) -> None:
    assert read_metadata(path)
    assert read_weights(path)


def crash(folder: Path, verb: str, **options: object) -> list[dict]:
    given = json.dumps(options, default=str)
    ran = subprocess.run(
        [sys.executable, CRASH, folder, verb, given], capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    states = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert states[-1]["code"] == 0, ran.stderr  # the last child came to its end
    assert all(state["code"] is None for state in states[:-1])
    return states


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def test_crash_safety_export(checkpoint: Path, folder: Path) -> None:
    (folder / "m.onnx").write_bytes(OLD)
    states = crash(folder, "export", model=checkpoint)
    assert len(states) >= 5
    for state in states:
        is_old_or(whole_graph, Path(state["at"], "m.onnx"))
        assert Path(state["at"], "m.onnx").exists()
    whole_graph(Path(states[-1]["at"], "m.onnx"))


def test_crash_safety_calibrate_and_its_cache(graph: Path, dataset: Path, folder: Path) -> None:
    (folder / "m.onnx").write_bytes(OLD)
    options = {"limit": 2, "method": "min-max"}
    states = crash(folder, "calibrate", model=graph, data=dataset, **options)
    assert len(states) >= 10
    for state in states:
        is_old_or(whole_graph, Path(state["at"], "m.onnx"))
        is_old_or(lambda path: json.loads(path.read_text()), Path(state["at"], "ranges.json"))
    whole_graph(Path(states[-1]["at"], "m.onnx"))


def test_crash_safety_build_engine_its_manifest_and_golden_vectors(
    graph: Path, folder: Path, tensorrt_rtx: object
) -> None:
    segdeploy.build_engine(graph, folder / "m.engine", targets=["sm86"])
    old = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    states = crash(folder, "build", model=graph, targets=["sm89"])
    assert len(states) >= 15
    new = states[-1]["held"]
    assert new["m.engine"] != old["m.engine"]
    refused = 0
    for state in states:
        for name, digest in state["held"].items():
            assert digest in (old[name], new[name]) or name == "m.engine.json"
        json.loads(Path(state["at"], "m.engine.json").read_text())
        read_golden(Path(state["at"], "m.engine.golden.safetensors"))
        engine = Path(state["at"], "m.engine")
        try:
            targets = read_manifest(engine).compute_capabilities
        except InputError as error:  # killed between the two
            assert "segdeploy build-engine" in str(error)
            refused += 1
        else:
            expected = ("sm86",) if state["held"]["m.engine"] == old["m.engine"] else ("sm89",)
            assert targets == expected
    assert 1 <= refused <= 6


def test_crash_safety_train_its_last_epoch_and_what_resume_needs(
    dataset: Path, folder: Path
) -> None:
    options = {"epochs": 1, "batch_size": 4}
    states = crash(folder, "train", data=dataset, **options)
    assert len(states) >= 10
    for state in states:
        at = Path(state["at"])
        for path in at.glob("*.safetensors"):
            whole_checkpoint(path)
        for path in at.glob("*.resume.pt"):
            read = __import__("torch").load(path, weights_only=True)
            assert read
    whole_checkpoint(Path(states[-1]["at"], "m.safetensors"))


@pytest.mark.parametrize("share", [0.0, 0.9])
@pytest.mark.parametrize("verb", ["export", "calibrate", "build-engine", "train"])
def test_crash_safety_a_full_disk(
    verb: str,
    share: float,
    checkpoint: Path,
    graph: Path,
    dataset: Path,
    folder: Path,
    request: pytest.FixtureRequest,
) -> None:
    """A limit on the size of files (RLIMIT_FSIZE) fails a write in its middle, as a full disk."""
    out = folder / {"build-engine": "m.engine", "train": "m.safetensors"}.get(verb, "m.onnx")
    whole = {"export": graph, "calibrate": graph, "train": checkpoint, "build-engine": graph}[verb]
    limit = int(whole.stat().st_size * share * (0.3 if verb == "calibrate" else 1)) + 1
    if verb == "build-engine":
        request.getfixturevalue("tensorrt_rtx")
    out.write_bytes(OLD)
    arguments = {
        "export": [checkpoint, "-o", out],
        "calibrate": [graph, "--data", dataset, "--limit", 2, "--method", "mse", "-q", "-o", out],
        "build-engine": [graph, "--target", "sm86", "-q", "-o", out],
        "train": [
            *("deeplabv3", "--data", dataset, "--size", "48x64", "--width", 8, "--stride", 2),
            # Workers share memory through files, which the limit would fail, too.
            *("--epochs", 1, "--workers", 0, "-q", "-o", out),
        ],
    }[verb]
    ran = forked_program.start(verb, *arguments, folder=folder, largest_file=limit).ended()
    assert ran.code == 2, ran.err
    assert ran.err.strip().splitlines()[-1].startswith("error: ")
    assert "File too large" in ran.err
    assert "Traceback" not in ran.err
    assert out.read_bytes() == OLD
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert left == []  # what was half-written is gone
