"""`config.pbtxt`: protobuf's text format of Triton's `inference.ModelConfig`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.errors import InputError
from segdeploy.models.errors import first_line

_TYPES = {
    "float": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}


@dataclass(frozen=True)
class Tensor:
    """An input or output: `dims` without the batch, -1 where they are open; `dtype` as ONNX's."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    labels: str | None = None

    def text(self, kind: str) -> str:
        """As an entry `input` or `output`."""
        label = f"\n    label_filename: {_quoted(self.labels)}" if self.labels else ""
        return (
            f"{kind} [\n  {{\n    name: {_quoted(self.name)}\n    data_type: "
            f"{_triton_type(self.dtype)}\n    dims: {list(self.dims)}{label}\n  }}\n]\n"
        )


@dataclass(frozen=True)
class Served:
    """How a model is run: batches up to `batch` (0: the model has no batch), `instances` of it."""

    name: str
    platform: str
    file: str
    batch: int
    input: Tensor
    output: Tensor
    instances: int
    on_gpu: bool
    delay_us: int
    profile: int | None = None

    def config(self) -> str:
        """The whole file. The first requests are made by the server itself, before it is ready."""
        place = "KIND_GPU" if self.on_gpu else "KIND_CPU"
        profile = f'\n    profile: ["{self.profile}"]' if self.profile is not None else ""
        return (
            f"name: {_quoted(self.name)}\nplatform: {_quoted(self.platform)}\n"
            f"default_model_filename: {_quoted(self.file)}\nmax_batch_size: {self.batch}\n"
            f"{self.input.text('input')}{self.output.text('output')}"
            f"instance_group [\n  {{\n    count: {self.instances}\n    kind: {place}{profile}\n"
            "  }\n]\n"
            f"{_batching(self.batch, self.delay_us)}{self._warm_up()}"
        )

    def _warm_up(self) -> str:
        if any(side < 0 for side in self.input.dims):
            return ""  # of open sizes nobody knows which will come
        return (
            'model_warmup [\n  {\n    name: "black"\n    batch_size: 1\n'
            f"    inputs {{\n      key: {_quoted(self.input.name)}\n      value {{\n        "
            f"data_type: {_triton_type(self.input.dtype)}\n        dims: {list(self.input.dims)}\n"
            "        zero_data: true\n      }\n    }\n  }\n]\n"
        )


def ensemble(name: str, batch: int, steps: Sequence[Served]) -> str:
    """The configuration of a chain of models: each reads what the one before it gives."""
    taken, given = steps[0].input, steps[-1].output
    entries = []
    for index, step in enumerate(steps):
        read = taken.name if index == 0 else f"step_{index}"
        write = given.name if index == len(steps) - 1 else f"step_{index + 1}"
        entries.append(
            f"    {{\n      model_name: {_quoted(step.name)}\n      model_version: -1\n      "
            f"input_map {{ key: {_quoted(step.input.name)} value: {_quoted(read)} }}\n      "
            f"output_map {{ key: {_quoted(step.output.name)} value: {_quoted(write)} }}\n    }}"
        )
    joined = ",\n".join(entries)
    return (
        f'name: {_quoted(name)}\nplatform: "ensemble"\nmax_batch_size: {batch}\n'
        f"{taken.text('input')}{given.text('output')}"
        f"ensemble_scheduling {{\n  step [\n{joined}\n  ]\n}}\n"
    )


def validate(text: str, source: str) -> bool:
    """Parse a configuration by Triton's own protobuf, of the package tritonclient.

    False if that is not installed.

    Raises:
        InputError: if it is no `ModelConfig`.
    """
    messages = _messages()
    if messages is None:
        return False
    from google.protobuf import text_format

    try:
        text_format.Parse(text, messages.ModelConfig())
    except text_format.ParseError as error:
        raise InputError(f"{source}: is no Triton configuration ({first_line(error)})") from error
    return True


def _messages() -> Any:
    """`tritonclient.grpc.model_config_pb2`, without the client that its package would import."""
    package = importlib.util.find_spec("tritonclient")
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder, "grpc", "model_config_pb2.py")
        spec = importlib.util.spec_from_file_location("segdeploy_model_config_pb2", path)
        if path.is_file() and spec and spec.loader:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return None


def _batching(batch: int, delay_us: int) -> str:
    if batch < 2:
        return ""
    return f"dynamic_batching {{\n  max_queue_delay_microseconds: {delay_us}\n}}\n"


def _triton_type(dtype: str) -> str:
    return _TYPES[dtype]


def _quoted(text: str) -> str:
    """A string of protobuf's text format: all but printable ASCII as the octal of its UTF-8."""
    plain = (
        chr(b) if 32 <= b < 127 and chr(b) not in '"\\' else f"\\{b:03o}" for b in text.encode()
    )
    return f'"{"".join(plain)}"'
