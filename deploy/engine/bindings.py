"""NVIDIA's two Python packages, TensorRT and TensorRT-RTX, and what of them differs.

Both name their classes alike. TensorRT (10 and 11) builds for the GPU that it runs on; TensorRT-RTX
builds ahead of time, for compute capabilities that are named.
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
    """An imported package: `name` as in `--backend`, and its module."""

    name: str
    trt: Any

    @property
    def version(self) -> str:
        """The package's version, which the engine is bound to."""
        return str(self.trt.__version__)

    @property
    def is_rtx(self) -> bool:
        """Whether it builds for compute capabilities that are named."""
        return self.name == "tensorrt-rtx"

    def network_flags(self) -> int:
        """Flags of a strongly typed network: types are the graph's own.

        RTX knows no other; TensorRT 10 has to be told, and 11 may be.
        """
        if self.is_rtx:
            return 0
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def compute_capabilities(self) -> dict[str, Any]:
        """What RTX can build for, by names such as `sm86`."""
        members = self.trt.ComputeCapability.__members__
        return {name.lower(): value for name, value in members.items() if name.startswith("SM")}

    def usable(self, made: Any, logger: Any, what: str) -> Any:
        """A builder or runtime that was made with `logger`, if it can be used.

        Where CUDA cannot start (no driver, no device, a driver that is too old), TensorRT 10.15 to
        11.4 give an address that is neither null nor valid: every use of the object around it,
        freeing it too, ends the process. Only the log says so. Such an object is never freed.

        Raises:
            InputError: with `what` and CUDA's reason.
        """
        if logger.no_cuda and not self.is_rtx:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
            raise InputError(
                f"{what}: {self.name} {self.version} cannot start CUDA here ({logger.no_cuda}); "
                "`segdeploy doctor` looks at the driver"
            )
        return made

    def log(self) -> Any:
        """A logger that keeps errors, in `errors`, for a message of ours."""
        trt = self.trt

        class ErrorLog(trt.ILogger):  # type: ignore[misc, name-defined]
            """Keeps errors instead of printing them."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []
                self.no_cuda: str | None = None

            def log(self, severity: Any, message: str) -> None:
                if "CUDA initialization failure" in message:
                    self.no_cuda = message.strip()
                grave = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)
                # Error 35, "no driver", is said on every machine without a GPU, even where a
                # build succeeds.
                if severity in grave and "cudaError 35" not in message:
                    self.errors.append(message.strip())

        return ErrorLog()


def open_bindings(backend: str) -> Bindings:
    """Import the package of a backend.

    Raises:
        InputError: if there is no such backend, it is not installed, or too old.
    """
    if backend not in BACKENDS:
        raise InputError(f"{backend}: no such builder; there are {', '.join(BACKENDS)}")
    bindings = Bindings(backend, require(_MODULES[backend]))
    if not bindings.is_rtx and int(bindings.version.split(".")[0]) < _OLDEST:
        raise InputError(
            f"tensorrt {bindings.version} has no strongly typed networks as segdeploy builds them; "
            f"install {_OLDEST} or later: pip install 'segdeploy[gpu]'"
        )
    return bindings
