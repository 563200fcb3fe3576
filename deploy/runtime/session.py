"""The `Session` protocol of all backends, and the function that opens a session."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from numpy.typing import NDArray

from segdeploy.artifact import Artifact, EngineFile, open_artifact
from segdeploy.contract import Contract
from segdeploy.errors import InputError
from segdeploy.profiles import Profile
from segdeploy.tensor_spec import TensorSpec

# ONNX Runtime's execution providers, by segdeploy's backend name.
PROVIDERS = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
    "onnxruntime-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
BACKENDS = (*PROVIDERS, "openvino", "tensorrt", "tensorrt-rtx")


class Session(Protocol):
    """A network that is ready to run: one array in, one array out."""

    backend: str
    contract: Contract
    input: TensorSpec
    output: TensorSpec
    takes_any_size: bool
    profiles: tuple[Profile, ...]
    """The input ranges of a dynamic network; () for a network without bounds or a static one."""

    def run(self, array: NDArray[Any]) -> NDArray[Any]:
        """Run once; `input` and `output` describe the argument and the result."""
        ...

    def close(self) -> None:
        """Free what the runtime holds."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def check_tensors(
    path: Path,
    contract: Contract,
    input_shape: tuple[int | str, ...],
    output_shape: tuple[int | str, ...],
    mends: tuple[str, str] = ("export it again", "export it again"),
) -> None:
    """Refuse a graph whose input or output shape contradicts its contract.

    A named dimension matches any size. `mends` are what a user can do about the input and the
    output.

    Raises:
        InputError: with the contract's shape and the graph's.
    """
    if isinstance(input_shape[0], int) and input_shape[0] != 1:
        raise InputError(
            f"{path}: takes batches of {input_shape[0]} alone; export it for one image, or with "
            "a dynamic batch"
        )
    height, width = contract.size
    classes = contract.score_channels
    given: tuple[int | None, ...] = (classes, height, width)
    if contract.upsampling:
        given = (classes, None, None)
    elif contract.output == "labels":
        given = (height, width)
    expectations: tuple[tuple[str, tuple[int | str, ...], tuple[int | None, ...]], ...] = (
        ("input", input_shape, contract.image_shape),
        ("output", output_shape, given),
    )
    for (what, shape, expected), mend in zip(expectations, mends, strict=True):
        fits = len(shape) == len(expected) + 1 and all(
            isinstance(size, str) or (size > 0 if size_wanted is None else size == size_wanted)
            for size, size_wanted in zip(shape[1:], expected, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if side is None else str(side) for side in expected)
            raise InputError(
                f"{path}: its {what} has shape {_text(shape)}, but its contract says "
                f"(N, {wanted}); {mend}"
            )


def check_output(
    path: Path, contract: Contract, taken: tuple[int, ...], output: NDArray[Any]
) -> None:
    """Refuse an output that contradicts the contract, for an input of shape `taken`.

    The output size of a dynamic graph is known only after a run. A label outside the contract's
    classes would be counted or painted as another class.

    Raises:
        InputError: with both shapes, or the largest label.
    """
    height, width = taken[1:3] if contract.layout == "NHWC" else taken[2:4]
    if contract.source_size is not None:
        height, width = contract.size
    given, classes = output.shape, contract.score_channels
    if contract.upsampling:
        fits = len(given) == 4 and given[1] == classes and min(given) > 0
    elif contract.output == "labels":
        fits = given == (taken[0], height, width)
    else:
        fits = given == (taken[0], classes, height, width)
    if not fits:
        raise InputError(
            f"{path}: gave an output of shape {'x'.join(map(str, given))} for an input of "
            f"{height}x{width}, which its contract does not say; export it again"
        )
    count = len(contract.classes)
    labels = 1 << count if contract.has_bit_planes else count
    if output.ndim == 3 and (largest := int(output.max())) >= labels:
        raise InputError(
            f"{path}: the network gives the label {largest}, and its contract has {count} "
            f"classes (0 to {count - 1}); state its classes anew with `segdeploy adopt`"
        )


def check_types(path: Path, contract: Contract, taken: str, given: str) -> None:
    """Refuse a graph whose input or output type contradicts its contract; types are ONNX names.

    Raises:
        InputError: unless bytes and labels are uint8, and all else float, float16 or bfloat16.
    """
    gives_labels = contract.output == "labels" and contract.upsampling is None
    takes_bytes = contract.input_dtype == "uint8"
    for dtype, is_bytes in ((taken, takes_bytes), (given, gives_labels)):
        if dtype not in (("uint8",) if is_bytes else ("float", "float16", "bfloat16")):
            raise InputError(
                f"{path}: its input or output has another type than its contract says; export it "
                "again"
            )


def _text(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def open_session(
    file: Artifact | Path,
    backend: str | None = None,
    *,
    reference_execution: bool = False,
    threads: int | None = None,
) -> Session:
    """Open an exported file or an engine with its runtime.

    An ONNX file runs in ONNX Runtime on the CPU unless `backend` names another runtime. An engine
    runs in the TensorRT package that built it. With `reference_execution` the graph is executed
    node by node, without fusion. Q/DQ nodes then round exactly as in TensorRT, whatever integer
    kernels this CPU has.

    Raises:
        InputError: for a missing, damaged or foreign file, or a runtime that is not installed.
    """
    if isinstance(file, Path):
        file = open_artifact(file)
    path = file.path
    if isinstance(file, EngineFile):
        from segdeploy.runtime.tensorrt_session import TensorRtSession

        if backend not in (None, "tensorrt", "tensorrt-rtx"):
            raise InputError(
                f"{path}: is a TensorRT engine; {backend} runs the .onnx that it was built from"
            )
        return TensorRtSession(file, backend=backend)
    if backend in ("tensorrt", "tensorrt-rtx"):
        raise InputError(
            f"{path}: {backend} runs engines; make one with `segdeploy build-engine {path} "
            f"--backend {backend}`, or give --backend onnxruntime-{backend}"
        )
    if backend in (None, *PROVIDERS):
        from segdeploy.runtime.onnxruntime_session import OnnxRuntimeSession

        return OnnxRuntimeSession(
            file,
            reference_execution=reference_execution,
            threads=threads,
            backend=backend or "onnxruntime",
        )
    if backend == "openvino":
        if reference_execution:
            raise InputError("openvino: does not support reference execution; use onnxruntime")
        from segdeploy.runtime.openvino_session import OpenVinoSession

        return OpenVinoSession(file, threads=threads)
    raise InputError(f"{backend}: no such backend; there are {', '.join(BACKENDS)}")
