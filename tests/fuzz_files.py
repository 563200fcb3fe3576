"""Give a parser of ours mutated files, in a process of its own, and count how it refuses them.

`python fuzz_files.py COUNT PARSER=FILE...` prints a line of JSON for each. A refusal is an error of
ours with one line; anything else that is raised is a fault, and so is more than two seconds or a
gigabyte more than the parser had needed for the whole file. A crash ends the process.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_HANG_S = 2.0
_MEMORY = 1 << 30
# What the files of unfinished work hold: whatever happens to them, no other value may come out.
LEDGER = {"round 0": {"times": [1.5, 2.5]}, "frame 0": {"counts": [[3, 4], [5, 6]]}}
TOLERANT = ("ledger", "steps")  # what is damaged there is done anew
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One of a few ways in which files go wrong, or are made to; often several at once."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not data:
            break
        # Headers are at the front (safetensors, PNG) or anywhere (protobuf): look at both.
        reach = len(data) if rng.random() < 0.5 else min(len(data), 4096)
        at = rng.randrange(reach)
        kind = rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + rng.randrange(1, 64)]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 64))
        elif kind == 4:
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice(_INTERESTING) & ((1 << 8 * width) - 1)
            data[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 5:
            chunk = data[at : at + rng.randrange(1, 256)]
            to = rng.randrange(len(data))
            data[to : to + len(chunk)] = chunk
        else:
            _mutate_text(data, rng)
    return bytes(data)


def _mutate_text(data: bytearray, rng: random.Random) -> None:
    """Replace a number or word of what may be JSON by another of any kind."""
    text = data[:65536].decode("latin-1")
    words = [i for i, c in enumerate(text) if c in '":,[]{}0123456789']
    if words:
        at = rng.choice(words)
        values = (b"null", b"-1", b"1e999", b"[]", b"{}", b'"x"', b"99999999999999999999", b"true")
        data[at : at + rng.randrange(0, 4)] = rng.choice(values)


def parsers() -> dict[str, Callable[[Path], Any]]:
    import numpy as np

    from segdeploy.adoption.statement import Statement
    from segdeploy.benchmark.comparison import compare_verdicts
    from segdeploy.benchmark.cpp_program import read_cpp_candidate
    from segdeploy.commands.adopt import adopt
    from segdeploy.commands.build_engine import build_engine
    from segdeploy.commands.deploy import Steps
    from segdeploy.commands.inspect import inspect
    from segdeploy.commands.optimize import optimize
    from segdeploy.engine.manifest import parse_manifest
    from segdeploy.ledger import STEPS, Ledger
    from segdeploy.models.checkpoint import read_metadata, read_weights
    from segdeploy.models.dataset import open_dataset
    from segdeploy.models.images import read_image, read_mask
    from segdeploy.precision.cache import read_cache
    from segdeploy.proof.golden_vectors import read_golden
    from segdeploy.runtime.predictor import load
    from segdeploy.runtime.session import open_session

    def run_onnx(path: Path) -> None:
        with open_session(path) as session:
            from segdeploy.runtime.predictor import Predictor

            Predictor(session).warm_up(1)

    def manifest(path: Path) -> None:
        read = parse_manifest(path)
        assert read.rebuild()
        for layer in read.convolutions:
            "x".join(map(str, layer.dilation))

    def dataset(path: Path) -> None:
        target = path.with_name("dataset.json")
        path.replace(target)
        open_dataset(path.parent)

    def predict(path: Path) -> None:
        with load(path, threads=1) as network:
            network.predict(np.full((20, 30, 3), 99, np.uint8))

    def ledger(path: Path) -> None:
        held = Ledger(path, "key")
        for name, value in LEDGER.items():
            assert held.get(name) in (None, value), f"{name} is {held.get(name)}"
        assert len(held) <= len(LEDGER)

    def steps(path: Path) -> None:
        name = path.with_name(STEPS)
        path.replace(name)
        work = Steps(path.parent, {}, True, lambda name, message: None)
        assert work.run("export", [path.parent / "m.bin"], {}, lambda: None)

    return {
        "onnx": inspect,
        "onnx-run": run_onnx,
        "onnx-predict": predict,
        "bench-candidate": read_cpp_candidate,
        "bench-verdict": lambda path: compare_verdicts(path, path),
        "ledger": ledger,
        "steps": steps,
        "onnx-optimize": lambda path: optimize(path, path.with_name("out.onnx")),
        "onnx-adopt": lambda path: adopt(
            path,
            Statement(num_classes=8, preprocessing={"mean": (0.0,), "std": (1.0,)}),
            out=path.with_name("o.onnx"),
        ),
        "onnx-build": lambda path: build_engine(
            path, path.with_name("out.engine"), targets=["sm86"]
        ),
        "checkpoint": lambda path: (read_metadata(path), read_weights(path)),
        "weights": read_weights,
        "manifest": manifest,
        "golden": read_golden,
        "ranges": lambda path: read_cache(path, "", ""),
        "dataset": dataset,
        "image": read_image,
        "mask": lambda path: read_mask(path, 8, 255),
    }


def fuzz(parser: str, file: Path, count: int) -> dict[str, Any]:
    parse, content = parsers()[parser], file.read_bytes()
    rng = random.Random(f"{parser} {count}")
    counted = {"read": 0, "refused": 0}
    slowest, faults = 0.0, []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, file.name)
        shutil.copy(file, path)
        parse(path)  # imports, and what one whole file needs
        limit = _virtual() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        for index in range(count):
            path.write_bytes(mutated(content, rng))
            started = time.perf_counter()
            try:
                parse(path)
                counted["read"] += 1
            except Exception as error:
                lines = str(error).splitlines()
                if getattr(error, "exit_code", None) in (1, 2) and len(lines) == 1:
                    counted["refused"] += 1
                else:
                    faults.append(f"{index}: {type(error).__name__}: {error}"[:300])
            took = time.perf_counter() - started
            slowest = max(slowest, took)
            if took > _HANG_S:
                faults.append(f"{index}: took {took:.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "parser": parser,
        "files": count,
        **counted,
        "slowest_s": round(slowest, 3),
        "peak_mib": peak,
        "faults": faults,
    }


def _virtual() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    for pair in sys.argv[2:]:
        parser, _, file = pair.partition("=")
        print(json.dumps(fuzz(parser, Path(file), int(sys.argv[1]))), flush=True)
