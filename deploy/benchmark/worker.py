"""Worker process that loads one candidate, and times bursts of its calls on request.

It reads JSON lines from stdin, and answers each on stdout. The first line is the candidate to load.
Each burst is requested as `{"seconds": S, "fps": F, "batch": N, "clients": K}`, and answered with
the durations of its calls. The last line is `{"end": true}`.
Between bursts the process sleeps in `readline`, so its threads do not disturb other candidates.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import IncompatibleDevice, InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.errors import first_line
from segdeploy.preprocessing.preprocess import preprocess
from segdeploy.proof.test_inputs import noise_image
from segdeploy.runtime.multi_scale import fused_logits
from segdeploy.runtime.predictor import Predictor, load
from segdeploy.supervisor import end_with_parent

# Python code that the process runs. Python puts the current folder first on `sys.path`, so a file
# there with a library's name would be imported. The folder is removed before any other import.
START = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    "from segdeploy.benchmark.worker import main; main()"
)
STAGES = ("preprocessing", "network", "postprocessing")
_FEWEST_CALLS = 2
# The warm-up ends when the median of _WINDOW calls changes by less than _MOVED (a fraction), or
# after _WARM_UP_SECONDS.
_WINDOW, _MOVED, _WARM_UP_SECONDS = 5, 0.05, 8.0


def main() -> None:
    """Answer requests until stdin closes or the parent process ends."""
    end_with_parent()
    # Libraries print to stdout; redirect that to stderr, so it does not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    candidate = json.loads(sys.stdin.readline())
    try:
        started = time.perf_counter()
        predictor = load(
            spec_from_json(candidate["spec"]),
            backend=candidate["backend"] or None,
            threads=candidate["threads"],
            scales=candidate["scales"],
        )
        load_s = time.perf_counter() - started
        pixels = noise_image(predictor.contract)
        first_ms = 1e3 * _run(predictor, pixels, 1)["network"]
        ready = {"load_s": load_s, "first_ms": first_ms, "stable": _warm_up(predictor, pixels)}
        say({**ready, "scales": _scales(predictor, pixels)})
        for line in sys.stdin:
            asked = json.loads(line)
            if "end" in asked:
                say({"peak_mib": peak_mib()})
            else:
                say(_tried(predictor, pixels, asked))
    except Exception as error:  # reported by the parent process
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        say(
            {
                "error": kind + first_line(error),
                "is_incompatible": isinstance(error, IncompatibleDevice),
            }
        )


def peak_mib() -> int:
    """Return the peak resident memory of this process in MiB.

    `VmHWM` is preferred, because on Linux a child's `ru_maxrss` includes the parent's peak.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _warm_up(predictor: Predictor, pixels: NDArray[np.uint8]) -> bool:
    """Run calls until their duration is stable; return False if the time limit came first."""
    end = time.perf_counter() + _WARM_UP_SECONDS
    before = float("inf")
    while time.perf_counter() < end:
        now = statistics.median(_run(predictor, pixels, 1)["network"] for _ in range(_WINDOW))
        if abs(now - before) < _MOVED * before:
            return True
        before = now
    return False


def _tried(
    predictor: Predictor, pixels: NDArray[np.uint8], asked: dict[str, Any]
) -> dict[str, Any]:
    """Return the answer to a request, or the reason why the network refuses the request.

    After an unsupported batch size the process continues to serve.
    """
    try:
        if "shape" in asked:
            return _shaped(predictor, pixels, asked["shape"])
        return _answer(predictor, pixels, asked)
    except InputError as error:
        return {"refused": first_line(error)}


