"""Peak memory of one training step, plain against checkpointed, each in a process of its own.

`python benchmarks/checkpointing.py` prints JSON: the step's peak over what the process held before
it (resident memory on a CPU, the allocator's peak on a GPU), and the ratio to the plain network's.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

SIZE = 256
CASES = (
    ("deeplabv3", False),
    ("memory_efficient_deeplabv3", False),
    ("deeplabv3", True),
    ("deeplabv3_mobilenet_v3_large", False),
    ("deeplabv3_mobilenet_v3_large", True),
)
_ROUNDS = 3


def step(name: str, checkpointing: bool) -> None:
    import torch
    import torch.nn.functional as F

    from segdeploy.models.gradient_checkpointing import checkpoint_blocks
    from segdeploy.models.network import Network
    from segdeploy.models.registry import build

    network = Network(build(name, 21, {}), 21, (64, 64), name).train()
    if checkpointing:
        checkpoint_blocks(network)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    batch = 2 if "mobilenet" in name else 1  # BatchNorm behind a global pooling needs two
    image = torch.randn(batch, 3, SIZE, SIZE, device=device)
    target = torch.randint(0, 21, (batch, SIZE, SIZE), device=device)
    F.cross_entropy(network(image[..., :64, :64]), target[..., :64, :64]).backward()
    network.zero_grad(set_to_none=True)
    before = _held(device)
    started = time.perf_counter()
    F.cross_entropy(network(image), target).backward()
    seconds = time.perf_counter() - started
    peak = _peak(device) - before
    print(json.dumps({"mib": peak / 2**20, "seconds": seconds, "device": device.type}))


def _held(device: Any) -> int:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize()


def _peak(device: Any) -> int:
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    measured: dict[tuple[str, bool], list[dict[str, Any]]] = {case: [] for case in CASES}
    for _ in range(_ROUNDS):
        for name, checkpointing in CASES:
            command = [sys.executable, __file__, name, str(int(checkpointing))]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            measured[name, checkpointing].append(json.loads(ran.stdout))
    plain: dict[str, float] = {}
    for (name, checkpointing), rows in measured.items():
        base = name.removeprefix("memory_efficient_")
        mib = statistics.median(row["mib"] for row in rows)
        seconds = statistics.median(row["seconds"] for row in rows)
        reference = plain.setdefault(base, mib)
        print(
            json.dumps(
                {
                    "network": name,
                    "checkpointing": checkpointing,
                    "size": SIZE,
                    "device": rows[0]["device"],
                    "peak_mib": round(mib, 1),
                    "of_plain": round(mib / reference, 3),
                    "seconds": round(seconds, 2),
                }
            )
        )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        step(sys.argv[1], bool(int(sys.argv[2])))
    else:
        main()
