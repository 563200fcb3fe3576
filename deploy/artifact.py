"""Handles of exported files: an ONNX file or an engine, of which each part is read once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.content_keys import key_of_model
from segdeploy.contract import Contract, Precision
from segdeploy.engine.manifest import Manifest, read_manifest
from segdeploy.errors import InputError
from segdeploy.files import check_input
from segdeploy.model_spec import ModelSpec
from segdeploy.onnx_graph.check import check_graph
from segdeploy.onnx_graph.model_file import (
    contract_of,
    find_contract,
    load_onnx,
    precision_of,
    tensor_spec_of,
)
from segdeploy.profiles import Profile, profiles_of
from segdeploy.tensor_spec import TensorSpec

if TYPE_CHECKING:
    import onnx

GRAPH_SUFFIX = ".onnx"
ENGINE_SUFFIXES = (".engine", ".plan")


class OnnxFile:
    """An ONNX file. Each part is read when it is first used, and kept.

    All readers share `graph`; a step that changes it copies it first. `data` is the content of a
    file that is not written yet. Every part raises InputError for a file that cannot be used.
    """

    def __init__(self, path: Path, data: bytes | None = None):
        self.path = path
        self.data = data
        self._is_checked = False

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """The graph with its weights, external ones included."""
        if self.data is None:
            return load_onnx(self.path)
        import onnx

        graph: onnx.ModelProto = onnx.ModelProto.FromString(self.data)
        return graph

    @cached_property
    def contract(self) -> Contract:
        """The contract in the metadata; a graph without one is refused."""
        return contract_of(self.graph, self.path)

    @cached_property
    def stated(self) -> Contract | None:
        """The contract in the metadata, or None."""
        return find_contract(self.graph, self.path)

    @cached_property
    def precision(self) -> Precision:
        """The contract's precision, or `int8` for a graph that another tool quantized."""
        return precision_of(self.graph, self.stated)

    @cached_property
    def key(self) -> str:
        """The SHA-256 of the file's content, external weights included."""
        return key_of_model(self.path)

    @property
    def input(self) -> TensorSpec:
        """The graph's first input."""
        return tensor_spec_of(self.graph.graph.input[0])

    @property
    def output(self) -> TensorSpec:
        """The graph's first output."""
        return tensor_spec_of(self.graph.graph.output[0])

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The input ranges of a dynamic graph; () for a static graph, or one without bounds."""
        return profiles_of(self.contract)

    def check(self) -> None:
        """Refuse a graph that cannot be run (`check_graph`); a graph is checked once.

        Raises:
            InputError: for a graph that is not valid ONNX of the standard operators.
        """
        if not self._is_checked:
            check_graph(self.graph, self.path, is_run_alone=True)
        self._is_checked = True


class EngineFile:
    """An engine with its manifest, which is read and checked once, when it is first used."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest beside the engine, checked against the engine's bytes."""
        return read_manifest(self.path)

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


def artifact_of(spec: ModelSpec) -> Artifact | None:
    """Return the handle of a spec that names an exported file; None for a PyTorch network.

    Raises:
        InputError: if the file is missing, or the spec has options that only a network takes.
    """
    if not is_artifact(Path(spec.model)):
        return None
    spec.refuse_options()
    return open_artifact(spec.model)
