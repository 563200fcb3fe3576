"""A process that times one candidate, a burst at a time, when it is told to.

It reads JSON lines from stdin and answers on stdout: first a candidate to load, then
`{"seconds": S, "fps": F, "batch": N, "clients": K}` for each burst, answered with the times of its
calls, and at last `{"end": true}`.
Between bursts it sleeps in `readline`, so that its threads do not disturb the others.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InputError, NotHere
from segdeploy.model_spec import ModelSpec
from segdeploy.models.errors import first_line
from segdeploy.runtime.multi_scale import fused_logits
from segdeploy.runtime.predictor import Predictor, load
from segdeploy.runtime.preprocess import preprocess
from segdeploy.supervisor import end_with_parent

# The process's program. Python puts the current folder first on the path, and would so run whatever
# lies there under a library's name; it is taken off before anything else is imported.
START = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    "from segdeploy.benchmark.worker import main; main()"
)
STAGES = ("preprocessing", "network", "postprocessing")
_FEWEST_CALLS = 2
# Warming up ends when the median of a few calls no longer moves, or after so many seconds.
_WINDOW, _MOVED, _WARM_UP_SECONDS = 5, 0.05, 8.0


def main() -> None:
    """Serve until stdin closes, or the parent ends."""
    end_with_parent()
    # What libraries print must not mix with the answers.
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
        height, width = predictor.contract.size
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
        first_ms = 1e3 * _run(predictor, picture, 1)["network"]
        ready = {"load_s": load_s, "first_ms": first_ms, "stable": _warm_up(predictor, picture)}
        say({**ready, "scales": _scales(predictor, picture)})
        for line in sys.stdin:
            asked = json.loads(line)
            if "end" in asked:
                say({"peak_mib": peak_mib()})
            else:
                say(_tried(predictor, picture, asked))
    except Exception as error:  # told to the parent, which says it to the user
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        say({"error": kind + first_line(error), "is_elsewhere": isinstance(error, NotHere)})


def peak_mib() -> int:
    """This process's peak of resident memory.

    Linux counts the parent's, too, into `ru_maxrss` of a child.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _warm_up(predictor: Predictor, picture: NDArray[np.uint8]) -> bool:
    """Run until the calls' time is steady; False if the bound came first."""
    end = time.perf_counter() + _WARM_UP_SECONDS
    before = float("inf")
    while time.perf_counter() < end:
        now = statistics.median(_run(predictor, picture, 1)["network"] for _ in range(_WINDOW))
        if abs(now - before) < _MOVED * before:
            return True
        before = now
    return False


def _tried(
    predictor: Predictor, picture: NDArray[np.uint8], asked: dict[str, Any]
) -> dict[str, Any]:
    """The answer, or why the network cannot: a batch that it does not take leaves it as it was."""
    try:
        if "shape" in asked:
            return _shaped(predictor, picture, asked["shape"])
        return _answer(predictor, picture, asked)
    except InputError as error:
        return {"refused": first_line(error)}


