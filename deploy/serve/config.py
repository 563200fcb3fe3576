"""Write and validate `config.pbtxt`: Triton's `inference.ModelConfig` in protobuf text format."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.errors import InputError
from segdeploy.models.errors import first_line
from segdeploy.templates import render
from segdeploy.tensor_spec import TensorSpec

_TYPES = {
    "float": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}


@dataclass(frozen=True)
class Served:
    """A served model, and how Triton runs it.

    `batch` is the maximum batch size; 0 means that Triton does not batch the model. `instances` is
    the number of instances in the instance group. `delay_us` is the maximum queue delay of dynamic
    batching in microseconds.
    """

    name: str
    platform: str
    file: str
    batch: int
    input: TensorSpec
    output: TensorSpec
    instances: int
    on_gpu: bool
    delay_us: int
    profile: int | None = None
    labels: str | None = None

    def config(self) -> str:
        """Return the text of `config.pbtxt`."""
        return render("config.pbtxt.j2", filters=_FILTERS, model=self)


def ensemble(name: str, batch: int, steps: Sequence[Served]) -> str:
    """Return the `config.pbtxt` of models that run one after the other."""
    return render("ensemble.pbtxt.j2", filters=_FILTERS, name=name, batch=batch, steps=steps)


def validate(text: str, source: str) -> bool:
    """Parse a configuration with Triton's own protobuf schema, from the package tritonclient.

    Returns False if tritonclient is not installed.

    Raises:
        InputError: if the text is not a valid `ModelConfig`.
    """
    messages = _messages()
    if messages is None:
        return False
    from google.protobuf import text_format

    try:
        text_format.Parse(text, messages.ModelConfig())
    except text_format.ParseError as error:
        raise InputError(
            f"{source}: is not a Triton configuration ({first_line(error)})"
        ) from error
    return True


def _messages() -> Any:
    """Load `tritonclient.grpc.model_config_pb2` without importing the gRPC client.

    Returns None if tritonclient is not installed.
    """
    package = importlib.util.find_spec("tritonclient")
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder, "grpc", "model_config_pb2.py")
        spec = importlib.util.spec_from_file_location("segdeploy_model_config_pb2", path)
        if path.is_file() and spec and spec.loader:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return None


def _dims(tensor: TensorSpec) -> list[int]:
    """Return the dimensions without the batch, -1 where they are dynamic."""
    return [side if isinstance(side, int) else -1 for side in tensor.shape]


def _quoted(text: str) -> str:
    """Return a quoted string of the protobuf text format.

    Quotes, backslashes and all bytes of the UTF-8 text except printable ASCII are octal escapes.
    """
    plain = (
        chr(b) if 32 <= b < 127 and chr(b) not in '"\\' else f"\\{b:03o}" for b in text.encode()
    )
    return f'"{"".join(plain)}"'


_FILTERS: dict[str, Callable[..., Any]] = {
    "dims": _dims,
    "quoted": _quoted,
    "triton_type": _TYPES.__getitem__,
}
