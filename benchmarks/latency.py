"""What bench's own timing costs, and how far two runs of it are apart.

    python benchmarks/latency.py model.onnx model.int8.onnx --reference other.onnx

The loop's overhead is the time of a burst that no stage of a call accounts for. Two runs are two
whole measurements, one after the other, each in processes of its own; run it on an idle machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from segdeploy.benchmark.latency import SECONDS, measure_latencies
from segdeploy.benchmark.process import Candidate, Failure, Process
from segdeploy.benchmark.rounds import burst
from segdeploy.model_spec import ModelSpec

CALL_MS = 20.0


def overhead_ms(candidate: Candidate, seconds: float) -> tuple[float, float]:
    """Milliseconds a call beyond its stages, and the median of the network's call."""
    process = Process(candidate, None)
    try:
        answer = process.ask(burst(seconds))
    finally:
        process.close()
    times = answer["times"]
    calls = len(times["network"])
    inside = sum(sum(stage) for stage in times.values())
    return 1e3 * (answer["wall"] - inside) / calls, 1e3 * sorted(times["network"])[calls // 2]


def speedups(candidates: list[Candidate], seconds: float) -> list[float]:
    """Of each candidate behind the first, as bench tells them."""
    found = []
    for latency in measure_latencies(candidates, seconds=seconds)[1:]:
        if isinstance(latency, Failure) or latency.ratio is None:
            raise SystemExit(f"{latency}: cannot be timed")
        found.append(latency.ratio.speedup)
    return found


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    paths = [options.reference, *options.models]
    candidates = [Candidate(path.name, ModelSpec(str(path)), "onnxruntime") for path in paths]
    for candidate in candidates:
        cost, call = overhead_ms(candidate, options.seconds)
        print(
            f"{candidate.name}: {1e3 * cost:.1f} us a call beside {call:.2f} ms of network: "
            f"{cost / CALL_MS:.3%} of a call of {CALL_MS:.0f} ms"
        )
    runs = [speedups(candidates, options.seconds) for _ in range(options.runs)]
    for candidate, found in zip(candidates[1:], zip(*runs, strict=True), strict=True):
        message = ", ".join(f"{one:.3f}" for one in found)
        print(f"{candidate.name}: speed-ups {message}: within {max(found) / min(found) - 1:.1%}")


if __name__ == "__main__":
    main()
