"""INT8 and FP16 of the CamVid network, beside other quantizers: accuracy, time and memory.

`python benchmarks/calibration.py CAMVID WEIGHTS [--modelopt PYTHON]` prints a line of JSON a case.
PYTHON is of an environment with `nvidia-modelopt[onnx]`, which pins other versions than ours:
`python -m venv modelopt && modelopt/bin/pip install 'nvidia-modelopt[onnx]==0.47.0'`. Accuracy is
on all of `val`, by reference Q/DQ execution. The others' ranges come from every 12th frame of
`train`, ours from 32 frames spread over it. Each timing and peak is of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import segdeploy
from segdeploy.benchmark.environment import describe_environment
from segdeploy.benchmark.worker import peak_mib
from segdeploy.calibration.thresholds import METHODS
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.onnx_graph.model_file import contract_of, load_onnx, set_contract
from segdeploy.precision.evaluator import Evaluator
from segdeploy.preprocessing.preprocess import preprocess

SIZE = (360, 480)
MODELOPT = """
import sys, time, numpy, modelopt.onnx.quantization as quantization
started = time.perf_counter()
quantization.quantize(onnx_path=sys.argv[1], calibration_data={"image": numpy.load(sys.argv[2])},
                      calibration_method=sys.argv[3], output_path=sys.argv[4],
                      high_precision_dtype="fp32", calibration_eps=["cpu"])
print("SECONDS", time.perf_counter() - started)
"""


def child(mode: str, *arguments: str) -> None:
    """One measurement in a process of its own: its seconds and its peak of resident memory."""
    if mode == "observe":
        said = observe(*arguments)
    elif mode == "static":
        said = static(*arguments)
    elif mode == "latency":
        said = latency(*arguments)
    else:
        said = plain(*arguments)
    print(json.dumps({**said, "peak_mib": peak_mib()}))


def observe(graph: str, images: str, repeats: str, method: str) -> dict[str, Any]:
    """Take ranges over the images, so often, as `calibrate` does, FP16's included."""
    from segdeploy.calibration.quantize import SCHEMES
    from segdeploy.precision.calibrated_graph import learn

    model, frames = load_onnx(Path(graph)), np.load(images, mmap_mode="r")

    def given() -> Any:
        for _ in range(int(repeats)):
            for index, frame in enumerate(frames):
                yield str(index), np.array(frame[None])

    started = time.perf_counter()
    learn(
        *(model, (1, 3, *SIZE), given()),
        scheme=SCHEMES["tensorrt"],
        half="fp16",
        method=method,
        known=None,
    )
    return {"seconds": round(time.perf_counter() - started, 2)}


def plain(graph: str, images: str) -> dict[str, Any]:
    """Load the FP32 graph in ONNX Runtime, and run the images through it."""
    import onnxruntime

    frames = np.load(images, mmap_mode="r")
    started = time.perf_counter()
    session = onnxruntime.InferenceSession(graph)
    for frame in frames:
        session.run(None, {"image": np.array(frame[None])})
    return {"seconds": round(time.perf_counter() - started, 2)}


def latency(graph: str) -> dict[str, Any]:
    """Median of one call on noise, in ms, by ONNX Runtime's own choice of kernels."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph)
    given = session.get_inputs()[0]
    image = np.random.default_rng(0).normal(0, 1, given.shape).astype(np.float32)
    times = []
    while len(times) < 15:
        started = time.perf_counter()
        session.run(None, {given.name: image})
        times.append(time.perf_counter() - started)
    return {"ms": round(1e3 * sorted(times)[7], 1)}


def static(graph: str, images: str, method: str, out: str) -> dict[str, Any]:
    """onnxruntime's own `quantize_static`, symmetric s8 as TensorRT wants it."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    frames = iter(np.load(images, mmap_mode="r"))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            frame = next(frames, None)
            return None if frame is None else {"image": np.array(frame[None])}

    started = time.perf_counter()
    quantize_static(
        graph,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=getattr(CalibrationMethod, method),
        extra_options={"ActivationSymmetric": True, "CalibPercentile": 99.999},
    )
    return {"seconds": round(time.perf_counter() - started, 1)}


