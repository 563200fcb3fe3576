"""A process that times one candidate, a burst at a time, when it is told to.

It reads JSON lines from stdin and answers on stdout: first a candidate to load, then
`{"seconds": S}` for each burst, answered with the times of its calls.
Between bursts it sleeps in `readline`, so that its threads do not disturb the others.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from segdeploy.models.errors import first_line
from segdeploy.network import ModelSpec
from segdeploy.runtime.predictor import load
from segdeploy.runtime.preprocess import preprocess

# The process's program. Python puts the current folder first on the path, and would so run whatever
# lies there under a library's name; it is taken off before anything else is imported.
START = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    "from segdeploy.benchmark.worker import main; main()"
)
_WARM_UP_SECONDS = 0.5
_FEWEST_CALLS = 3


def main() -> None:
    """Serve until stdin closes."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    candidate = json.loads(sys.stdin.readline())
    try:
        predictor = load(
            spec_from_json(candidate["spec"]),
            backend=candidate["backend"],
            threads=candidate["threads"],
        )
        height, width = predictor.contract.size
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
        image = preprocess(picture, predictor.contract)
        _burst(predictor.session.run, image, _WARM_UP_SECONDS)
        answer: Any = {"ready": True}
    except Exception as error:  # told to the parent, which says it to the user
        answer = {"error": f"{type(error).__name__}: {first_line(error)}"}
    print(json.dumps(answer), file=answers, flush=True)
    for line in sys.stdin:
        times = _burst(predictor.session.run, image, json.loads(line)["seconds"])
        print(json.dumps({"times": times}), file=answers, flush=True)


def _burst(run: Any, image: Any, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _FEWEST_CALLS or time.perf_counter() < end:
        started = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - started)
    return times


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
