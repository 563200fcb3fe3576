"""The C++ library gives the labels that Python gives, pixel for pixel, on real frames."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import segdeploy
from segdeploy.golden import golden_content, golden_pictures, make_vectors
from segdeploy.models.dataset import open_dataset

from .conftest import skip

SOURCE = Path(__file__).parents[1] / "deploy" / "cpp"
ODD = (37, 83)  # a picture of another shape than the network's, with odd sides


def built(folder: Path, *settings: str) -> Path:
    """Configure and build the library, its programs and its tests."""
    if not shutil.which("cmake") or not shutil.which("g++"):
        skip("no C++ compiler and CMake here")
    headers = SOURCE.parents[1] / "build" / "cpp-headers"
    subprocess.run([SOURCE / "fetch_headers.sh", headers], check=True)
    root = headers / "usr"
    subprocess.run(
        ["cmake", "-S", SOURCE, "-B", folder, f"-DCMAKE_PREFIX_PATH={root}", *settings],
        check=True,
    )
    subprocess.run(["cmake", "--build", folder, "--parallel", "2"], check=True)
    return folder


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("cpp") / "build")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """ONNX Runtime's library is that of the Python package."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    library = next(folder.glob("libonnxruntime.so.*"))
    return {**os.environ, "SEGDEPLOY_ONNXRUNTIME": str(library)}


