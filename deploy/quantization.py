"""`segdeploy calibrate`: ranges from the user's own frames, then an explicit INT8 graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InputError
from segdeploy.files import check_output, sha256_of_file, write_atomically
from segdeploy.models.dataset import Frame, open_dataset
from segdeploy.network import check_classes
from segdeploy.onnx_file import check_size, contract_of, load_onnx, serialized, set_contract
from segdeploy.packages import require, versions
from segdeploy.runtime.predictor import Predictor, load
from segdeploy.runtime.preprocess import preprocess
from segdeploy.spec import Contract

_JUDGED_FRAMES = 8


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration did; `agreement` is with the FP32 graph, the INT8 one run literally."""

    path: Path
    frames: int
    convolutions: int
    bytes: int
    bytes_before: int
    agreement: float
    judged_frames: int
    seconds: float


def calibrate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    split: str = "train",
    limit: int | None = None,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> CalibrationReport:
    """Quantise the convolutions of an exported FP32 graph to INT8, with ranges from `split`.

    Frames are preprocessed as the contract says and no other way. The agreement of labels is
    measured on frames spread over the split that was calibrated on.

    Raises:
        InputError, ModelInputError, CalibrationInputError: for files that cannot be used.
    """
    started = time.perf_counter()
    model = Path(model)
    out = check_output(Path(out), ".onnx", read_from=model)
    graph = load_onnx(model)
    check_size(graph, model)
    contract = contract_of(graph, model)
    dataset = open_dataset(Path(data))
    check_classes(contract, dataset, str(model))
    if contract.precision != "fp32":
        raise InputError(
            f"{model}: is {contract.precision} already; calibrate the FP32 graph that it came from"
        )
    require("onnxruntime")
    from segdeploy.calibration.quantize import quantize_convolutions
    from segdeploy.calibration.ranges import conv_inputs, observe_ranges

    frames = dataset.frames(split, limit)
    ranges = observe_ranges(graph, conv_inputs(graph), _inputs(frames, contract, on_frame))
    quantised = quantize_convolutions(graph, ranges)
    derived = contract.derived(
        sha256_of_file(model), versions("onnx", "onnxruntime"), precision="int8"
    )
    set_contract(quantised, derived)
    content = serialized(quantised, out)
    judged = frames[:: max(1, len(frames) // _JUDGED_FRAMES)][:_JUDGED_FRAMES]
    agreement = _agreement(model, out, content, judged)
    write_atomically(out, content)
    return CalibrationReport(
        path=out,
        frames=len(frames),
        convolutions=sum(node.op_type == "Conv" for node in graph.graph.node),
        bytes=len(content),
        bytes_before=model.stat().st_size,
        agreement=agreement,
        judged_frames=len(judged),
        seconds=time.perf_counter() - started,
    )


def _inputs(
    frames: list[Frame], contract: Contract, on_frame: Callable[[int, int], None]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for done, frame in enumerate(frames, 1):
        image, _ = frame.read()
        yield frame.name, preprocess(image, contract)
        on_frame(done, len(frames))


def _agreement(reference: Path, candidate: Path, content: bytes, frames: list[Frame]) -> float:
    """Share of equal labels; the candidate is run before it is written."""
    from segdeploy.runtime.onnxruntime_session import OnnxRuntimeSession

    shares = []
    session = OnnxRuntimeSession(candidate, literal=True, data=content)
    with load(reference) as fp32, Predictor(session) as int8:
        for frame in frames:
            image, _ = frame.read()
            shares.append(np.mean(fp32.predict(image) == int8.predict(image)))
    return float(np.mean(shares))
