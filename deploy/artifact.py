"""Handles of exported files: an ONNX file or an engine, of which each part is read once."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.content_keys import key_of_files
from segdeploy.contract import Contract, Precision
from segdeploy.engine.manifest import Manifest, read_engine
from segdeploy.errors import InputError
from segdeploy.files import check_input
from segdeploy.model_spec import ModelSpec
from segdeploy.onnx_graph.check import check_graph
from segdeploy.onnx_graph.model_file import (
    contract_of,
    external_files,
    find_contract,
    input_values,
    is_quantized,
    load_with_external_files,
    precision_of,
    tensor_spec_of,
)
from segdeploy.profiles import Profile, profiles_of
from segdeploy.tensor_spec import TensorSpec

if TYPE_CHECKING:
    import onnx

GRAPH_SUFFIX = ".onnx"
ENGINE_SUFFIXES = (".engine", ".plan")


class _File:
    """A file that must not change while its handle is in use."""

    def __init__(self, path: Path):
        self.path = path
        self._state = _state(path)

    def check_unchanged(self) -> None:
        """Refuse a file that was replaced or changed since the handle was made.

        Raises:
            InputError: if the file's size, time or inode differs, or the file is gone.
        """
        if _state(self.path) != self._state:
            raise InputError(
                f"{self.path}: was changed or replaced while this command used it; run the command "
                "again"
            )


class OnnxFile(_File):
    """An ONNX file. Contract, precision, tensors and key are read once, and kept.

    The graph is kept until `release`. All its readers share it; a step that changes it copies it
    first. `data` is the content of a file that is not written yet.
    """

    def __init__(self, path: Path, data: bytes | None = None):
        super().__init__(path)
        self.data = data
        self._graph: onnx.ModelProto | None = None
        self._external: list[Path] | None = None
        self._checked: set[bool] = set()

    @property
    def graph(self) -> onnx.ModelProto:
        """The graph with its weights, external ones included.

        Raises:
            InputError: if the file is damaged, failed its proof, or was changed meanwhile.
        """
        if self._graph is None:
            self._graph = self._read()
        return self._graph

    def _read(self) -> onnx.ModelProto:
        if self.data is None:
            graph, self._external = load_with_external_files(self.path)
            self.check_unchanged()
            return graph
        import onnx

        parsed: onnx.ModelProto = onnx.ModelProto.FromString(self.data)
        return parsed

    def release(self) -> None:
        """Forget the graph, which may hold gigabytes; it is read again where it is needed."""
        _ = self.own_contract, self.precision, self.rounds, self.is_half, self.input, self.output
        self._graph = None

    @property
    def contract(self) -> Contract:
        """The contract in the metadata; a graph without one raises InputError."""
        if self.own_contract is None:
            return contract_of(self.graph, self.path)
        return self.own_contract

    @cached_property
    def own_contract(self) -> Contract | None:
        """The contract in the metadata, or None."""
        return find_contract(self.graph, self.path)

    @cached_property
    def precision(self) -> Precision:
        """The contract's precision, or `int8` for a graph that another tool quantized."""
        return precision_of(self.graph, self.own_contract)

    @cached_property
    def rounds(self) -> bool:
        """Whether CPU kernels may round differently from TensorRT: Q/DQ, FP16 or BF16."""
        return is_quantized(self.graph) or self.is_half

    @cached_property
    def is_half(self) -> bool:
        """Whether the graph has FP16 or BF16 values."""
        from segdeploy.calibration.half_precision import is_half

        return is_half(self.graph)

    @cached_property
    def key(self) -> str:
        """The SHA-256 of the content, external weights included."""
        if self.data is not None:
            return hashlib.sha256(self.data).hexdigest()
        external = external_files(self.path) if self._external is None else self._external
        key = key_of_files(self.path, external)
        self.check_unchanged()
        return key

    @cached_property
    def input(self) -> TensorSpec:
        """The graph's first input."""
        return tensor_spec_of(input_values(self.graph)[0])

    @cached_property
    def output(self) -> TensorSpec:
        """The graph's first output."""
        return tensor_spec_of(self.graph.graph.output[0])

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The input ranges of a dynamic graph; () for a static graph, or one without bounds."""
        return profiles_of(self.contract)

    def check(self, *, is_run_alone: bool = True) -> None:
        """Refuse what cannot be run as a network of one image; a graph is checked once.

        `is_run_alone` is that of `check_graph`.

        Raises:
            InputError: for a graph that is not valid ONNX of the standard operators, or does not
                have one input and an output.
        """
        if is_run_alone in self._checked or False in self._checked:
            return
        check_graph(self.graph, self.path, is_run_alone=is_run_alone)
        inputs, outputs = input_values(self.graph), self.graph.graph.output
        if len(inputs) != 1 or not outputs:
            raise InputError(
                f"{self.path}: has {len(inputs)} inputs and {len(outputs)} outputs; a segmentation "
                "network has one input, the image, and an output"
            )
        self._checked.add(is_run_alone)


class EngineFile(_File):
    """An engine with its manifest, which is read and checked once."""

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest beside the engine, checked against the engine's bytes."""
        return self.read()[0]

    def read(self) -> tuple[Manifest, bytes]:
        """Return the manifest and the plan.

        Raises:
            InputError: as in `read_engine`, or if the engine was changed meanwhile.
        """
        manifest, plan = read_engine(self.path)
        self.check_unchanged()
        return manifest, plan

    @property
    def contract(self) -> Contract:
        """The contract in the manifest."""
        return self.manifest.contract

    @property
    def precision(self) -> Precision:
        """The precision in the manifest."""
        return self.manifest.precision

    @property
    def key(self) -> str:
        """The SHA-256 of the engine."""
        return self.manifest.sha256

    @property
    def input(self) -> TensorSpec:
        """The engine's input."""
        return self.manifest.input

    @property
    def output(self) -> TensorSpec:
        """The engine's output."""
        return self.manifest.output

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The engine's optimization profiles; () for a static engine."""
        return self.manifest.profiles


Artifact = OnnxFile | EngineFile


def is_artifact(path: Path) -> bool:
    """Return whether a path names an ONNX file or an engine, by its suffix."""
    return path.suffix in (GRAPH_SUFFIX, *ENGINE_SUFFIXES)


def open_artifact(path: Path | str) -> Artifact:
    """Return the handle of an exported file; nothing is read yet.

    Raises:
        InputError: if the file is missing, or neither an ONNX file nor an engine.
    """
    path = check_input(Path(path))
    if path.suffix in ENGINE_SUFFIXES:
        return EngineFile(path)
    if path.suffix == GRAPH_SUFFIX:
        return OnnxFile(path)
    raise InputError(f"{path}: is neither an .onnx file nor an .engine")


def open_graph(path: Path | str) -> OnnxFile:
    """Return the handle of an ONNX file, for steps that take no engine.

    Raises:
        InputError: if the file is missing, or not an ONNX file.
    """
    file = open_artifact(path)
    if isinstance(file, EngineFile):
        raise InputError(f"{path}: is an engine; give the .onnx that it was built from")
    return file


def artifact_of(spec: ModelSpec) -> Artifact | None:
    """Return the handle of a spec that names an exported file; None for a PyTorch network.

    Raises:
        InputError: if the file is missing, or the spec has options that only a network takes.
    """
    if not is_artifact(Path(spec.model)):
        return None
    spec.refuse_options()
    return open_artifact(spec.model)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_ino, seen.st_size, seen.st_mtime_ns
