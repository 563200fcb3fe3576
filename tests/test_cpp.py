"""The C++ library gives the labels that Python gives, pixel for pixel, on real frames."""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import segdeploy
from segdeploy.benchmark.protocol import Protocol
from segdeploy.engine.manifest import manifest_path
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.models.images import read_image
from segdeploy.onnx_graph.model_file import contract_of, load_onnx, set_rejected
from segdeploy.proof.golden_vectors import golden_content, golden_images, make_vectors
from segdeploy.runtime.postprocess import label_colors, overlay

from .conftest import ROOT, skip
from .cpp_files import (
    SOURCE,
    built,
    write_foreign,
    write_inference_options,
    write_manifests,
    write_seeds,
    write_stepped,
    write_with_fp16_io,
)
from .fuzz_files import mutated
from .image_cases import write_image_cases

ODD = (37, 83)  # an image of another shape than the network's, with odd sides


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
def images(dataset: Path, camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Part of a road scene and a generated one: as they are, at the network's size, at odd ones."""
    folder = tmp_path_factory.mktemp("images")
    road = open_dataset(camvid).frames("val", 1)[0]
    scene = open_dataset(dataset).frames("val", 1)[0]
    for index, (frame, part) in enumerate(((road, (90, 100, 330, 260)), (scene, (0, 0, 128, 96)))):
        image = Image.open(frame.image).convert("RGB").crop(part)
        image.save(folder / f"{index}.png")
        image.resize((64, 48)).save(folder / f"{index}_own.png")
        image.resize(ODD[::-1]).save(folder / f"{index}_odd.png")
        image.resize((20, 15)).save(folder / f"{index}_small.png")
        image.resize((64, 200)).save(folder / f"{index}_tall.png")
    return folder


@pytest.fixture(scope="module")
def cases(
    checkpoint: Path,
    graph: Path,
    int8_graph: Path,
    dataset: Path,
    images: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Graphs of every kind of end, the images, and the labels that Python gives."""
    folder = tmp_path_factory.mktemp("files")
    kinds = {
        "logits": {},
        "labels": {"output": "labels"},
        "probabilities": {"output": "probabilities"},
        "late": {"output": "labels", "late_upsampling": True},
        "bytes": {"preprocess": "RGB"},
        "bgr": {"preprocess": "BGR", "output": "labels"},
        "fused": {"scales": (0.5, 1.0)},
        "dynamic": {"dynamic": True},
    }
    for name, options in kinds.items():
        segdeploy.export(checkpoint, folder / f"{name}.onnx", **options)
    shutil.copy(int8_graph, folder / "int8.onnx")
    segdeploy.calibrate(graph, dataset, folder / "half.onnx", precision="fp16")
    write_with_fp16_io(folder / "half.onnx", folder / "halves.onnx")
    write_stepped(folder / "dynamic.onnx", folder / "stepped.onnx")
    shutil.copytree(images, folder / "images")
    for graph in sorted(folder.glob("*.onnx")):
        (folder / graph.stem).mkdir()
        with segdeploy.load(graph, threads=1) as network:
            for image in sorted(images.iterdir()):
                labels = Image.fromarray(network.predict(image))
                labels.save(folder / graph.stem / image.name)
    (folder / "plain.txt").write_text("no graph")
    write_inference_options(folder)
    write_foreign(folder)
    write_seeds(folder)
    return folder


@pytest.fixture(scope="module")
def manifests(cases: Path, graph: Path) -> Path:
    return write_manifests(cases, graph)


def test_cpp_the_programs_read_every_kind_of_image_by_the_rule(build: Path, tmp_path: Path) -> None:
    """docs/reference/images.md: the same pixels and the same words as Python's reader."""
    for file in write_image_cases(tmp_path):
        ran = subprocess.run(
            [build / "tests" / "read_image", file.path], capture_output=True, timeout=60
        )
        head, _, content = ran.stdout.partition(b"\n")
        if file.pixels is None:
            assert head.decode().startswith(f"error: {file.path}: {file.refused}"), head
        else:
            assert head.decode() == f"{file.pixels.shape[0]} {file.pixels.shape[1]}", file.path.name
            assert content == file.pixels.tobytes(), file.path.name


def test_cpp_damaged_images_are_read_or_refused_alike(build: Path, tmp_path: Path) -> None:
    """Mutated files of every kind: both readers refuse one, or both give the same pixels."""
    rng = random.Random(0)
    (tmp_path / "sound").mkdir()
    sound = [file.path for file in write_image_cases(tmp_path / "sound")]
    files = []
    for index in range(400):
        one = rng.choice(sound)
        files.append(tmp_path / f"{index}_{one.name}")
        files[-1].write_bytes(mutated(one.read_bytes(), rng))
    command = [build / "tests" / "read_image", *files]
    decoded = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
    read = 0
    for file in files:
        head, _, decoded = decoded.partition(b"\n")
        try:
            pixels = read_image(file)
        except InputError:
            assert head.startswith(b"error: "), file.name
            continue
        assert head == b"%d %d" % pixels.shape[:2], file.name
        assert decoded[: pixels.size] == pixels.tobytes(), file.name
        decoded = decoded[pixels.size :]
        read += 1
    assert read > 5  # a wrong bit in a PNG is seen by its checksum


def test_cpp_ctest(build: Path, cases: Path, manifests: Path, environment: dict[str, str]) -> None:
    """Everything that C++ tests itself; NVIDIA's runtime is opened, and finds no GPU here."""
    folder = Path(sys.prefix) / "tensorrt-rtx-1.4"
    if not folder.is_dir():
        skip("TensorRT-RTX 1.4 is not in the environment; make .venv/.ready puts it there")
    early = folder / "tensorrt_rtx_libs" / "libtensorrt_rtx.so.1"
    rtx = {
        "SEGDEPLOY_TEST_RTX": str(early),
        "SEGDEPLOY_TEST_RTX_VERSION": "1.4.0.76",
        "SEGDEPLOY_TEST_OTHER_RTX": str(later_rtx()),
        "SEGDEPLOY_TEST_PLAN": str(manifests / "a b.engine"),
        **lean_runtimes(),
    }
    command = ["ctest", "--test-dir", build, "--output-on-failure"]
    ran = subprocess.run(
        command, env={**environment, **rtx, "SEGDEPLOY_TEST_FILES": str(cases)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    assert "100% tests passed, 0 tests failed out of 9" in ran.stdout


def lean_runtimes() -> dict[str, str]:
    """TensorRT's real runtime, without a builder: of the headers' family, and of the next one."""
    if Path("/dev/nvidia0").exists():
        return {}  # CUDA starts there
    lean, other = (Path(sys.prefix) / f"tensorrt-lean-{family}" for family in (10, 11))
    if not lean.is_dir() or not other.is_dir():
        skip("TensorRT's lean runtimes are not in the environment; make .venv/.ready puts them")
    return {
        "SEGDEPLOY_TEST_LEAN": str(lean / "tensorrt_lean_libs" / "libnvinfer_lean.so.10"),
        "SEGDEPLOY_TEST_LEAN_VERSION": "10.16.1.11",
        "SEGDEPLOY_TEST_LEAN_OTHER": str(other / "tensorrt_lean_libs" / "libnvinfer_lean.so.11"),
    }


def later_rtx() -> Path:
    """The library of the TensorRT-RTX that Python uses, which is of another family."""
    import tensorrt_rtx_libs

    return Path(tensorrt_rtx_libs.__file__).parent / "libtensorrt_rtx.so.1"


def test_cpp_an_engine_says_why_it_cannot_be_opened_here(
    run, manifests: Path, tmp_path: Path
) -> None:
    """In CI there is no GPU; the library is checked before, the manifest before that."""
    image = manifests.parent / "images" / "0.png"
    folder = Path(sys.prefix) / "tensorrt-rtx-1.4" / "tensorrt_rtx_libs"
    early = str(folder / "libtensorrt_rtx.so.1")
    engine = tmp_path / "m.engine"
    whole = manifests / "a b.engine"
    shutil.copy(whole, engine)
    manifest = json.loads(manifest_path(whole).read_text())

    def says(library: str, **changes: object) -> str:
        manifest_path(engine).write_text(json.dumps({**manifest, "engine": "m.engine", **changes}))
        ran = run(image, "--model", engine, "--out", tmp_path, SEGDEPLOY_TENSORRT_RTX=library)
        assert ran.returncode == 2
        assert ran.stderr.count("\n") == 1
        return ran.stderr

    assert "was built by tensorrt-rtx 1.7.1.116, and 1.4.0.76 is installed" in says(early)
    same = {"backend_version": "1.4.0.76"}
    assert "needs an NVIDIA GPU and its driver, and there is none here" in says(early, **same)
    other = says(str(later_rtx()))
    assert "is TensorRT-RTX 1.7.1.116, and this library was compiled for" in other
    assert "TensorRT-RTX 1.0 to 1.4" in other
    assert "cannot be opened" in says("/nowhere/libtensorrt_rtx.so.1", **same)
    both = says(early, backend="tensorrt", **same)
    assert "libnvinfer.so.10: cannot be opened" in both
    assert "SEGDEPLOY_TENSORRT or Options::tensorrt" in both


@pytest.fixture
def run(build: Path, environment: dict[str, str]) -> Callable:
    def call(*arguments: object, **extra: str) -> subprocess.CompletedProcess:
        command = [build / "programs" / "segdeploy-run", *map(str, arguments)]
        ran = {**environment, **extra}
        return subprocess.run(command, env=ran, capture_output=True, text=True, check=False)

    return call


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output": "labels"},
        {"output": "probabilities"},
        {"output": "labels", "late_upsampling": True},
        {"preprocess": "RGB"},
        {"scales": (0.5, 1.0), "flip": True},
    ],
    ids=str,
)
def test_cpp_labels_of_camvid_are_pythons(run, camvid: Path, tmp_path: Path, options: dict) -> None:
    """An untrained network mixes its classes everywhere: the hardest case for equal labels."""
    graph = tmp_path / "m.onnx"
    spec = ModelSpec("deeplabv3", None, {"width": 8}, None, (120, 160))
    segdeploy.export(spec, graph, data=camvid, **options)
    frames = [frame.image for frame in open_dataset(camvid).frames("val", 3)]
    ran = run(*frames, "--model", graph, "--out", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("3 images by onnxruntime ")
    with segdeploy.load(graph) as network:
        for frame in frames:
            ours = np.asarray(Image.open(tmp_path / "out" / f"{frame.stem}.png"))
            assert np.array_equal(ours, network.predict(frame)), frame


def test_cpp_bad_arguments_and_files_are_one_line(run, cases: Path, tmp_path: Path) -> None:
    graph, image = cases / "logits.onnx", cases / "images" / "0.png"
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no image")
    text = tmp_path / "text.png"
    text.write_text("text")
    out = ("--out", tmp_path / "out")
    for arguments, words in (
        ((), "usage: segdeploy-run"),
        ((image, "--model", graph, "--out"), "--out needs a value"),
        ((image, "--modal", graph), "--modal: no such option"),
        ((image, "--model", graph, *out, "--threads", "0"), "--threads 0: is 1 to 1024"),
        ((tmp_path / "none.png", "--model", graph, *out), "none.png: no such file"),
        ((text, "--model", graph, *out), "is neither a PNG nor a JPEG"),
        ((broken, "--model", graph, *out), "the image is damaged (Premature end"),
        ((image, "--model", tmp_path / "none.onnx", *out), "none.onnx: no such file"),
    ):
        ran = run(*arguments)
        assert ran.returncode == 2, arguments
        assert ran.stderr.startswith("error: ")
        assert words in ran.stderr
        assert ran.stderr.count("\n") == 1
    ran = run(image, "--model", graph, *out, SEGDEPLOY_ONNXRUNTIME="/nowhere/libort.so")
    assert ran.returncode == 2
    assert "/nowhere/libort.so: cannot be opened" in ran.stderr


def test_cpp_other_languages_use_the_c_interface(
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

    class Options(ctypes.Structure):
        _fields_ = (
            ("library", ctypes.c_char_p),
            ("provider", ctypes.c_char_p),
            ("threads", ctypes.c_int),
            ("contexts", ctypes.c_int),
        )

    library.segdeploy_open.argtypes = [bytes_of, ctypes.POINTER(Options)]
    runtime = Options(environment["SEGDEPLOY_ONNXRUNTIME"].encode(), None, 1, 0)
    assert not library.segdeploy_open(b"none.onnx", None)
    assert library.segdeploy_error() == b"none.onnx: no such file"
    graph = cases / "logits.onnx"
    other = Options(runtime.library, b"cloud", 1, 0)
    assert not library.segdeploy_open(str(graph).encode(), other)
    assert b"cloud: no such provider of ONNX Runtime" in library.segdeploy_error()
    model = library.segdeploy_open(str(graph).encode(), runtime)
    assert model, library.segdeploy_error()
    image = np.asarray(Image.open(cases / "images" / "0_odd.png"))
    labels = ctypes.create_string_buffer(ODD[0] * ODD[1])
    assert library.segdeploy_predict(model, image.tobytes(), *ODD, 0, 0, labels) == 0
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
    for function in (library.segdeploy_height, library.segdeploy_width):
        function.argtypes = [handle]
    assert (library.segdeploy_height(model), library.segdeploy_width(model)) == (48, 64)
    library.segdeploy_enqueue.argtypes = [handle] * 4
    assert library.segdeploy_enqueue(model, labels, labels, None) == 1
    assert b"takes no device memory; open an engine" in library.segdeploy_error()
    library.segdeploy_close(model)


@pytest.mark.parametrize(
    ("kind", "tests"),
    [
        (
            "address,undefined",
            ("model", "inference_options", "foreign", "contract", "tensorrt", "fuzz"),
        ),
        ("thread", ("model", "inference_options", "foreign")),
    ],
)
def test_cpp_sanitizers_are_silent(
    kind: str,
    tests: Sequence[str],
    cases: Path,
    manifests: Path,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    engines = "ON" if "tensorrt" in tests else "OFF"
    settings = (
        f"-DSEGDEPLOY_SANITIZE={kind}",
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS_DEBUG=-O0 -g1",  # lines of a stack trace, and a fifth less to compile
        f"-DSEGDEPLOY_ENGINES={engines}",
    )
    targets = [name + ("_target" if name == "fuzz" else "_test") for name in tests]
    folder = built(tmp_path / "build", *settings, targets=targets)
    few = tmp_path / "few"
    for name in ("logits", "late", "bytes"):
        shutil.copytree(cases / name, few / name)
        shutil.copy(cases / f"{name}.onnx", few)
    shutil.copytree(cases / "images", few / "images")
    shutil.copy(cases / "plain.txt", few)
    shutil.copytree(manifests.parent / "seeds", few / "seeds")
    for name in ("inference_options.json", "overlay.png"):
        shutil.copy(cases / name, few)
    for name in ("wanted", "foreign"):
        shutil.copytree(cases / name, few / name)
    for graph in ("dynamic", "stepped", "probabilities", "labels", "bgr", "fused"):
        (few / graph).mkdir()
        shutil.copy(cases / graph / "0_own.png", few / graph)
        shutil.copy(cases / f"{graph}.onnx", few)
    chosen = ["--tests-regex", f"^({'|'.join(tests)})$"]
    command = ["ctest", "--test-dir", folder, "--output-on-failure", *chosen]
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
def test_cpp_golden_vectors_prove_the_host(run, cases: Path, tmp_path: Path, name: str) -> None:
    graph, golden = cases / f"{name}.onnx", tmp_path / "golden.safetensors"
    with segdeploy.load(graph, threads=1) as network:
        vectors = make_vectors(network, golden_images(network.contract))
    golden.write_bytes(golden_content(vectors, graph))
    ran = run("--self-test", golden, "--model", graph)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 4
    assert all("input 0, " in line and "labels 100.000 %" in line for line in lines[:3])
    other = replace(vectors[1], input=vectors[1].input + np.float32(1))
    golden.write_bytes(golden_content([vectors[0], other], graph))
    ran = run("--self-test", golden, "--model", graph)
    assert ran.returncode == 1
    assert "error: image 1: the network's input differs by" in ran.stderr


def test_cpp_every_size_is_resized_as_pillow_does(run, cases: Path, tmp_path: Path) -> None:
    """To the last bit: the network's input differs by nothing."""
    graph, golden = cases / "logits.onnx", tmp_path / "golden.safetensors"
    rng = np.random.default_rng(0)
    sizes = [tuple(rng.integers(8, 160, 2)) for _ in range(40)]
    sizes += [(48, 65), (64, 65), (56, 68), (57, 68), (49, 64), (200, 20), (20, 200)]
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    with segdeploy.load(graph, threads=1) as network:
        golden.write_bytes(golden_content(make_vectors(network, images), graph))
    ran = run("--self-test", golden, "--model", graph)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == len(sizes) + 1
    for size, line in zip(sizes, lines, strict=False):
        assert "input 0, " in line, (size, line)


def test_cpp_a_rejected_graph_is_refused_with_pythons_words(
    run, cases: Path, tmp_path: Path
) -> None:
    model = onnx.load(cases / "logits.onnx")
    set_rejected(model, "at input 1x3x48x64 the output differs")
    path = tmp_path / "sound.onnx"
    onnx.save(model, path)
    with pytest.raises(InputError) as refused:
        segdeploy.load(path)
    ran = run(cases / "images" / "0.png", "--model", path, "--out", tmp_path / "out")
    assert ran.returncode == 2
    assert str(refused.value) in ran.stderr


def test_cpp_damaged_golden_vectors_are_refused(run, cases: Path, tmp_path: Path) -> None:
    graph, golden = cases / "logits.onnx", tmp_path / "golden.safetensors"
    with segdeploy.load(graph, threads=1) as network:
        vectors = make_vectors(network, golden_images(network.contract)[:1])
    content = golden_content(vectors, graph)
    rng = np.random.default_rng(0)
    head = 8 + int.from_bytes(content[:8], "little")
    for index in range(60):
        damaged = bytearray(content if index % 2 else content[: rng.integers(len(content))])
        for place in rng.integers(0, min(head, len(damaged)) or 1, 3):
            if damaged:
                damaged[place] = rng.integers(256)
        golden.write_bytes(bytes(damaged))
        ran = run("--self-test", golden, "--model", graph)
        assert ran.returncode in (0, 1, 2), (index, ran)
        assert ran.stderr.count("\n") == (ran.returncode != 0)


def test_cpp_an_outside_project_uses_the_install_tree(
    build: Path, cases: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """The examples are one: they see what was installed, and nothing else."""
    prefix, project, app = tmp_path / "prefix", tmp_path / "project", tmp_path / "app"

    def make(source: Path) -> Path:
        folder = source / "build"
        found = f"-DCMAKE_PREFIX_PATH={prefix}"
        subprocess.run(["cmake", "-S", source, "-B", folder, found], check=True)
        subprocess.run(["cmake", "--build", folder], check=True)
        return folder

    subprocess.run(["cmake", "--install", build, "--prefix", prefix], check=True)
    shutil.copytree(SOURCE / "examples", project)
    made = make(project)
    graph = cases / "logits.onnx"
    page = (ROOT / "docs" / "how-to" / "cpp.md").read_text()
    app.mkdir()
    for language, name in (("cmake", "CMakeLists.txt"), ("cpp", "main.cpp")):
        (app / name).write_text(page.split(f"```{language}\n")[1].split("```")[0])
    for name in ("segdeploy-run", "segdeploy-bench"):  # they find the library beside them
        ran = subprocess.run([prefix / "bin" / name], capture_output=True, text=True, check=False)
        assert ran.stderr.startswith(f"error: usage: {name}")
    package = next(prefix.rglob("segdeploy.pc"))
    flags = ["pkg-config", "--cflags", "--libs", "segdeploy"]
    if shutil.which("pkg-config"):
        found = {**os.environ, "PKG_CONFIG_PATH": str(package.parent)}
        message = subprocess.run(
            flags, env=found, capture_output=True, text=True, check=True
        ).stdout
        include, libraries = message.split()[:2]
        assert Path(include[2:]).resolve() == (prefix / "include").resolve()
        assert Path(libraries[2:]).resolve() == next(prefix.rglob("libsegdeploy.so")).parent
    command = [make(app) / "app", graph]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    with segdeploy.load(graph) as network:
        gray = network.predict(np.full((720, 960, 3), 127, np.uint8))
        assert ran.stdout == network.contract.classes[gray[0, 0]] + "\n"
    frames = [Image.open(cases / "images" / f"{index}_odd.png") for index in (0, 1, 0, 1, 1, 0)]
    stream = b"".join(np.asarray(frame).tobytes() for frame in frames)

    def call(name: str, *words: object, frames: bytes = stream) -> subprocess.CompletedProcess:
        command = [made / name, graph, *map(str, words)]
        return subprocess.run(
            command, input=frames, env=environment, capture_output=True, check=False
        )

    painted = call("video", *ODD)
    assert painted.returncode == 0, painted.stderr
    with segdeploy.load(graph) as network:
        labels = [network.predict(frame) for frame in frames]
        wanted = [
            overlay(
                np.asarray(frame), found, label_colors(network.contract.palette, bit_planes=False)
            )
            for frame, found in zip(frames, labels, strict=True)
        ]
        classes = network.contract.classes
    assert painted.stdout == b"".join(one.tobytes() for one in wanted)
    message = call("minimal", *ODD).stdout.decode().splitlines()
    shares = 100 * np.bincount(labels[0].ravel(), minlength=len(classes)) / labels[0].size
    assert message == [f"{name} {share:.2f} %" for name, share in zip(classes, shares, strict=True)]
    assert call("minimal", *ODD, frames=b"few").stderr == b"error: stdin: holds no such frame\n"
    assert call("video", 0, 9).returncode == 2
    header = (prefix / "include" / "segdeploy" / "segdeploy.hpp").read_text()
    assert len(header.splitlines()) < 300
    for word in ("Ort", "cuda", "nvinfer", "nlohmann"):
        assert f"{word}::" not in header
    library = next(prefix.rglob("libsegdeploy.so.0.1.0"))
    subprocess.run(["strip", library], check=True)
    assert library.stat().st_size < 550_000


def test_cpp_python_uses_the_library_where_it_is_installed(
    build: Path, cases: Path, tmp_path: Path
) -> None:
    """Labels and inputs are the same to the last bit, and a library of another kind is refused."""
    script = (
        "import sys, segdeploy, numpy as np\n"
        "from pathlib import Path\n"
        "from segdeploy.runtime.native import native_library\n"
        "from PIL import Image\n"
        "print(native_library() is not None)\n"
        "print(next(one.state for one in segdeploy.doctor() if one.what == 'C++ library'))\n"
        "found = {}\n"
        "for graph in sorted(Path(sys.argv[1]).glob('*.onnx')):\n"
        "    if graph.stem == 'text': continue\n"
        "    with segdeploy.load(graph, threads=1) as network:\n"
        "        for image in sorted(Path(sys.argv[1], 'images').iterdir()):\n"
        "            pixels = np.asarray(Image.open(image))\n"
        "            name = f'{graph.stem} {image.stem}'\n"
        "            found[name] = network.predict(pixels)\n"
        "            found[name + ' input'] = network.prepare(pixels)\n"
        "np.savez(sys.argv[2], **found)\n"
    )

    def call(library: str, out: Path) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", script, str(cases), str(out)]
        environment = {**os.environ, "SEGDEPLOY_LIBRARY": library}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    ours, theirs = tmp_path / "ours.npz", tmp_path / "theirs.npz"
    assert call("", ours).stdout == "False\nabsent\n"
    ran = call(str(build / "libsegdeploy.so"), theirs)
    assert ran.stdout == "True\nok\n", ran.stderr
    with np.load(ours) as a, np.load(theirs) as b:
        assert len(a.files) > 100
        for name in a.files:
            assert a[name].dtype == b[name].dtype
            assert np.array_equal(a[name], b[name]), name
    assert "is no segdeploy library" in call("/nowhere/lib.so", ours).stderr
    assert "is no segdeploy library" in call("libm.so.6", ours).stderr


def test_cpp_a_program_in_cpp_is_a_candidate_of_bench(
    build: Path,
    cases: Path,
    dataset: Path,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has its turns between those of the others, and is evaluated as they are."""
    graph, out = tmp_path / "logits.onnx", tmp_path / "road.json"
    shutil.copy(cases / "logits.onnx", graph)
    program = build / "programs" / "segdeploy-bench"

    def call(*words: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [program, *map(str, words)], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    settings = ("--threads", 1, "--preprocess-on", "cpu")
    ran = call("--model", graph, "--seconds", "0.3", *settings, "--out", out)
    assert ran.returncode == 0, ran.stderr
    measured = json.loads(out.read_text())
    assert measured["settings"] == {"threads": 1, "preprocess_on": "cpu"}
    assert not {"program", "environment", "arguments"} & set(measured)
    monkeypatch.setenv("SEGDEPLOY_ONNXRUNTIME", environment["SEGDEPLOY_ONNXRUNTIME"])
    assert len(measured["round_medians_ms"]) == 50
    assert measured["calls"] >= 100
    assert 0 < measured["median_ms"] <= measured["p99_ms"]
    assert set(measured["stages_ms"]) == {"preprocessing", "network", "postprocessing"}
    verdict = segdeploy.bench(
        [out, graph], reference=cases / "logits.onnx", data=dataset,
        protocol=Protocol(seconds=0.3, threads=1), cpp_program=program,
    )  # fmt: skip
    row = next(one for one in verdict.rows if one.name == "road.json")
    assert row.backend == "onnxruntime, C++"
    assert row.failure is None
    assert row.latency is not None
    assert row.latency.ratio is not None
    assert row.evaluation is not None
    assert row.evaluation.agreement.labels == 1
    for changes, words in (
        ({"model_sha256": "0"}, "is missing or was changed since"),
        ({"model": "/dev/null"}, "is missing or was changed since"),
        ({"model": "a\nb"}, "its 'model' is missing or wrong"),
        ({"schema": 1}, "was not written by this version of segdeploy-bench --out"),
        ({"settings": None}, "its setting '' is unknown or out of range"),
        ({"settings": {"threads": 0}}, "its setting 'threads' is unknown or"),
        ({"settings": {"threads": "1"}}, "its setting 'threads' is unknown or"),
        ({"settings": {"provider": "/tmp/x.so"}}, "its setting 'provider' is unknown or"),
        ({"settings": {"out": "/tmp/x"}}, "its setting 'out' is unknown or"),
    ):
        out.write_text(json.dumps({**measured, **changes}))
        with pytest.raises(InputError, match=words):
            segdeploy.bench([out], reference=graph, data=dataset, cpp_program=program)

    out.write_text(json.dumps(measured))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"is not on the PATH; name the program with"):
        segdeploy.bench([out], reference=graph, data=dataset)
    with pytest.raises(InputError, match=r"is not an executable program"):
        segdeploy.bench([out], reference=graph, data=dataset, cpp_program=graph)
    for words, failure in (
        (("--model", graph, "--seconds", "nan"), "--seconds nan: is a positive number"),
        (("--model", graph, "more"), "usage: segdeploy-bench"),
        (("--model", graph, "--out", tmp_path / "no" / "f.json"), "cannot be written"),
    ):
        ran = call(*words)
        assert ran.returncode == 2
        assert failure in ran.stderr
        assert ran.stderr.count("\n") == 1


def test_cpp_a_file_never_starts_a_program(
    build: Path, cases: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a JSON candidate says of programs, variables and libraries is not followed."""
    import hashlib

    graph, trace = cases / "logits.onnx", tmp_path / "trace"
    script = tmp_path / "program"
    script.write_text(f"#!/bin/sh\ntouch {trace}\n")
    script.chmod(0o755)
    attack = {
        "schema": 3,
        "model": str(graph),
        "model_sha256": hashlib.sha256(graph.read_bytes()).hexdigest(),
        "program": str(script),
        "arguments": ["--out", str(trace)],
        "environment": {
            f"-S sh -c 'touch {trace}' x": "",
            "LD_PRELOAD": str(script),
            "SEGDEPLOY_ONNXRUNTIME": str(script),
        },
        "settings": {"threads": 1},
    }
    (tmp_path / "x.json").write_text(json.dumps(attack))
    monkeypatch.setenv("PATH", f"{build / 'programs'}:{os.environ['PATH']}")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    monkeypatch.setenv("SEGDEPLOY_ONNXRUNTIME", str(library))
    verdict = segdeploy.bench(
        [tmp_path / "x.json"], reference=graph, data=dataset, limit=1,
        protocol=Protocol(seconds=0.1, threads=1),
    )  # fmt: skip
    assert verdict.rows[1].failure is None
    assert not trace.exists()


def test_cpp_only_the_interface_is_exported(build: Path) -> None:
    command = ["nm", "-DC", "--defined-only", build / "libsegdeploy.so"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = [line.split(maxsplit=2)[2] for line in listed.splitlines()]
    assert len(names) > 30
    allowed = (
        "segdeploy_", "segdeploy::Model::", "segdeploy::overlay(", "segdeploy::version(",
        "typeinfo for segdeploy::Error", "typeinfo name for segdeploy::Error",
        "vtable for segdeploy::Error",
    )  # fmt: skip
    assert [name for name in names if not name.startswith(allowed)] == []
    header = (SOURCE / "include" / "segdeploy" / "segdeploy_c.h").read_text()
    declared = set(re.findall(r"\b(segdeploy_\w+)\(", header))
    assert declared <= set(names)


def test_cpp_another_compiler_takes_it(build: Path, tmp_path: Path) -> None:
    """clang 14 and later: it knows no structured bindings in a lambda's captures."""
    compiler = next(filter(None, map(shutil.which, ("clang++-14", "clang++"))), None)
    if compiler is None:
        skip("no clang here")
    settings = (f"-DCMAKE_CXX_COMPILER={compiler}", "-DCMAKE_BUILD_TYPE=Debug")
    built(tmp_path / "build", *settings, targets=("segdeploy", "segdeploy-run", "segdeploy-bench"))


C_MEMORY = """
import ctypes, resource, sys
library = ctypes.CDLL(sys.argv[1])
library.segdeploy_contract_open.restype = ctypes.c_void_p
library.segdeploy_error.restype = ctypes.c_char_p
contract = ctypes.c_void_p(library.segdeploy_contract_open(sys.argv[2].encode()))
assert contract, library.segdeploy_error()
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (64 << 20), resource.RLIM_INFINITY))
image = (ctypes.c_ubyte * 192)()
for _ in range(3):
    assert library.segdeploy_prepare(contract, image, 8, 8, image) == 1
    print(library.segdeploy_error().decode())
"""


def test_cpp_memory_that_runs_out_in_the_c_interface_is_an_error(build: Path, cases: Path) -> None:
    path = cases / "logits.onnx"
    large = replace(contract_of(load_onnx(path), path), size=(9000, 9000))
    command = [sys.executable, "-c", C_MEMORY, build / "libsegdeploy.so", large.to_json()]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran
    words = "out of memory; give a smaller image, or run fewer calls at once"
    assert ran.stdout.splitlines() == [words] * 3
