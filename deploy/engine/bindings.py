"""NVIDIA's two Python packages, TensorRT and TensorRT-RTX, and their differences.

Both packages use the same class names. TensorRT (10 and 11) builds for the GPU that it runs on.
TensorRT-RTX builds ahead of time for the compute capabilities that the user names.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from segdeploy.errors import InputError
from segdeploy.packages import require

BACKENDS = ("tensorrt-rtx", "tensorrt")
_MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
_OLDEST = 10


@dataclass(frozen=True)
class Bindings:
    """An imported TensorRT package: its `--backend` name, and its module `trt`."""

    name: str
    trt: Any

    @property
    def version(self) -> str:
        """The version of the package; an engine is bound to this version."""
        return str(self.trt.__version__)

    @property
    def is_rtx(self) -> bool:
        """Whether the package is TensorRT-RTX, which builds for named compute capabilities."""
        return self.name == "tensorrt-rtx"

    def network_flags(self) -> int:
        """Return the flags of a strongly typed network, whose types are those of the graph.

        TensorRT-RTX has only strongly typed networks. TensorRT 10 needs the flag, and TensorRT 11
        accepts the flag.
        """
        if self.is_rtx:
            return 0
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def compute_capabilities(self) -> dict[str, Any]:
        """Return the compute capabilities that TensorRT-RTX can build for, by name (`sm86`)."""
        members = self.trt.ComputeCapability.__members__
        return {name.lower(): value for name, value in members.items() if name.startswith("SM")}

    def usable(self, made: Any, logger: Any, what: str) -> Any:
        """Return `made`, a builder or runtime that was created with `logger`, if CUDA can start.

        Where CUDA cannot start (no driver, no device, a driver that is too old), TensorRT 10.15 to
        11.4 return an invalid address that is not null. Every use of the object with this address
        ends the process, and so does its deletion. Only the log reports the failure. Such an object
        is never freed.

        Raises:
            InputError: if CUDA cannot start, with `what` and CUDA's reason.
        """
        if logger.no_cuda and not self.is_rtx:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
            raise InputError(
                f"{what}: {self.name} {self.version} cannot start CUDA here ({logger.no_cuda}); "
                "`segdeploy doctor` looks at the driver"
            )
        return made

    def log(self) -> Any:
        """Return a logger that collects errors in `errors`, for segdeploy's own messages."""
        trt = self.trt

        class ErrorLog(trt.ILogger):  # type: ignore[misc, name-defined]
            """A logger that collects errors instead of printing them."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []
                self.no_cuda: str | None = None

            def log(self, severity: Any, message: str) -> None:
                if "CUDA initialization failure" in message:
                    self.no_cuda = message.strip()
                grave = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)
                # TensorRT logs error 35, "no driver", on every machine without a GPU, even where a
                # build succeeds.
                if severity in grave and "cudaError 35" not in message:
                    self.errors.append(message.strip())

        return ErrorLog()


def open_bindings(backend: str) -> Bindings:
    """Import the package of a backend.

    Raises:
        InputError: if the backend does not exist, or its package is not installed or too old.
    """
    if backend not in BACKENDS:
        raise InputError(f"{backend}: no such builder; there are {', '.join(BACKENDS)}")
    bindings = Bindings(backend, require(_MODULES[backend]))
    if not bindings.is_rtx and int(bindings.version.split(".")[0]) < _OLDEST:
        raise InputError(
            f"tensorrt {bindings.version}: is too old for the strongly typed networks that "
            f"segdeploy builds; install {_OLDEST} or later: pip install 'segdeploy[gpu]'"
        )
    return bindings
