"""ONNX Runtime, the default runtime of an ONNX file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.artifact import OnnxFile
from segdeploy.errors import InputError
from segdeploy.models.errors import first_line
from segdeploy.packages import require
from segdeploy.runtime.closing import Closing
from segdeploy.runtime.session import (
    PROVIDERS,
    check_output,
    check_tensors,
    check_types,
)
from segdeploy.tensor_spec import TensorSpec

_CPU = PROVIDERS["onnxruntime"]


class OnnxRuntimeSession(Closing):
    """An ONNX file on one execution provider of ONNX Runtime. Safe to call from several threads.

    `reference_execution` runs the graph node by node, as TensorRT computes: every graph
    optimization is off, and FP16 and BF16 values are rounded, which ONNX Runtime omits
    (`calibration.reference_execution`). `threads` limits the threads inside an operator (all cores
    if None).
    """

    def __init__(
        self,
        file: OnnxFile,
        *,
        reference_execution: bool = False,
        threads: int | None = None,
        backend: str = "onnxruntime",
    ):
        ort = require("onnxruntime")
        self.backend, provider = backend, PROVIDERS[backend]
        if provider not in ort.get_available_providers():
            raise InputError(
                f"{backend}: this ONNX Runtime {ort.__version__} has no {provider}; "
                "run: pip uninstall onnxruntime; pip install 'segdeploy[gpu]'"
            )
        if provider != _CPU and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA's libraries, from PyTorch's wheels
        from segdeploy.calibration.session import session_options

        options = session_options(reference_execution=reference_execution, threads=threads)
        path = file.path
        self.contract, self.profiles = file.contract, file.profiles
        data = _with_rounding(file) if reference_execution else file.data
        file.release()  # ONNX Runtime reads the file itself
        try:
            self._session = ort.InferenceSession(
                str(path) if data is None else data,
                options,
                providers=[provider] if provider == _CPU else [provider, _CPU],
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base below Exception
            raise InputError(
                f"{path}: ONNX Runtime cannot load it ({first_line(error)})"
            ) from error
        if data is None:
            file.check_unchanged()
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        # ONNX Runtime drops a provider that it cannot load, without an error.
        if self._session.get_providers()[0] != provider:
            raise InputError(
                f"{backend}: {provider} cannot be loaded here, and ONNX Runtime would fall back to "
                "the CPU; `segdeploy doctor` looks for the GPU and its libraries"
            )
        self.input = _spec(inputs[0])
        self.output = _spec(outputs[0])
        self.takes_any_size = isinstance(self.input.shape[2], str)
        check_tensors(path, self.contract, self.input.shape, self.output.shape)
        check_types(path, self.contract, self.input.dtype, self.output.dtype)
        self._path = path

    def run(self, array: NDArray[Any]) -> NDArray[Any]:
        """Run once on an array of the input's shape and dtype.

        The array of an FP16 input or output is float32.

        Raises:
            InputError: if ONNX Runtime cannot run the graph on it.
        """
        if self.input.dtype == "float16":
            array = array.astype(np.float16)
        result: NDArray[Any]
        try:
            (result,) = self._session.run([self.output.name], {self.input.name: array})
        except Exception as error:  # ONNX Runtime's exceptions share no base below Exception
            needs_memory = "bad_alloc" in str(error) or "allocate memory" in str(error)
            mend = "; give a smaller --size, or more memory" if needs_memory else ""
            raise InputError(
                f"{self.backend}: cannot run the graph on an input of shape "
                f"{tuple(array.shape)} ({first_line(error)}){mend}"
            ) from error
        check_output(self._path, self.contract, array.shape, result)
        return result.astype(np.float32) if result.dtype == np.float16 else result

    def close(self) -> None:
        """Free the session and its memory."""
        del self._session


def _with_rounding(file: OnnxFile) -> bytes | None:
    """Return the graph with explicit rounding if it has FP16 or BF16 values, else `file.data`."""
    if not file.is_half:
        return file.data
    from segdeploy.calibration.half_precision import rounded

    content: bytes = rounded(file.graph).SerializeToString()
    return content


def _spec(value: Any) -> TensorSpec:
    return TensorSpec(value.name, tuple(value.shape), value.type.removeprefix("tensor(")[:-1])
