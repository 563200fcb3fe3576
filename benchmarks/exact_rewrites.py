"""Speed and memory of the exact rewrites, on against off, in ONNX Runtime and OpenVINO.

`python benchmarks/exact_rewrites.py [CAMVID WEIGHTS]` prints a line of JSON a case. Each side of a
case runs in processes of its own, in turn, three times; figures are medians. The two arguments,
the CamVid data set and torchvision's network trained on it, add the cases of real labels.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import segdeploy
from segdeploy.benchmark.environment import describe_environment
from segdeploy.model_spec import ModelSpec

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
ROUNDS, SECONDS = 3, 2.0


def child(path: str, backend: str, mode: str, image: str) -> None:
    """Time one side: `run` the session, make `labels`, or `loop` over scales."""
    before = _kib("VmRSS")
    predictor = segdeploy.load(path, backend=backend)
    from segdeploy.preprocessing.preprocess import preprocess
    from segdeploy.runtime.late_upsampling import labels_of_low_resolution_logits
    from segdeploy.runtime.multi_scale import fused_logits

    contract, session = predictor.contract, predictor.session
    pixels = np.load(image)
    given = preprocess(pixels, contract)

    def labels() -> Any:
        output = session.run(given)
        if contract.upsampling:
            aligned = contract.upsampling == "align-corners"
            return labels_of_low_resolution_logits(output[0], contract.size, align_corners=aligned)
        return output[0] if contract.output == "labels" else output[0].argmax(0)

    work = {
        "run": lambda: session.run(given),
        "labels": labels,
        "loop": lambda: fused_logits(session, given, SCALES, flip=False, fuse="mean"),
    }[mode]
    work()
    times = []
    end = time.perf_counter() + SECONDS
    while len(times) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    peak = _kib("VmHWM") - before
    print(json.dumps({"ms": 1e3 * statistics.median(times), "mib": peak / 1024}))


def _kib(field: str) -> int:
    """Resident memory now (VmRSS) or at most (VmHWM); getrusage would count the parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def compare(case: str, image: Path, backend: str, *sides: tuple[Path, str]) -> None:
    """Print the medians of both sides and their ratio, first over second."""
    rows: list[list[dict[str, float]]] = [[] for _ in sides]
    for _ in range(ROUNDS):
        for index, (path, mode) in enumerate(sides):
            command = [sys.executable, __file__, "child", str(path), backend, mode, str(image)]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            rows[index].append(json.loads(ran.stdout))
    (plain, plain_mib), (ours, ours_mib) = (
        (statistics.median(r["ms"] for r in side), statistics.median(r["mib"] for r in side))
        for side in rows
    )
    said = {
        "case": case,
        "backend": backend,
        "plain_ms": round(plain, 2),
        "ours_ms": round(ours, 2),
        "ratio": round(plain / ours, 2),
        "ratio_by_round": [round(a["ms"] / b["ms"], 2) for a, b in zip(*rows, strict=True)],
        "plain_peak_mib": round(plain_mib),
        "ours_peak_mib": round(ours_mib),
    }
    print(json.dumps(said), flush=True)


def exported(folder: Path, name: str, spec: ModelSpec, **options: Any) -> Path:
    report = segdeploy.export(spec, folder / f"{name}.onnx", **options)
    if report.optimization:
        before, after = report.optimization.before, report.optimization.after
        said = {"graph": name, "bytes": report.bytes, "parameters": after.parameters}
        print(json.dumps({**said, "macs": [before.macs, after.macs]}), flush=True)
    return report.path


def slides(folder: Path) -> None:
    """The slides' networks at full width: one scale, five fused, and a loop over a session."""
    for name, side in (("semantic_segmentation_model", 112), ("deeplabv3", 128)):
        image = image_file(folder, side)
        spec = ModelSpec(name, 21, size=(side, side))
        plain = exported(folder, f"{name}_plain", spec, optimized=False)
        ours = exported(folder, f"{name}_ours", spec)
        for backend in ("onnxruntime", "openvino"):
            compare(f"{name} {side}x{side}", image, backend, (plain, "run"), (ours, "run"))
    for name in ("deeplabv3", "semantic_segmentation_model"):
        image = image_file(folder, 64)
        spec = ModelSpec(name, 21, size=(64, 64))
        plain = exported(folder, f"{name}_fused_plain", spec, scales=SCALES, optimized=False)
        ours = exported(folder, f"{name}_fused_ours", spec, scales=SCALES)
        dynamic = exported(folder, f"{name}_dynamic", spec, dynamic=True)
        one = "onnxruntime"
        compare(f"{name} five scales, 64x64", image, one, (plain, "run"), (ours, "run"))
        compare(f"{name} loop against fused", image, one, (dynamic, "loop"), (ours, "run"))


