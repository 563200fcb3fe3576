"""Speed of the slides' networks at full width, folded against plain, in ONNX Runtime.

Both graphs are timed in processes of their own, in interleaved bursts: `python
benchmarks/linear_head.py` prints JSON with the ratio of the medians.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import segdeploy
from segdeploy.benchmark.environment import describe_environment
from segdeploy.benchmark.latency import Candidate, measure_latencies
from segdeploy.network import ModelSpec

NETWORKS = (("semantic_segmentation_model", 112), ("deeplabv3", 128))


def main() -> None:
    print(json.dumps({"cpu": describe_environment(None).cpu}))
    with tempfile.TemporaryDirectory() as folder:
        for name, side in NETWORKS:
            spec = ModelSpec(name, num_classes=21, size=(side, side))
            candidates = []
            for optimized in (False, True):
                out = Path(folder) / f"{name}-{optimized}.onnx"
                segdeploy.export(spec, out, optimized=optimized)
                candidates.append(Candidate(out.name, ModelSpec(str(out)), "onnxruntime"))
            plain, folded = measure_latencies(candidates, burst_seconds=3.0)
            row = {
                "network": name,
                "size": side,
                "plain_ms": round(plain.median_ms, 2),
                "folded_ms": round(folded.median_ms, 2),
                "ratio": round(plain.median_ms / folded.median_ms, 2),
                "ratio_by_round": [
                    round(p / f, 2)
                    for p, f in zip(plain.round_medians_ms, folded.round_medians_ms, strict=True)
                ],
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
