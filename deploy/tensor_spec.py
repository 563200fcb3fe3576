"""Name, shape and dtype of a graph's input or output."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output.

    `name` is None if unknown. A dynamic dimension of `shape` is a name. `dtype` is ONNX's name of
    the type in lower case (onnx.TensorProto.DataType): `float`, `float16`, `bfloat16`, `uint8`, ...
    """

    name: str | None
    shape: tuple[int | str, ...]
    dtype: str


def onnx_name(dtype: str) -> str:
    """Return ONNX's name of a dtype of NumPy: `float` for float32."""
    return "float" if dtype == "float32" else dtype
