"""The wrong engine: every way to load one is refused before TensorRT sees a byte."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import segdeploy
from segdeploy.device import Gpu, current_gpu, host_platform
from segdeploy.engine.bindings import open_bindings
from segdeploy.engine.compatibility import check_host, check_version
from segdeploy.engine.manifest import manifest_path, parse_manifest, read_engine, read_manifest
from segdeploy.errors import InputError
from segdeploy.runtime.session import open_session

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, graph: Path, tensorrt_rtx: object) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    shutil.copy(graph, folder / "model.onnx")
    out = folder / "road.engine"
    segdeploy.build_engine(folder / "model.onnx", out, targets=["sm86", "sm89"])
    return out


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    for path in built.parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / built.name


def edit(of: Path, /, **entries: object) -> None:
    path = manifest_path(of)
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def refused(engine: Path, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_session(engine)


def test_manifest_a_manifest_that_was_written_is_read_back(engine: Path) -> None:
    manifest = read_manifest(engine)
    assert manifest.to_json() == manifest_path(engine).read_text()
    assert manifest.contract.classes[0] == "sky"
    assert manifest.compute_capabilities == ("sm86", "sm89")


def test_manifest_1_no_manifest(engine: Path) -> None:
    manifest_path(engine).unlink()
    refused(engine, r"has no manifest road\.engine\.json, .* `segdeploy adopt`")


def test_manifest_2_a_damaged_manifest(engine: Path) -> None:
    manifest_path(engine).write_text('{"schema": 2, ')
    refused(engine, r"road\.engine\.json: is not a manifest")
    manifest_path(engine).write_text("[" * 100_000)
    refused(engine, r"road\.engine\.json: is not a manifest")


def test_manifest_3_a_manifest_of_another_schema(engine: Path) -> None:
    edit(engine, schema=3)
    refused(engine, "its manifest has schema 3, this segdeploy reads 2; build the engine again")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sha256", None), ("bytes", "9"), ("backend", "tflite"), ("profiles", [{}]),
        ("compute_capabilities", "sm86"), ("golden", "../../etc/passwd"), ("engine", "../x.engine"),
        ("contract", []), ("options", 3), ("convolutions", [1]), ("precision", "fp8"),
        ("convolutions", [{"module": "a", "kernel": 3}]), ("parent", "../x.onnx"), ("input", {}),
        ("profiles", [{"minimum": [1, 9, 9], "optimum": [1, 8, 8], "maximum": [1, 9, 9]}]),
    ],
)  # fmt: skip
def test_manifest_4_a_manifest_with_wrong_types(engine: Path, name: str, value: object) -> None:
    edit(engine, **{name: value})
    refused(engine, f"the manifest's '{name}' is missing or wrong; build the engine again")


def test_manifest_5_the_manifest_of_another_engine(engine: Path) -> None:
    moved = engine.with_name("rail.engine")
    engine.rename(moved)
    manifest_path(engine).rename(manifest_path(moved))
    refused(moved, r"is the manifest of road\.engine; keep an engine's name")


def test_manifest_6_an_engine_that_was_cut_off(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes()[:-1000])
    refused(engine, "was cut off or replaced; .* segdeploy build-engine model.onnx --backend")


def test_manifest_7_an_engine_whose_bytes_were_changed(engine: Path) -> None:
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(bytes(content))
    refused(engine, "its bytes are not those that its manifest states")


def test_manifest_8_an_engine_of_another_version(engine: Path) -> None:
    edit(engine, backend_version="1.4.0.76")
    refused(
        engine,
        r"built by tensorrt-rtx 1\.4\.0\.76, and .* is installed; .* --target sm86 --target sm89",
    )


def test_manifest_9_an_engine_of_another_builder(engine: Path) -> None:
    edit(engine, backend="tensorrt")
    refused(engine, r"needs the package tensorrt, which is not installed; run: pip install")
    edit(engine, backend="tensorrt-rtx")
    with pytest.raises(InputError, match="was built by tensorrt-rtx, and tensorrt cannot read it"):
        open_session(engine, "tensorrt")
    with pytest.raises(InputError, match="is a TensorRT engine; onnxruntime runs the .onnx"):
        open_session(engine, "onnxruntime")


def test_manifest_10_an_engine_for_another_gpu(engine: Path) -> None:
    manifest = read_manifest(engine)
    turing = Gpu("NVIDIA T4", "sm75")
    with pytest.raises(InputError) as raised:
        check_host(manifest, engine, turing)
    assert "was built for sm86, sm89, and this GPU (NVIDIA T4) is sm75: segdeploy" in str(
        raised.value
    )
    assert "--target sm75 -o road.engine" in str(raised.value)
    check_host(manifest, engine, Gpu("NVIDIA A10", "sm86"))


def test_manifest_11_an_engine_for_another_platform(engine: Path) -> None:
    manifest = replace(read_manifest(engine), platform="linux-aarch64")
    with pytest.raises(InputError, match=f"built for linux-aarch64, and this is {host_platform()}"):
        check_host(manifest, engine, Gpu("Orin", "sm87"))


@pytest.mark.skipif(current_gpu() is not None, reason="a GPU is here")
def test_manifest_12_no_gpu_at_all(engine: Path) -> None:
    refused(engine, "needs an NVIDIA GPU and its driver, and there is none here .* model.onnx")


def test_manifest_compatible_engines_are_let_in(engine: Path) -> None:
    manifest = read_manifest(engine)
    rtx = open_bindings("tensorrt-rtx")
    older = replace(
        manifest, backend_version="1.6.9", options={**manifest.options, "version_compatible": True}
    )
    check_version(older, engine, rtx)
    newer = replace(older, backend_version="1.99.0")
    with pytest.raises(InputError, match=r"built by tensorrt-rtx 1\.99\.0"):
        check_version(newer, engine, rtx)
    ampere = replace(manifest, options={**manifest.options, "hardware_compatible": True})
    check_host(ampere, engine, Gpu("Blackwell", "sm120"))
    with pytest.raises(InputError, match="this GPU .* is sm75"):
        check_host(ampere, engine, Gpu("T4", "sm75"))


@pytest.mark.skipif(current_gpu() is not None, reason="a GPU is here")
def test_manifest_what_tensorrt_says_without_a_driver_is_told(engine: Path) -> None:
    from segdeploy.engine.deserialization import open_engine

    with pytest.raises(InputError, match="cannot open it .*`segdeploy doctor`"):
        open_engine(open_bindings("tensorrt-rtx"), read_manifest(engine), engine, b"plan")
    manifest, plan = read_engine(engine)
    with pytest.raises(InputError, match="cannot open it"):
        open_engine(open_bindings("tensorrt-rtx"), manifest, engine, plan)


def test_manifest_the_command_that_rebuilds_builds_the_same(
    dynamic_graph: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    from segdeploy.profiles import Profile

    profile = Profile((1, 32, 32), (1, 48, 64), (2, 96, 128))
    out = tmp_path / "a road.engine"
    segdeploy.build_engine(dynamic_graph, out, targets=["sm86"], profiles=[profile], workspace=512)
    assert read_manifest(out).rebuild("sm89") == (
        "segdeploy build-engine dynamic.onnx --backend tensorrt-rtx --target sm89 --min 1x32x32 "
        "--opt 1x48x64 --max 2x96x128 --workspace 512 -o 'a road.engine'"
    )


def test_manifest_an_onnx_file_has_no_engine_backend(graph: Path) -> None:
    with pytest.raises(InputError, match="tensorrt-rtx runs engines; make one with `segdeploy"):
        open_session(graph, "tensorrt-rtx")
    with pytest.raises(InputError, match="onnxruntime-cuda: this ONNX Runtime .* has no CUDAExec"):
        open_session(graph, "onnxruntime-cuda")


def test_manifests_are_small(tmp_path: Path) -> None:
    path = tmp_path / "m.engine.json"
    with path.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(InputError, match="is not a manifest \\(the file has"):
        parse_manifest(path)
