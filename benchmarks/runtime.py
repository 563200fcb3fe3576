"""What our wrapping costs: predict over the raw runtime, load over the session, build by hand.

`python benchmarks/runtime.py GRAPH.onnx` prints a line of JSON a case. Both sides of a ratio run in
turns, in processes of their own where it is loading or building.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

import segdeploy
from segdeploy.benchmark.environment import describe_environment
from segdeploy.contract import METADATA_KEY
from segdeploy.contract_json import read_contract

ROUNDS = 40

LOAD_RAW = """
import time, sys, onnxruntime
started = time.perf_counter()
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(time.perf_counter() - started)
"""
LOAD_OURS = """
import time, sys, onnxruntime, segdeploy, segdeploy.runtime.predictor
import segdeploy.runtime.onnxruntime_session
started = time.perf_counter()
segdeploy.load(sys.argv[1])
print(time.perf_counter() - started)
"""
BUILD_RAW = """
import time, sys, tensorrt_rtx as trt
started = time.perf_counter()
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
assert parser.parse(open(sys.argv[1], "rb").read())
config = builder.create_builder_config()
config.num_compute_capabilities = 2
config.set_compute_capability(trt.ComputeCapability.SM86, 0)
config.set_compute_capability(trt.ComputeCapability.SM89, 1)
plan = builder.build_serialized_network(network, config)
open(sys.argv[2], "wb").write(plan)
print(time.perf_counter() - started)
"""
BUILD_PLAN = """
import time, sys, tensorrt_rtx, onnx
from pathlib import Path
from segdeploy.engine.bindings import open_bindings
from segdeploy.engine.compiling import build_plan
from segdeploy.engine.options import BuildOptions
from segdeploy.files import write_atomically
started = time.perf_counter()
graph = onnx.load(sys.argv[1])
options = BuildOptions(targets=("sm86", "sm89"))
built = build_plan(open_bindings("tensorrt-rtx"), graph, sys.argv[1], options)
write_atomically(Path(sys.argv[2]), built.plan)
print(time.perf_counter() - started)
"""
BUILD_ALL = """
import time, sys, tensorrt_rtx, onnxruntime, onnx, segdeploy, segdeploy.engine.build
started = time.perf_counter()
segdeploy.build_engine(sys.argv[1], sys.argv[2], targets=["sm86", "sm89"])
print(time.perf_counter() - started)
"""


def in_turns(*sides: Callable[[], float], rounds: int) -> list[float]:
    """The median of each side's seconds, over rounds in which each has its turn."""
    times = [[side() for side in sides] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def say(case: str, raw: float, ours: float, **more: Any) -> None:
    figures = {"raw_ms": round(1e3 * raw, 2), "ours_ms": round(1e3 * ours, 2)}
    print(json.dumps({"case": case, **figures, "ratio": round(ours / raw, 3), **more}), flush=True)


def script(code: str, *arguments: object) -> Callable[[], float]:
    def run() -> float:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(ran.stdout.split()[-1])

    return run


def predict(graph: Path) -> None:
    """The same image to the same labels: by hand with numpy, and by `predict`."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    contract = read_contract(session.get_modelmeta().custom_metadata_map[METADATA_KEY], str(graph))
    height, width = contract.size
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))
    mean, std = (np.asarray(values, np.float32) for values in (contract.mean, contract.std))
    (name,) = (one.name for one in session.get_inputs())
    network = segdeploy.load(graph)

    def by_hand() -> Any:
        image = (pixels.astype(np.float32) / 255 - mean) / std
        array = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
        return session.run(None, {name: array})[0][0].argmax(0).astype(np.uint8)

    def timed(call: Callable[[], Any]) -> Callable[[], float]:
        def run() -> float:
            started = time.perf_counter()
            call()
            return time.perf_counter() - started

        return run

    agree = float(np.mean(by_hand() == network.predict(pixels)))
    raw, ours = in_turns(timed(by_hand), timed(lambda: network.predict(pixels)), rounds=ROUNDS)
    say(f"predict at {height}x{width}", raw, ours, labels_equal=agree)


def main(graph: Path) -> None:
    print(json.dumps({"case": "machine", "cpu": describe_environment(None).cpu}), flush=True)
    predict(graph)
    say("load", *in_turns(script(LOAD_RAW, graph), script(LOAD_OURS, graph), rounds=11))
    out = graph.with_name("bench.engine")
    sides = [script(code, graph, out) for code in (BUILD_RAW, BUILD_PLAN, BUILD_ALL)]
    raw, plan, whole = in_turns(*sides, rounds=7)
    say("build for two targets", raw, plan)
    say("build, with golden vectors and manifest", raw, whole)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
