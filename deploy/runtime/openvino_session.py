"""OpenVINO, a second CPU runtime."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.artifact import OnnxFile
from segdeploy.errors import InputError
from segdeploy.packages import require
from segdeploy.runtime.closing import Closing
from segdeploy.runtime.session import check_output, check_tensors, check_types
from segdeploy.tensor_spec import TensorSpec

# OpenVINO's names of ONNX's types.
_DTYPES = {
    "f32": "float",
    "f16": "float16",
    "bf16": "bfloat16",
    "u8": "uint8",
    "i8": "int8",
    "i32": "int32",
    "i64": "int64",
}


class OpenVinoSession(Closing):
    """An ONNX file under OpenVINO's CPU plugin, in float32. Safe to call from several threads."""

    backend = "openvino"

    def __init__(self, file: OnnxFile, *, threads: int | None = None):
        openvino = require("openvino")
        path = file.path
        self.contract, self.profiles = file.contract, file.profiles
        # Without the hint OpenVINO may compute in bfloat16 where the CPU offers it.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            model = (
                core.read_model(str(path)) if file.data is None else core.read_model(file.data, b"")
            )
            file.check_unchanged()
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"{path}: OpenVINO cannot load it ({reason})") from error
        self._compiled, self._requests = compiled, threading.local()
        self.input = _spec(compiled.input(0))
        self.output = _spec(compiled.output(0))
        self.takes_any_size = isinstance(self.input.shape[2], str)
        check_tensors(path, self.contract, self.input.shape, self.output.shape)
        check_types(path, self.contract, self.input.dtype, self.output.dtype)
        self._path = path

    def run(self, array: NDArray[Any]) -> NDArray[Any]:
        """Run once on an array of the input's shape and dtype.

        The array of an FP16 input or output is float32.
        """
        if self.input.dtype == "float16":
            array = array.astype(np.float16)
        if not hasattr(self._requests, "own"):  # an infer request serves one thread
            self._requests.own = self._compiled.create_infer_request()
        result: NDArray[Any] = self._requests.own.infer([array])[0]
        check_output(self._path, self.contract, array.shape, result)
        return result.astype(np.float32) if result.dtype == np.float16 else result

    def close(self) -> None:
        """Drop the compiled model."""
        del self._requests, self._compiled


def _spec(port: Any) -> TensorSpec:
    shape = tuple(d.get_length() if d.is_static else str(d) for d in port.get_partial_shape())
    dtype = port.get_element_type().get_type_name()
    return TensorSpec(port.get_any_name(), shape, _DTYPES.get(dtype, dtype))