def _shaped(
    predictor: Predictor, picture: NDArray[np.uint8], shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Run an input (N, H, W) once."""
    batch, height, width = shape
    image = preprocess(picture, replace(predictor.contract, size=(height, width)))
    predictor.session.run(np.repeat(image, batch, axis=0))
    return {}


def _answer(
    predictor: Predictor, picture: NDArray[np.uint8], asked: dict[str, Any]
) -> dict[str, Any]:
    """Run a burst as it was asked for: times of each stage in seconds, and of the whole of it."""
    seconds, fps, batch = asked["seconds"], asked["fps"], asked["batch"]
    taken = predictor.session.input.shape[0]
    if isinstance(taken, int) and taken != batch:
        raise InputError(f"it takes batches of {taken} alone; export it with --dynamic")
    if asked["clients"] > 1:
        return _crowd(predictor, picture, seconds, asked["clients"])
    times, wall = _burst(predictor, picture, seconds, fps, batch)
    answer: dict[str, Any] = {"times": times, "wall": wall}
    if hasattr(predictor.session, "run_timed"):  # its events cost time: outside the burst
        image = preprocess(picture, predictor.contract)
        answer["device"] = predictor.session.run_timed(image)[1]
    return answer


def _scales(predictor: Predictor, picture: NDArray[np.uint8]) -> dict[str, float]:
    """Seconds that each scale of a loop takes, its resizes included; {} without a loop."""
    image = preprocess(picture, predictor.contract)
    found: dict[str, list[float]] = {f"{scale:g}": [] for scale in predictor.loop}
    for _ in range(_WINDOW):
        for scale in predictor.loop:
            begin = time.perf_counter()
            fused_logits(predictor.session, image, (scale,), flip=False, fuse="mean")
            found[f"{scale:g}"].append(time.perf_counter() - begin)
    return {scale: statistics.median(times) for scale, times in found.items()}


def _burst(
    predictor: Predictor,
    picture: NDArray[np.uint8],
    seconds: float,
    fps: float | None,
    batch: int,
) -> tuple[dict[str, list[float]], float]:
    """Seconds of each stage of every call, and of them all; with `fps`, calls begin at that pace.

    Without, a first call is left out: caches and sleeping threads are another candidate's still.
    """
    if fps is None:
        _run(predictor, picture, batch)
    times, begin, end = _calls(predictor, picture, seconds, fps, batch)
    return times, end - begin


def _calls(
    predictor: Predictor,
    picture: NDArray[np.uint8],
    seconds: float,
    fps: float | None,
    batch: int,
) -> tuple[dict[str, list[float]], float, float]:
    """Call for `seconds`: the stages' times, and when the first call began and the last ended."""
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    begin = time.perf_counter()
    calls = 0
    while calls < _FEWEST_CALLS or time.perf_counter() < begin + seconds:
        if fps is not None:  # between frames the machine idles, as behind a camera
            time.sleep(max(0.0, begin + calls / fps - time.perf_counter()))
        for stage, took in _run(predictor, picture, batch).items():
            times[stage].append(took)
        calls += 1
    return times, begin, time.perf_counter()


def _crowd(
    predictor: Predictor, picture: NDArray[np.uint8], seconds: float, clients: int
) -> dict[str, Any]:
    """A burst of several threads, each calling one after the other on the same session.

    All begin together, after a first call each that does not count. The time is that from there to
    the mean of their ends: towards the last end there are fewer clients.
    """
    found: list[tuple[dict[str, list[float]], float, float]] = []
    failures: list[Exception] = []
    ready = threading.Barrier(clients)

    def call() -> None:
        try:
            _run(predictor, picture, 1)
            ready.wait()
            found.append(_calls(predictor, picture, seconds, None, 1))
        except Exception as error:  # told to the parent by the thread that waits
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


def _run(predictor: Predictor, picture: NDArray[np.uint8], batch: int) -> dict[str, float]:
    """Seconds of the stages of one call, from the bytes of `batch` pictures to their labels."""
    started = time.perf_counter()
    images = [predictor.prepare(picture) for _ in range(batch)]
    image = images[0] if batch == 1 else np.concatenate(images)
    prepared = time.perf_counter()
    outputs = predictor.run(image)
    ran = time.perf_counter()
    for output in outputs:
        predictor.labels_of(output, (picture.shape[0], picture.shape[1]))
    stamps = (started, prepared, ran, time.perf_counter())
    return dict(zip(STAGES, np.diff(stamps).tolist(), strict=True))


def spec_to_json(spec: ModelSpec) -> dict[str, Any]:
    """Write a spec so that another process can read it."""
    return {
        "model": spec.model,
        "num_classes": spec.num_classes,
        "arguments": dict(spec.arguments),
        "weights": str(spec.weights) if spec.weights else None,
        "size": list(spec.size) if spec.size else None,
    }


def spec_from_json(values: dict[str, Any]) -> ModelSpec:
    """Read what `spec_to_json` wrote."""
    return ModelSpec(
        model=values["model"],
        num_classes=values["num_classes"],
        arguments=values["arguments"],
        weights=Path(values["weights"]) if values["weights"] else None,
        size=tuple(values["size"]) if values["size"] else None,
    )
