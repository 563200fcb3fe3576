"""Peak compute and memory throughput: measured on a CPU, or from the data sheet of a GPU."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

_SIDES, _REPEATS, _COPIED = (512, 1024), 10, 128 << 20
# From NVIDIA's data sheets: dense throughput of FP16 with FP32 accumulation (TFLOPS) and of INT8
# (TOPS), with two operations per multiply-accumulate, and memory bandwidth (GB/s). Longer names
# precede their prefixes.
_STATED = {
    "H200": (989, 1979, 4800),
    "H100 PCIe": (756, 1513, 2000),
    "H100": (989, 1979, 3350),
    "A100": (312, 624, 1555),
    "A10G": (70, 140, 600),
    "A10": (125, 250, 600),
    "A30": (165, 330, 933),
    "L40S": (362, 733, 864),
    "L4": (121, 242, 300),
    "T4": (65, 130, 320),
    "RTX 4090": (165.2, 660.6, 1008),
    "RTX 3090": (71, 284, 936),
}


@dataclass(frozen=True)
class Peak:
    """Peak throughput: 1e9 multiply-accumulates per second by precision, and GB/s of memory.

    `source` states whether the values were measured or are from a data sheet.
    """

    gmacs: dict[str, float]
    gbytes: float
    source: str


def stated_peak(gpu: str) -> Peak | None:
    """Return the data-sheet peak of a GPU by its name; None for an unlisted GPU."""
    for name, (half, whole, gbytes) in _STATED.items():
        if name.lower() in gpu.lower().replace("geforce ", ""):
            gmacs = {"fp16": half * 500.0, "bf16": half * 500.0, "int8": whole * 500.0}
            return Peak(gmacs, float(gbytes), f"NVIDIA data sheet of {name}, dense")
    return None


def measured_peak(threads: int | None) -> Peak:
    """Time float32 and 8-bit matrix products in ONNX Runtime, and a memory copy."""
    gmacs = {
        name: max(_gmacs(kind, side, threads) for side in _SIDES)
        for name, kind in (("fp32", np.float32), ("int8", np.uint8))
    }
    # A CPU computes FP16 and BF16 in FP32.
    gmacs |= {"fp16": gmacs["fp32"], "bf16": gmacs["fp32"]}
    cores = threads or os.cpu_count() or 1
    parts = [np.ones(_COPIED // cores, np.uint8) for _ in range(2 * cores)]
    with ThreadPoolExecutor(cores) as pool:
        took = min(
            _timed(lambda: list(pool.map(np.copyto, parts[:cores], parts[cores:])))
            for _ in range(5)
        )
    moved = 2 * sum(part.nbytes for part in parts[:cores])
    return Peak(gmacs, moved / took / 1e9, "measured with matrix products and a memory copy")


def higher(one: Peak, other: Peak) -> Peak:
    """Return the maximum of two measurements, value by value, since a peak is the best case."""
    gmacs = {name: max(value, other.gmacs[name]) for name, value in one.gmacs.items()}
    return Peak(gmacs, max(one.gbytes, other.gbytes), one.source)


def _gmacs(kind: type, side: int, threads: int | None) -> float:
    import onnx
    import onnxruntime

    whole = kind is np.uint8
    types = (
        (onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.INT32)
        if whole
        else (onnx.TensorProto.FLOAT,) * 3
    )
    first, second, third = types
    rng = np.random.default_rng(0)
    weight = rng.integers(-9, 9, (side, side)).astype(np.int8 if whole else np.float32)
    node = onnx.helper.make_node("MatMulInteger" if whole else "MatMul", ["a", "w"], ["c"])
    graph = onnx.helper.make_graph(
        [node],
        "matmul",
        [onnx.helper.make_tensor_value_info("a", first, (side, side))],
        [onnx.helper.make_tensor_value_info("c", third, (side, side))],
        [onnx.helper.make_tensor("w", second, weight.shape, weight.tobytes(), raw=True)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    fed: dict[str, Any] = {"a": rng.integers(0, 9, (side, side)).astype(kind)}
    took = min(_timed(lambda: session.run(None, fed)) for _ in range(_REPEATS))
    return side**3 / took / 1e9


def _timed(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
