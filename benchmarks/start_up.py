"""CPU seconds of `segdeploy --help`, median of eleven processes; should stay under 0.2."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys


def cpu_seconds() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "segdeploy", "--help"], stdout=subprocess.DEVNULL, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    times = [cpu_seconds() for _ in range(11)]
    print(json.dumps({"help_cpu_seconds": round(statistics.median(times), 4)}))
