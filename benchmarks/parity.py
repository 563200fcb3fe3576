"""Parity of every registered network, static and dynamic: `python benchmarks/parity.py`.

Random weights, 21 classes, 96x128; the dynamic graph is compared at shapes that were never traced.
BatchNorm statistics are taken from one random batch, since without them activations vanish.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch

import segdeploy
from segdeploy.model_spec import ModelSpec
from segdeploy.models.checkpoint import to_bytes
from segdeploy.models.registry import ARCHITECTURES, build

SIZE = (96, 128)


def weights(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    network = build(name, 21, {}).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(2, 3, *SIZE))
    path = folder / f"{name}.safetensors"
    path.write_bytes(to_bytes(network, {}))
    return path


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        for name in names or sorted(ARCHITECTURES):
            spec = ModelSpec(name, 21, weights=weights(name, folder), size=SIZE)
            for dynamic in (False, True):
                started = time.perf_counter()
                report = segdeploy.export(spec, folder / "m.onnx", dynamic=dynamic)
                row = {
                    "network": name,
                    "dynamic": dynamic,
                    "convolutions": f"{sum(p.holds for p in report.convolutions)} of "
                    f"{len(report.convolutions)}",
                    "shapes": ["x".join(map(str, p.shape)) for p in report.parity],
                    "max_rel": max(p.max_rel for p in report.parity),
                    "wrong_labels": sum(p.wrong_labels for p in report.parity),
                    "snr_db": round(min(p.snr_db for p in report.parity)),
                    "seconds": round(time.perf_counter() - started, 1),
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
