"""What only a GPU can tell. Runs where one is, and the package; elsewhere it is left out."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import segdeploy
from segdeploy.device import current_gpu
from segdeploy.models.dataset import open_dataset
from segdeploy.profiles import Profile
from segdeploy.runtime.inference_options import InferenceOptions
from segdeploy.runtime.predictor import Predictor

from .cpp_files import built

pytestmark = pytest.mark.gpu

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
BACKENDS = [name for name, module in MODULES.items() if importlib.util.find_spec(module)]


def build(graph: Path, out: Path, backend: str, **options: object) -> Path:
    gpu = current_gpu()
    assert gpu is not None
    targets = [gpu.compute_capability] if backend == "tensorrt-rtx" else []
    return segdeploy.build_engine(graph, out, backend=backend, targets=targets, **options).path


@pytest.fixture(scope="module")
def frames(dataset: Path) -> list[np.ndarray]:
    return [frame.read()[0] for frame in open_dataset(dataset).frames("val")]


def agreement(engine: Predictor, graph: Path, frames: list[np.ndarray]) -> float:
    with segdeploy.load(graph, reference_execution=True) as reference:
        pairs = [(engine.predict(frame), reference.predict(frame)) for frame in frames]
    return float(np.mean([np.mean(a == b) for a, b in pairs]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "least"), [("graph", 0.999), ("int8_graph", 0.98)])
def test_gpu_an_engine_gives_the_graphs_labels(
    backend: str,
    name: str,
    least: float,
    frames: list[np.ndarray],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    graph = request.getfixturevalue(name)
    engine = build(graph, tmp_path / "m.engine", backend)
    assert segdeploy.self_test(engine).holds
    with segdeploy.load(engine) as network:
        network.warm_up()
        assert agreement(network, graph, frames) >= least
        first = network.predict(frames[0])
        for _ in range(5):  # eager, captured, replayed
            assert np.array_equal(network.predict(frames[0]), first)
            network.predict(frames[1])
    if backend == "tensorrt-rtx":
        assert (tmp_path / "m.engine.cache").stat().st_size > 0
        with segdeploy.load(engine) as network:
            assert np.array_equal(network.predict(frames[0]), first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gpu_profiles_are_switched_and_batches_run(
    backend: str, dynamic_graph: Path, frames: list[np.ndarray], tmp_path: Path
) -> None:
    profiles = [
        Profile((1, 48, 64), (1, 48, 64), (4, 48, 64)),
        Profile((1, 32, 32), (1, 96, 128), (2, 96, 128)),
    ]
    engine = build(dynamic_graph, tmp_path / "m.engine", backend, profiles=profiles)
    with segdeploy.load(engine) as network, segdeploy.load(dynamic_graph) as reference:
        for scales in ((1.0,), (0.75, 1.0, 1.5)):
            options = InferenceOptions(scales=scales)
            ours = network.predict(frames[0], options)
            assert np.mean(ours == reference.predict(frames[0], options)) > 0.999
        both = zip(network.predict_batch(frames), reference.predict_batch(frames), strict=True)
        assert all(np.mean(a == b) > 0.999 for a, b in both)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gpu_threads_share_an_engine(
    backend: str, graph: Path, frames: list[np.ndarray], tmp_path: Path
) -> None:
    engine = build(graph, tmp_path / "m.engine", backend)
    with segdeploy.load(engine) as network:
        expected = [network.predict(frame) for frame in frames]
        with ThreadPoolExecutor(12) as pool:  # more than there are contexts
            found = list(pool.map(network.predict, frames * 20))
    for index, labels in enumerate(found):
        assert np.array_equal(labels, expected[index % len(frames)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", ["refittable", "stripped"])
def test_gpu_weights_outside_the_plan(
    backend: str, weights: str, graph: Path, frames: list[np.ndarray], tmp_path: Path
) -> None:
    beside = tmp_path / graph.name
    beside.write_bytes(graph.read_bytes())
    engine = build(beside, tmp_path / "m.engine", backend, weights=weights)
    with segdeploy.load(engine) as network:
        assert agreement(network, graph, frames) >= 0.999


@pytest.mark.parametrize("backend", BACKENDS)
def test_gpu_builds_are_compared_by_what_they_compute(
    backend: str, graph: Path, tmp_path: Path
) -> None:
    gpu = current_gpu()
    targets = [gpu.compute_capability] if backend == "tensorrt-rtx" and gpu else []
    report = segdeploy.build_engine(
        graph, tmp_path / "m.engine", backend=backend, targets=targets, repeats=3
    )
    assert report.variation.least_agreement > 0.99
    assert len(report.variation.latency_ms) == 3


@pytest.mark.parametrize(
    "backend", ["onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"]
)
def test_gpu_onnxruntimes_providers_give_the_graphs_labels(
    backend: str, graph: Path, frames: list[np.ndarray]
) -> None:
    import onnxruntime

    from segdeploy.runtime.session import PROVIDERS

    if PROVIDERS[backend] not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {PROVIDERS[backend]}")
    with segdeploy.load(graph, backend=backend) as network:
        assert agreement(network, graph, frames) >= 0.999


@pytest.mark.parametrize("backend", BACKENDS)
def test_gpu_the_cpp_library_runs_engines(
    backend: str, checkpoint: Path, graph: Path, dynamic_graph: Path, tmp_path: Path
) -> None:
    """Kernels against the CPU's code, device memory in and out, CUDA graphs, and threads."""
    root = os.environ.get("TENSORRT_ROOT")
    if root is None:
        pytest.skip("set TENSORRT_ROOT to headers of the TensorRT that is installed")
    files = tmp_path / "files"
    files.mkdir()
    ends = {"labels": {"output": "labels"}, "late": {"output": "labels", "late_upsampling": True},
            "bytes": {"preprocess": "BGR"}}  # fmt: skip
    graphs = {"logits": graph, "dynamic": dynamic_graph}
    for name, options in ends.items():
        graphs[name] = segdeploy.export(checkpoint, tmp_path / f"{name}.onnx", **options).path
    for name, path in graphs.items():
        build(path, files / f"{name}.engine", backend)
    module = importlib.import_module(f"{MODULES[backend]}_libs")
    assert module.__file__ is not None
    library = next(Path(module.__file__).parent.glob(
        "libtensorrt_rtx.so.*" if backend == "tensorrt-rtx" else "libnvinfer.so.*"))  # fmt: skip
    variable = f"SEGDEPLOY_{backend.upper().replace('-', '_')}"
    folder = built(tmp_path / "build", f"-DTENSORRT_ROOT={root}", targets=["gpu_test"])
    ran = subprocess.run(
        [folder / "tests" / "gpu_test"],
        env={**os.environ, variable: str(library), "SEGDEPLOY_TEST_FILES": str(files)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count(" holds") == len(graphs)