@pytest.fixture(scope="module")
def pictures(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames at their own size, at the network's, and at an odd one; a small one is enlarged."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, frame in enumerate(open_dataset(dataset).frames("val", 2)):
        image = Image.open(frame.image).convert("RGB")
        image.save(folder / f"{index}.png")
        image.resize((64, 48)).save(folder / f"{index}_own.png")
        image.resize(ODD[::-1]).save(folder / f"{index}_odd.png")
        image.resize((20, 15)).save(folder / f"{index}_small.png")
        image.resize((64, 200)).save(folder / f"{index}_tall.png")
    return folder


@pytest.fixture(scope="module")
def cases(
    checkpoint: Path, int8_graph: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Graphs of every kind of end, the pictures, and the labels that Python gives."""
    folder = tmp_path_factory.mktemp("files")
    kinds = {
        "logits": {},
        "labels": {"output": "labels"},
        "probabilities": {"output": "probabilities"},
        "late": {"output": "labels", "late_upsampling": True},
        "bytes": {"preprocess": "RGB"},
        "bgr": {"preprocess": "BGR", "output": "labels"},
        "fused": {"scales": (0.5, 1.0)},
    }
    for name, options in kinds.items():
        segdeploy.export(checkpoint, folder / f"{name}.onnx", **options)
    shutil.copy(int8_graph, folder / "int8.onnx")
    shutil.copytree(pictures, folder / "pictures")
    for graph in sorted(folder.glob("*.onnx")):
        (folder / graph.stem).mkdir()
        with segdeploy.load(graph, threads=1) as network:
            for picture in sorted(pictures.iterdir()):
                labels = Image.fromarray(network.predict(picture))
                labels.save(folder / graph.stem / picture.name)
    (folder / "plain.txt").write_text("no graph")
    return folder


def test_ctest(build: Path, cases: Path, environment: dict[str, str]) -> None:
    command = ["ctest", "--test-dir", build, "--output-on-failure"]
    ran = subprocess.run(
        command, env={**environment, "SEGDEPLOY_TEST_FILES": str(cases)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    assert "100% tests passed, 0 tests failed out of 3" in ran.stdout


@pytest.fixture
def run(build: Path, environment: dict[str, str]) -> Callable:
    def call(*arguments: object, **extra: str) -> subprocess.CompletedProcess:
        command = [build / "programs" / "segdeploy-run", *map(str, arguments)]
        ran = {**environment, **extra}
        return subprocess.run(command, env=ran, capture_output=True, text=True, check=False)

    return call


def test_labels_of_camvid_are_pythons(run, camvid: Path, tmp_path: Path) -> None:
    """An untrained network mixes its classes everywhere: the hardest case for equal labels."""
    from segdeploy.network import ModelSpec

    graph = tmp_path / "m.onnx"
    spec = ModelSpec("deeplabv3", None, {"width": 8}, None, (120, 160))
    segdeploy.export(spec, graph, data=camvid)
    frames = [frame.image for frame in open_dataset(camvid).frames("val", 3)]
    ran = run(*frames, "--model", graph, "--out", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("3 pictures by onnxruntime ")
    with segdeploy.load(graph) as network:
        for frame in frames:
            ours = np.asarray(Image.open(tmp_path / "out" / f"{frame.stem}.png"))
            assert np.array_equal(ours, network.predict(frame)), frame


def test_bad_arguments_and_files_are_one_line(run, cases: Path, tmp_path: Path) -> None:
    graph, picture = cases / "logits.onnx", cases / "pictures" / "0.png"
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture")
    text = tmp_path / "text.png"
    text.write_text("text")
    out = ("--out", tmp_path / "out")
    for arguments, words in (
        ((), "usage: segdeploy-run"),
        ((picture, "--model", graph, "--out"), "--out needs a value"),
        ((picture, "--modal", graph), "--modal: no such option"),
        ((picture, "--model", graph, *out, "--threads", "0"), "--threads 0: is 1 or more"),
        ((tmp_path / "none.png", "--model", graph, *out), "none.png: no such file"),
        ((text, "--model", graph, *out), "is neither a PNG nor a JPEG"),
        ((broken, "--model", graph, *out), "cannot be read as JPEG (Premature end"),
        ((picture, "--model", tmp_path / "none.onnx", *out), "none.onnx: no such file"),
    ):
        ran = run(*arguments)
        assert ran.returncode == 2, arguments
        assert ran.stderr.startswith("error: ")
        assert words in ran.stderr
        assert ran.stderr.count("\n") == 1
    ran = run(picture, "--model", graph, *out, SEGDEPLOY_ONNXRUNTIME="/nowhere/libort.so")
    assert ran.returncode == 2
    assert "/nowhere/libort.so: cannot be opened" in ran.stderr


def test_other_languages_use_the_c_interface(
    build: Path, cases: Path, environment: dict[str, str]
) -> None:
    """Python's ctypes is one; its labels are those of the Python package."""
    library = ctypes.CDLL(str(build / "libsegdeploy.so"))
    library.segdeploy_open.restype = ctypes.c_void_p
    library.segdeploy_error.restype = library.segdeploy_class.restype = ctypes.c_char_p
    handle, size = ctypes.c_void_p, ctypes.c_size_t
    bytes_of = ctypes.c_char_p
    library.segdeploy_predict.argtypes = [
        handle, bytes_of, ctypes.c_int, ctypes.c_int, size, ctypes.c_int, bytes_of,
    ]  # fmt: skip
    for function in (library.segdeploy_classes, library.segdeploy_close):
        function.argtypes = [handle]
    library.segdeploy_class.argtypes = [handle, ctypes.c_int]
    runtime = environment["SEGDEPLOY_ONNXRUNTIME"].encode()
    assert not library.segdeploy_open(b"none.onnx", runtime, 0)
    assert library.segdeploy_error() == b"none.onnx: no such file"
    graph = cases / "logits.onnx"
    model = library.segdeploy_open(str(graph).encode(), runtime, 1)
    assert model, library.segdeploy_error()
    picture = np.asarray(Image.open(cases / "pictures" / "0_odd.png"))
    labels = ctypes.create_string_buffer(ODD[0] * ODD[1])
    assert library.segdeploy_predict(model, picture.tobytes(), *ODD, 0, 0, labels) == 0
    wanted = np.asarray(Image.open(cases / "logits" / "0_odd.png"))
    assert labels.raw == wanted.tobytes()
    assert library.segdeploy_predict(model, b"", *ODD, 1, 0, labels) == 1
    assert b"stride is 1 bytes" in library.segdeploy_error()
    assert library.segdeploy_predict(None, b"", *ODD, 0, 0, labels) == 1
    assert library.segdeploy_predict(model, b"", *ODD, 0, 9, labels) == 1
    assert b"none of rgb" in library.segdeploy_error()
    with segdeploy.load(graph) as network:
        assert library.segdeploy_classes(model) == len(network.contract.classes)
        assert library.segdeploy_class(model, 1).decode() == network.contract.classes[1]
    assert library.segdeploy_class(model, 99) is None
    library.segdeploy_close(model)


@pytest.mark.parametrize("kind", ["address,undefined", "thread"])
def test_sanitizers_are_silent(
    kind: str, cases: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = built(tmp_path / "build", f"-DSEGDEPLOY_SANITIZE={kind}", "-DCMAKE_BUILD_TYPE=Debug")
    few = tmp_path / "few"
    for name in ("logits", "late", "bytes"):
        shutil.copytree(cases / name, few / name)
        shutil.copy(cases / f"{name}.onnx", few)
    shutil.copytree(cases / "pictures", few / "pictures")
    shutil.copy(cases / "plain.txt", few)
    command = ["ctest", "--test-dir", folder, "--output-on-failure"]
    # ONNX Runtime keeps what it made until the process ends, and is not instrumented.
    options = {
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "TSAN_OPTIONS": "report_mutex_bugs=0:ignore_noninstrumented_modules=1",
    }
    ran = subprocess.run(
        command, env={**environment, **options, "SEGDEPLOY_TEST_FILES": str(few)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:]


@pytest.mark.parametrize("name", ["logits", "bytes", "late", "int8"])
def test_golden_vectors_prove_the_host(run, cases: Path, tmp_path: Path, name: str) -> None:
    graph, golden = cases / f"{name}.onnx", tmp_path / "golden.safetensors"
    with segdeploy.load(graph, threads=1) as network:
        vectors = make_vectors(network, golden_pictures(network.contract))
    golden.write_bytes(golden_content(vectors, graph))
    ran = run("--selftest", golden, "--model", graph)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 4
    assert all("input 0, " in line and "labels 100.000 %" in line for line in lines[:3])
    other = replace(vectors[1], input=vectors[1].input + np.float32(1))
    golden.write_bytes(golden_content([vectors[0], other], graph))
    ran = run("--selftest", golden, "--model", graph)
    assert ran.returncode == 1
    assert "error: picture 1: the network's input differs by" in ran.stderr


def test_every_size_is_resized_as_pillow_does(run, cases: Path, tmp_path: Path) -> None:
    """To the last bit: the network's input differs by nothing."""
    graph, golden = cases / "logits.onnx", tmp_path / "golden.safetensors"
    rng = np.random.default_rng(0)
    sizes = [tuple(rng.integers(8, 160, 2)) for _ in range(40)]
    sizes += [(48, 65), (64, 65), (56, 68), (57, 68), (49, 64), (200, 20), (20, 200)]
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    with segdeploy.load(graph, threads=1) as network:
        golden.write_bytes(golden_content(make_vectors(network, images), graph))
    ran = run("--selftest", golden, "--model", graph)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == len(sizes) + 1
    for size, line in zip(sizes, lines, strict=False):
        assert "input 0, " in line, (size, line)


def test_damaged_golden_vectors_are_refused(run, cases: Path, tmp_path: Path) -> None:
    graph, golden = cases / "logits.onnx", tmp_path / "golden.safetensors"
    with segdeploy.load(graph, threads=1) as network:
        vectors = make_vectors(network, golden_pictures(network.contract)[:1])
    content = golden_content(vectors, graph)
    rng = np.random.default_rng(0)
    head = 8 + int.from_bytes(content[:8], "little")
    for index in range(60):
        damaged = bytearray(content if index % 2 else content[: rng.integers(len(content))])
        for place in rng.integers(0, min(head, len(damaged)) or 1, 3):
            if damaged:
                damaged[place] = rng.integers(256)
        golden.write_bytes(bytes(damaged))
        ran = run("--selftest", golden, "--model", graph)
        assert ran.returncode in (0, 1, 2), (index, ran)
        assert ran.stderr.count("\n") == (ran.returncode != 0)


def test_an_outside_project_uses_the_install_tree(build: Path, tmp_path: Path) -> None:
    prefix, project = tmp_path / "prefix", tmp_path / "project"
    subprocess.run(["cmake", "--install", build, "--prefix", prefix], check=True)
    project.mkdir()
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\n"
        "project(outside CXX)\n"
        "find_package(segdeploy 0.1 REQUIRED)\n"
        "add_executable(outside main.cpp)\n"
        "target_link_libraries(outside PRIVATE segdeploy::segdeploy)\n"
    )
    (project / "main.cpp").write_text(
        "#include <segdeploy/segdeploy.hpp>\n#include <iostream>\n"
        "int main() { std::cout << segdeploy::version(); }\n"
    )
    made = project / "build"
    subprocess.run(
        ["cmake", "-S", project, "-B", made, f"-DCMAKE_PREFIX_PATH={prefix}"], check=True
    )
    subprocess.run(["cmake", "--build", made], check=True)
    told = subprocess.run([made / "outside"], capture_output=True, text=True, check=True)
    assert told.stdout == "0.1.0"
    header = (prefix / "include" / "segdeploy" / "segdeploy.hpp").read_text()
    assert len(header.splitlines()) < 300
    for word in ("Ort", "cuda", "nvinfer", "nlohmann"):
        assert f"{word}::" not in header
    library = next(prefix.rglob("libsegdeploy.so.0.1.0"))
    subprocess.run(["strip", library], check=True)
    assert library.stat().st_size < 500_000
