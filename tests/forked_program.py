"""The program `segdeploy` in a process of its own, forked where the libraries are loaded already.

A command spends most of its time in imports. A server process imports the libraries once, and forks
a child for every command. The child runs the program as `segdeploy` does, its supervisor included.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from .conftest import Ran

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("torch", "torch.onnx._internal.exporter._core", "torch._dynamo", "torch.export"),
        *("torchvision", "onnx", "onnxruntime", "onnxscript.function_libs.torch_lib.ops"),
        *("segdeploy.commands.bench", "segdeploy.commands.deploy", "segdeploy.commands.train"),
    ]
)


@dataclass(frozen=True)
class Started:
    """A command that runs, and the ends of its stdout and stderr."""

    process: BaseProcess
    out: Connection
    err: Connection

    def ended(self) -> Ran:
        """Wait for the command's end."""
        texts = [_read(self.out), _read(self.err)]
        self.process.join()
        assert self.process.exitcode is not None
        return Ran(self.process.exitcode, *texts)


def start(*words: object, folder: Path, largest_file: int | None = None) -> Started:
    """Start a command in `folder`; writing stops at `largest_file` bytes, as on a full disk."""
    (out, out_end), (err, err_end) = (_SERVER.Pipe(duplex=False) for _ in range(2))
    texts = [str(word) for word in words]
    process = _SERVER.Process(target=_run, args=(texts, folder, largest_file, out_end, err_end))
    process.start()
    out_end.close()
    err_end.close()
    return Started(process, out, err)


def run(*words: object, folder: Path) -> Ran:
    """Run a command in `folder` to its end."""
    return start(*words, folder=folder).ended()


def _read(end: Connection) -> str:
    with open(end.fileno(), encoding="utf-8", closefd=False) as file:
        return file.read()


def _run(words: list[str], folder: Path, largest_file: int | None, *ends: Connection) -> None:
    from segdeploy.program import main

    multiprocessing.set_start_method(None, force=True)  # the default, as in a new process
    os.chdir(folder)
    for number, end in enumerate(ends, 1):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - closed at the process's end
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ["segdeploy", *words]
    main()