def _shaped(
    predictor: Predictor, pixels: NDArray[np.uint8], shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Run an input of shape (N, H, W) once."""
    batch, height, width = shape
    contract = predictor.contract
    if contract.source_size is None:
        contract = contract.stretched_to((height, width))
    image = preprocess(pixels, contract)
    predictor.session.run(np.repeat(image, batch, axis=0))
    return {}


def _answer(
    predictor: Predictor, pixels: NDArray[np.uint8], asked: dict[str, Any]
) -> dict[str, Any]:
    """Run the requested burst: return the stage times of its calls and its duration, in seconds."""
    seconds, fps, batch = asked["seconds"], asked["fps"], asked["batch"]
    taken = predictor.session.input.shape[0]
    if isinstance(taken, int) and taken != batch:
        raise InputError(f"the network takes only batches of {taken}; export it with --dynamic")
    if asked["clients"] > 1:
        return _crowd(predictor, pixels, seconds, asked["clients"])
    times, wall = _burst(predictor, pixels, seconds, fps, batch)
    answer: dict[str, Any] = {"times": times, "wall": wall}
    if hasattr(predictor.session, "run_timed"):  # after the burst, since its GPU events cost time
        image = preprocess(pixels, predictor.contract)
        answer["device"] = predictor.session.run_timed(image)[1]
    return answer


def _scales(predictor: Predictor, pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Return the seconds of each scale of a loop, including its resizes; {} without a loop."""
    image = preprocess(pixels, predictor.contract)
    found: dict[str, list[float]] = {f"{scale:g}": [] for scale in predictor.loop}
    for _ in range(_WINDOW):
        for scale in predictor.loop:
            begin = time.perf_counter()
            fused_logits(predictor.session, image, (scale,), flip=False, fuse="mean")
            found[f"{scale:g}"].append(time.perf_counter() - begin)
    return {scale: statistics.median(times) for scale, times in found.items()}


def _burst(
    predictor: Predictor,
    pixels: NDArray[np.uint8],
    seconds: float,
    fps: float | None,
    batch: int,
) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of each stage of every call, and of the whole burst.

    With `fps`, the calls begin at that pace. Without `fps`, the first call is not timed: the caches
    still hold another candidate's data, and the threads sleep.
    """
    if fps is None:
        _run(predictor, pixels, batch)
    times, begin, end = _calls(predictor, pixels, seconds, fps, batch)
    return times, end - begin


def _calls(
    predictor: Predictor,
    pixels: NDArray[np.uint8],
    seconds: float,
    fps: float | None,
    batch: int,
) -> tuple[dict[str, list[float]], float, float]:
    """Call for `seconds`: return the stage times, the start of the first and end of the last."""
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    begin = time.perf_counter()
    calls = 0
    while calls < _FEWEST_CALLS or time.perf_counter() < begin + seconds:
        if fps is not None:  # idle between frames, as with a camera
            time.sleep(max(0.0, begin + calls / fps - time.perf_counter()))
        for stage, took in _run(predictor, pixels, batch).items():
            times[stage].append(took)
        calls += 1
    return times, begin, time.perf_counter()


def _crowd(
    predictor: Predictor, pixels: NDArray[np.uint8], seconds: float, clients: int
) -> dict[str, Any]:
    """Run a burst with several client threads, which call the same session concurrently.

    Each thread makes one untimed call, then all threads start together. The burst's duration lasts
    until the mean of the threads' end times, because after the first thread has ended fewer clients
    call.
    """
    found: list[tuple[dict[str, list[float]], float, float]] = []
    failures: list[Exception] = []
    ready = threading.Barrier(clients)

    def call() -> None:
        try:
            _run(predictor, pixels, 1)
            ready.wait()
            found.append(_calls(predictor, pixels, seconds, None, 1))
        except Exception as error:  # raised again by the thread that joins
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=call) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise next(
            (e for e in failures if not isinstance(e, threading.BrokenBarrierError)), failures[0]
        )
    times = {stage: [took for held, _, _ in found for took in held[stage]] for stage in STAGES}
    begin = min(begin for _, begin, _ in found)
    return {"times": times, "wall": float(np.mean([end for _, _, end in found])) - begin}


def _run(predictor: Predictor, pixels: NDArray[np.uint8], batch: int) -> dict[str, float]:
    """Return the seconds of each stage of one call, from `batch` uint8 images to their labels."""
    started = time.perf_counter()
    images = [predictor.prepare(pixels) for _ in range(batch)]
    image = images[0] if batch == 1 else np.concatenate(images)
    prepared = time.perf_counter()
    outputs = predictor.run(image)
    ran = time.perf_counter()
    for output in outputs:
        predictor.labels_of(output, (pixels.shape[0], pixels.shape[1]))
    stamps = (started, prepared, ran, time.perf_counter())
    return dict(zip(STAGES, np.diff(stamps).tolist(), strict=True))


def spec_to_json(spec: ModelSpec) -> dict[str, Any]:
    """Return a spec as JSON types, for another process."""
    return {
        "model": spec.model,
        "num_classes": spec.num_classes,
        "arguments": dict(spec.arguments),
        "weights": str(spec.weights) if spec.weights else None,
        "size": list(spec.size) if spec.size else None,
        "take": spec.take,
        "stated": dict(spec.stated),
    }


def spec_from_json(values: dict[str, Any]) -> ModelSpec:
    """Restore a spec from the result of `spec_to_json`."""
    stated = values["stated"]
    return ModelSpec(
        model=values["model"],
        num_classes=values["num_classes"],
        arguments=values["arguments"],
        weights=Path(values["weights"]) if values["weights"] else None,
        size=tuple(values["size"]) if values["size"] else None,
        take=values["take"],
        stated={name: tuple(one) if isinstance(one, list) else one for name, one in stated.items()},
    )