def camvid(folder: Path, data: Path, weights: Path) -> None:
    """Real labels of torchvision's network."""
    from segdeploy.models.dataset import open_dataset

    frame, _ = open_dataset(data).frames("val")[50].read()
    np.save(folder / "frame.npy", frame)
    image = folder / "frame.npy"
    for size in ((320, 320), (360, 480)):
        spec = ModelSpec("deeplabv3_mobilenet_v3_large", weights=weights, size=size)
        options = {"data": data}
        name = f"mobilenet_{size[0]}x{size[1]}"
        plain = exported(folder, f"{name}_plain", spec, optimized=False, **options)
        ours = exported(folder, f"{name}_ours", spec, **options)
        labels = exported(folder, f"{name}_labels", spec, output="labels", **options)
        late = exported(
            folder, f"{name}_late", spec, output="labels", late_upsampling=True, **options
        )
        for backend in ("onnxruntime", "openvino"):
            compare(f"{name}, rewrites", image, backend, (plain, "run"), (ours, "run"))
            case = f"{name}, labels: plain and numpy argmax against"
            compare(
                f"{case} ArgMax in the graph", image, backend, (plain, "labels"), (labels, "labels")
            )
            compare(f"{case} late upsampling", image, backend, (plain, "labels"), (late, "labels"))
        after_the_small_map(name, late, frame)
    mirrored(folder, spec, image, options)


def mirrored(folder: Path, spec: ModelSpec, image: Path, options: dict[str, Any]) -> None:
    """The network and its mirrored run in one graph: what delaying the resizes saves."""
    name = f"{spec.model} mirrored"
    plain = exported(folder, f"{name}_plain", spec, flip=True, optimized=False, **options)
    ours = exported(folder, f"{name}_ours", spec, flip=True, **options)
    late = exported(
        folder, f"{name}_late", spec, flip=True, output="labels", late_upsampling=True, **options
    )
    compare(f"{name}, rewrites", image, "onnxruntime", (plain, "run"), (ours, "run"))
    compare(f"{name}, labels late", image, "onnxruntime", (plain, "labels"), (late, "labels"))


def after_the_small_map(name: str, late: Path, frame: np.ndarray) -> None:
    """What follows low-resolution logits: a Resize in ONNX Runtime and numpy's argmax, or ours."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from segdeploy.preprocessing.preprocess import preprocess
    from segdeploy.runtime.late_upsampling import labels_of_low_resolution_logits

    with segdeploy.load(late) as predictor:
        size = predictor.contract.size
        scores = predictor.session.run(preprocess(frame, predictor.contract))
    sizes = np.array([*scores.shape[:2], *size], np.int64)
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear")
    graph = helper.make_graph(
        [node],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, scores.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes.tolist())],
        [numpy_helper.from_array(sizes, "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)

    def whole() -> np.ndarray:
        return session.run(None, {"x": scores})[0][0].argmax(0)

    def ours() -> np.ndarray:
        return labels_of_low_resolution_logits(scores[0], size, align_corners=False)

    times: dict[Any, list[float]] = {whole: [], ours: []}
    for _ in range(60):
        for work, taken in times.items():
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    plain, late_ms = (1e3 * statistics.median(taken[10:]) for taken in times.values())
    said = {
        "case": f"{name}, after low-resolution logits",
        "resize_and_argmax_ms": round(plain, 2),
        "ours_ms": round(late_ms, 2),
        "ratio": round(plain / late_ms, 2),
        "different_labels": int((whole() != ours()).sum()),
        "labels": int(np.prod(size)),
        "output_bytes": [int(np.prod(sizes)) * 4, scores.nbytes],
    }
    print(json.dumps(said), flush=True)


def export_time(folder: Path) -> None:
    """Seconds that `export` takes over PyTorch's own, parity runs apart."""
    import torch

    from segdeploy.exporter.tracing import trace
    from segdeploy.models.network import Network
    from segdeploy.models.registry import build
    from segdeploy.optimizer.optimize import optimize_graph

    network = Network(build("deeplabv3", 21, {}), 21, (128, 128), "deeplabv3").eval()
    raw, ours = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        torch.onnx.export(
            network, (torch.zeros(1, 3, 128, 128),), folder / "raw.onnx", dynamo=True, verbose=False
        )
        raw.append(time.perf_counter() - started)
        started = time.perf_counter()
        graph, _ = optimize_graph(trace(network, (128, 128), dynamic=False, name="deeplabv3"))
        (folder / "timed.onnx").write_bytes(graph.SerializeToString())
        ours.append(time.perf_counter() - started)
    plain, own = statistics.median(raw), statistics.median(ours)
    said = {"case": "export of deeplabv3", "raw_s": round(plain, 2), "ours_s": round(own, 2)}
    print(json.dumps({**said, "times_raw": round(own / plain, 2)}), flush=True)


def image_file(folder: Path, side: int) -> Path:
    path = folder / f"{side}.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8))
    return path


def main(arguments: list[str]) -> None:
    environment = describe_environment(None)
    print(json.dumps({"cpu": environment.cpu}), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_time(folder)
        slides(folder)
        if len(arguments) == 2:
            camvid(folder, Path(arguments[0]), Path(arguments[1]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        main(sys.argv[1:])
