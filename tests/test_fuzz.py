"""Files that went wrong, or were made to: each parser of ours refuses them in one line.

`make fuzz` gives each parser a thousand.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import segdeploy
from segdeploy.benchmark.protocol import Protocol
from segdeploy.benchmark.report import write_report
from segdeploy.commands.deploy import Steps
from segdeploy.engine.manifest import manifest_path, parse_manifest
from segdeploy.errors import InputError
from segdeploy.files import sha256_of_file
from segdeploy.ledger import BENCH, STEPS, Ledger
from segdeploy.models.checkpoint import read_weights
from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import ModelInputError
from segdeploy.onnx_graph.model_file import load_onnx
from segdeploy.precision.cache import read_cache
from segdeploy.proof.golden_vectors import golden_path, read_golden

from .fuzz_files import LEDGER, TOLERANT

FUZZ = Path(__file__).with_name("fuzz_files.py")
FILES = int(os.environ.get("SEGDEPLOY_FUZZ_FILES", "200"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="module")
def sound(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint: Path,
    graph: Path,
    int8_graph: Path,
    dataset: Path,
    tensorrt_rtx: object,
) -> dict[str, Path]:
    """A sound file for each parser."""
    folder = tmp_path_factory.mktemp("sound")
    engine = folder / "m.engine"
    segdeploy.build_engine(graph, engine, targets=["sm86"])
    ranges = folder / "ranges.json"
    segdeploy.calibrate(graph, dataset, folder / "m.onnx", limit=2, method="min-max", cache=ranges)
    weights = folder / "m.pth"
    torch.save(read_weights(checkpoint), weights)
    frame = open_dataset(dataset).frames("val")[0]
    return {
        "onnx": graph,
        "onnx-run": int8_graph,
        "onnx-optimize": graph,
        "onnx-adopt": graph,
        "onnx-build": graph,
        "checkpoint": checkpoint,
        "weights": weights,
        "manifest": manifest_path(engine),
        "golden": golden_path(engine),
        "ranges": ranges,
        "dataset": dataset / "dataset.json",
        "image": frame.image,
        "mask": frame.mask,
        "onnx-predict": graph,
        **_unfinished_work(folder, graph, dataset),
    }


def _unfinished_work(folder: Path, graph: Path, dataset: Path) -> dict[str, Path]:
    """What the commands leave to go on from, and what bench reads of others."""
    candidate = folder / "candidate.json"
    candidate.write_text(
        json.dumps(
            {
                "schema": 3,
                "model": str(graph),
                "model_sha256": sha256_of_file(graph),
                "settings": {"threads": 1, "provider": "cpu"},
            }
        )
    )
    program = folder / "bin" / "segdeploy-bench"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    ledger = Ledger(folder / BENCH, "key")
    for name, value in LEDGER.items():
        ledger.put(name, value)
    steps = folder / "steps-0.ledger"
    (folder / "steps").mkdir()
    work = Steps(folder / "steps", {}, False, lambda name, message: None)
    made = folder / "steps" / "m.bin"
    work.run("export", [made], {}, lambda: made.write_bytes(b"graph"))
    shutil.copy(folder / "steps" / STEPS, steps)
    verdict = segdeploy.bench(
        [graph], reference=graph, data=dataset, limit=1, protocol=Protocol(seconds=0.1)
    )
    write_report(verdict, folder / "report", [])
    return {
        "bench-candidate": candidate,
        "bench-verdict": folder / "report" / "bench.json",
        "ledger": folder / BENCH,
        "steps": steps,
    }


def test_fuzz_mutated_files_are_refused_in_one_line(
    sound: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [f"{parser}={path}" for parser, path in sound.items()]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_files", str(FILES), *pairs],
        capture_output=True,
        text=True,
        timeout=2400,
        cwd=FUZZ.parents[1],
        env={**os.environ, "PATH": f"{sound['ledger'].parent / 'bin'}:{os.environ['PATH']}"},
    )
    results = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    with capsys.disabled():
        if FILES > 200:
            print(ran.stdout)
    assert ran.returncode == 0, f"crashed behind {results[-1:]}: {ran.stderr[-500:]}"
    assert [result["parser"] for result in results] == list(sound)
    for result in results:
        assert result["faults"] == [], result
        assert result["refused"] > FILES / 4 or result["parser"] in TOLERANT
        assert result["read"] + result["refused"] == FILES


def replaced(text: str, name: str, value: Any) -> str:
    return json.dumps({**json.loads(text), name: value})


@once
@given(data=st.data())
def test_fuzz_a_manifest_with_any_value_is_read_or_refused(
    sound: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    text = sound["manifest"].read_text()
    name = data.draw(st.sampled_from(sorted(json.loads(text))))
    path = tmp_path / "m.engine.json"
    path.write_text(replaced(text, name, data.draw(JSON)))
    try:
        parse_manifest(path)
    except InputError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)


@once
@given(data=st.data())
def test_fuzz_a_cache_of_ranges_with_any_value_is_read_or_refused(
    sound: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    text = sound["ranges"].read_text()
    name = data.draw(st.sampled_from(sorted(json.loads(text))))
    path = tmp_path / "ranges.json"
    path.write_text(replaced(text, name, data.draw(JSON)))
    values = json.loads(text)
    try:
        read_cache(path, values["graph"], values["data"])
    except InputError as error:
        assert "is not a cache of ranges" in str(error)


@once
@given(data=st.data())
def test_fuzz_a_data_set_with_any_value_is_read_or_refused(
    sound: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    text = sound["dataset"].read_text()
    name = data.draw(st.sampled_from(sorted(json.loads(text))))
    (tmp_path / "dataset.json").write_text(replaced(text, name, data.draw(JSON)))
    try:
        open_dataset(tmp_path)
    except ModelInputError as error:
        assert "\n" not in str(error)


@once
@given(content=st.binary(max_size=400))
def test_fuzz_any_bytes_are_refused_by_every_reader(tmp_path: Path, content: bytes) -> None:
    for name, read in (
        ("m.onnx", load_onnx),
        ("m.safetensors", read_weights),
        ("m.pth", read_weights),
        ("m.engine.json", parse_manifest),
        ("m.golden.safetensors", read_golden),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises((InputError, ModelInputError), match=r"m\."):
            read(path)


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (1 << 62, b"{}"),
        (1 << 20, b"{}"),
        (8, b'{"a":1}'),
        (None, b'{"w":{"dtype":"F32","shape":[1000000000,1000],"data_offsets":[0,8]}}'),
        (None, b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,9999999]}}'),
        (None, b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'),
        (None, b'{"w":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}'),
        (None, b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}'),
    ],
)
def test_fuzz_a_safetensors_header_that_lies_is_refused(
    length: int | None, header: bytes, tmp_path: Path
) -> None:
    for name, read in (("m.safetensors", read_weights), ("m.golden.safetensors", read_golden)):
        path = tmp_path / name
        path.write_bytes((length or len(header)).to_bytes(8, "little") + header + b"\0" * 8)
        with pytest.raises((InputError, ModelInputError), match=r"m\."):
            read(path)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret.bin", "a/../../secret.bin", "link.bin", ""]
)
def test_fuzz_weights_outside_the_folder_are_refused(
    location: str, graph: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = onnx.load(graph)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="outside its own folder; such a file is refused"):
        load_onnx(path)


def test_fuzz_none_of_our_sources_runs_what_it_reads() -> None:
    """No pickle, eval, exec, yaml.load or shell: ruff's rules find most, and this the rest."""
    calls = ("pickle.load", "yaml.load", "shell=True", "os.system(", "allow_pickle=True")
    root = Path(__file__).parent.parent
    for folder in ("deploy", "models", "calibration"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text()
            for call in calls:
                assert call not in text, f"{path}: {call}"
            assert "weights_only=False" not in text