def measured(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "child", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def say(case: str, **values: object) -> None:
    print(json.dumps({"case": case, **values}), flush=True)


def accuracy(evaluator: Evaluator, graph: onnx.ModelProto) -> dict[str, Any]:
    """By reference Q/DQ execution, and by this CPU's kernels in an ordinary session."""
    score = evaluator.score(graph)
    kernels = evaluator.accuracy(evaluator.labels(graph, reference_execution=False))
    return {
        "miou_drop": round(100 * score.miou_drop, 2),
        "agreement": round(score.agreement, 4),
        "session_drop": round(100 * kernels.miou_drop, 2),
        "session_agreement": round(kernels.agreement, 4),
    }


def main(data: Path, weights: Path, modelopt: str | None, only: str | None) -> None:
    say("machine", cpu=describe_environment(None).cpu)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fp32, images = folder / "fp32.onnx", folder / "images.npy"
        spec = ModelSpec("deeplabv3_mobilenet_v3_large", weights=weights, size=SIZE)
        segdeploy.export(spec, fp32, data=data)
        dataset, contract = open_dataset(data), contract_of(load_onnx(fp32), fp32)
        frames = dataset.frames("train")[::12][:32]
        np.save(images, np.stack([preprocess(frame.read()[0], contract)[0] for frame in frames]))
        evaluator = Evaluator(fp32, dataset.frames("val"))
        if only in (None, "ranges"):
            ranges(fp32, images, len(frames))
        if only in (None, "ours"):
            ours(folder, fp32, data, evaluator)
        if only in (None, "cpu"):
            for_cpus(folder, data)
        if only in (None, "others"):
            others(folder, fp32, images, evaluator, modelopt)


def ranges(fp32: Path, images: Path, frames: int) -> None:
    """Time of ranges against that of plain runs, in turns, and memory against frames."""
    for method in ("min-max", "entropy"):
        rounds = [
            (measured("plain", fp32, images)["seconds"],
             measured("observe", fp32, images, 1, method)["seconds"])
            for _ in range(5)
        ]  # fmt: skip
        ratio = sorted(ours / plainly for plainly, ours in rounds)[2]
        say(f"ranges for {method}", plain_and_ours=rounds, ratio=round(ratio, 2))
    few, many = (measured("observe", fp32, images, n, "entropy")["peak_mib"] for n in (1, 10))
    say("peak memory", frames=[frames, 10 * frames], mib=[few, many], ratio=round(many / few, 3))


def others(
    folder: Path, fp32: Path, images: Path, evaluator: Evaluator, modelopt: str | None
) -> None:
    """What onnxruntime and nvidia-modelopt make of the same graph and frames."""
    for method in ("MinMax", "Entropy", "Percentile"):
        out = folder / "theirs.onnx"
        took = measured("static", fp32, images, method, out)
        say(f"quantize_static {method}", **took, **accuracy(evaluator, load_onnx(out)))
    for method in ("max", "entropy") if modelopt else ():
        out = folder / f"modelopt_{method}.onnx"
        command = [modelopt, "-c", MODELOPT, fp32, images, method, out]
        ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        seconds = float(ran.stdout.split("SECONDS")[1].split()[0])
        graph = load_onnx(out)
        set_contract(graph, evaluator.contract)  # modelopt drops it
        say(f"modelopt {method}", seconds=round(seconds, 1), **accuracy(evaluator, graph))


def for_cpus(folder: Path, data: Path) -> None:
    """The slides' networks at full width with random weights: integers for CPUs, plain FP32."""
    for name in ("deeplabv3", "semantic_segmentation_model"):
        plain, folded, int8 = (folder / f"{name}.{kind}.onnx" for kind in ("plain", "fp32", "cpu"))
        spec = ModelSpec(name, size=(96, 96))
        torch.manual_seed(0)
        segdeploy.export(spec, plain, data=data, optimized=False)
        torch.manual_seed(0)
        segdeploy.export(spec, folded, data=data)
        report = segdeploy.calibrate(folded, data, int8, scheme="cpu")
        rounds = [
            [measured("latency", path)["ms"] for path in (plain, folded, int8)] for _ in range(3)
        ]
        medians = [sorted(column)[1] for column in zip(*rounds, strict=True)]
        say(
            f"{name} 96x96 for cpu",
            ms=medians,
            ratio=round(medians[0] / medians[2], 2),
            kernels_agree=round(report.kernel_agreement or 0, 4),
            reference_agrees=round(report.accuracy.agreement, 4),
        )


def ours(folder: Path, fp32: Path, data: Path, evaluator: Evaluator) -> None:
    out = folder / "ours.onnx"
    cases: list[tuple[str, dict[str, Any]]] = [
        ("fp16", {"precision": "fp16"}),
        ("int8 auto", {}),
        *((f"int8 {method}", {"method": method}) for method in METHODS),
        *((f"mixed within {x}", {"max_miou_drop": x}) for x in (1.0, 0.5, 0.1)),
    ]
    for case, options in cases:
        report = segdeploy.calibrate(fp32, data, out, **options)
        say(
            f"segdeploy {case}",
            seconds=round(report.seconds, 1),
            method=report.method,
            int8=len(report.int8),
            cost=round(report.cost, 3),
            bytes=round(report.bytes / report.bytes_before, 3),
            **accuracy(evaluator, load_onnx(out)),
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("camvid", type=Path)
        parser.add_argument("weights", type=Path)
        parser.add_argument("--modelopt", metavar="PYTHON")
        parser.add_argument("--only", choices=["ranges", "ours", "cpu", "others"])
        given = parser.parse_args()
        main(given.camvid, given.weights, given.modelopt, given.only)
