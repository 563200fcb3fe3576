"""Kill a command of ours at every point where it touches a file, each time in a process of its own.

`python crash_points.py FOLDER VERB JSON` imports what the command needs, and forks: child N runs
the command in FOLDER and is killed (SIGKILL, which nothing can catch) at the Nth event there: a
temporary file is made or opened, written, flushed, given its rights, renamed or removed. Behind
each it prints a line of JSON with what lies in the folder, until a child comes to its end. Before
each, the outputs hold what they held before: `old`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401 - so that children need not
import torch

import segdeploy
import segdeploy.commands.build_engine
import segdeploy.commands.calibrate
import segdeploy.commands.export
import segdeploy.commands.train
from segdeploy.model_spec import ModelSpec

EVENTS = ("tempfile.mkstemp", "open", "os.chmod", "os.rename", "os.remove", "os.truncate")


def die_at(point: int, folder: Path) -> None:
    """Count what happens to files of the folder, and die at that one."""
    seen = 0

    def touch() -> None:
        nonlocal seen
        seen += 1
        if seen == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and isinstance(arguments[0], (str, bytes, os.PathLike)):
            writes = event != "open" or (isinstance(arguments[2], int) and arguments[2] & 3)
            if writes and os.fsdecode(arguments[0]).startswith(str(folder)):
                touch()

    sys.addaudithook(hook)
    true_fsync = os.fsync

    def fsync(handle: int) -> None:
        touch()  # written, perhaps nowhere yet
        true_fsync(handle)
        touch()

    os.fsync = fsync


def run(verb: str, folder: Path, options: dict[str, Any]) -> None:
    if verb == "train":
        spec = ModelSpec("deeplabv3", arguments={"width": 4, "stride": 2}, size=(32, 32))
        segdeploy.train(spec, out=folder / "m.safetensors", workers=0, **options)
    elif verb == "export":
        segdeploy.export(out=folder / "m.onnx", **options)
    elif verb == "calibrate":
        segdeploy.calibrate(out=folder / "m.onnx", cache=folder / "ranges.json", **options)
    else:
        segdeploy.build_engine(out=folder / "m.engine", **options)


def main(folder: Path, verb: str, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    olds = {path.name: path.read_bytes() for path in folder.iterdir()}
    for point in range(1, 200):
        shutil.rmtree(folder)
        folder.mkdir()
        for name, content in olds.items():
            (folder / name).write_bytes(content)
        child = os.fork()
        if child == 0:
            die_at(point, folder)
            try:
                run(verb, folder, options)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        held = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.iterdir()
            if not path.name.startswith(".")
        }
        kept = folder.with_name(f"{folder.name}-{point}")
        shutil.copytree(folder, kept)
        killed = os.WIFSIGNALED(status)
        code = None if killed else os.waitstatus_to_exitcode(status)
        print(json.dumps({"point": point, "code": code, "held": held, "at": str(kept)}), flush=True)
        if not killed:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
