"""The candidates of a bench: their names, their content, and how each is opened to be judged."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.benchmark.accuracy import Contestant
from segdeploy.benchmark.cpp_program import read_cpp_candidate
from segdeploy.benchmark.process import Candidate
from segdeploy.content_keys import key_of_model, key_of_network
from segdeploy.contract import Contract
from segdeploy.engine.manifest import read_manifest
from segdeploy.errors import InputError
from segdeploy.files import check_input
from segdeploy.model_spec import LoadedNetwork, ModelSpec
from segdeploy.models.names import escaped
from segdeploy.onnx_graph.model_file import contract_of, is_quantized, load_onnx, precision_of
from segdeploy.runtime.predictor import Predictor, load
from segdeploy.runtime.session import ENGINE_SUFFIXES, PROVIDERS
from segdeploy.runtime.torch_session import TorchSession

if TYPE_CHECKING:
    import onnx


def name_candidates(
    paths: Sequence[Path], backends: Sequence[str], program: Path | None = None
) -> list[Candidate]:
    """Each `.onnx` once a runtime, each engine once, and each model that `program` times in C++.

    Raises:
        InputError: if one is named twice, or there is no such program.
    """
    for what, named in (("candidate", paths), ("backend", backends)):
        if len(set(named)) < len(named):
            raise InputError(f"bench: a {what} is named twice")
    for backend in backends:
        if backend not in (*PROVIDERS, "openvino"):
            raise InputError(
                f"{backend}: no such backend; there are {', '.join(PROVIDERS)}, openvino"
            )
    return [
        read_cpp_candidate(path, program)
        if path.suffix == ".json"
        else Candidate(_name(path, paths, backend, backends), ModelSpec(str(path)), backend)
        for path in paths
        for backend in (backends if path.suffix == ".onnx" else ("",))
    ]


def _name(path: Path, paths: Sequence[Path], backend: str, backends: Sequence[str]) -> str:
    """The file's name, or its path where two have one name, and the runtime where there are two."""
    alike = [other for other in paths if other.name == path.name]
    name = escaped(path.name if len(alike) == 1 else str(path))
    return name if len(backends) == 1 or not backend else f"{name} ({backend})"


def contract_of_file(path: Path) -> Contract:
    """What a graph or an engine says of itself, without a runtime.

    Raises:
        InputError: for a file that is neither, or damaged.
    """
    check_input(path)
    if path.suffix in ENGINE_SUFFIXES:
        return read_manifest(path).contract
    if path.suffix != ".onnx":
        raise InputError(f"{path}: is neither an .onnx file nor an .engine")
    return contract_of(load_onnx(path), path)


def check_contract(candidate: Candidate, truth: Predictor) -> None:
    """Refuse a candidate that could not be compared, before anything is run.

    Raises:
        InputError: with what its contract says, and what the reference's does.
    """
    path = Path(candidate.spec.model)
    theirs, ours = contract_of_file(path), truth.contract
    if candidate.scales:
        theirs = replace(theirs, scales=candidate.scales)
    for what in ("classes", "size", "mean", "std", "scales", "flip"):
        if getattr(theirs, what) != getattr(ours, what):
            raise InputError(
                f"{path}: its {what} is {getattr(theirs, what)}, the reference's "
                f"{getattr(ours, what)}; they cannot be compared"
            )


def open_candidate(
    stack: ExitStack, candidate: Candidate, literal: dict[str, Predictor]
) -> Contestant:
    """Open a candidate to be judged.

    A quantised or half graph is executed literally, and its runtime's own kernels beside that; the
    same file for another runtime shares what `literal` holds of it.

    Raises:
        InputError: for a file that cannot be used.
    """
    path = Path(candidate.spec.model)
    kernels = stack.enter_context(
        load(path, backend=candidate.backend or None, scales=candidate.scales)
    )
    rounds, precision = False, kernels.contract.precision
    if path.suffix == ".onnx":
        graph = load_onnx(path)
        rounds, precision = _rounds(graph), precision_of(graph, kernels.contract)
    predictor = kernels
    if rounds:
        key = f"{path} at {candidate.scales}"
        if key not in literal:
            opened = load(path, literal=True, scales=candidate.scales)
            literal[key] = stack.enter_context(opened)
        predictor = literal[key]
    own = kernels if rounds else None
    return Contestant(candidate.name, predictor, own, precision, identity_of(candidate))


def _rounds(graph: onnx.ModelProto) -> bool:
    """Whether a CPU's kernels may round otherwise than TensorRT: Q/DQ, or half types."""
    from segdeploy.calibration.half_precision import is_half

    return is_quantized(graph) or is_half(graph)


def identity_of(candidate: Candidate) -> str:
    """What a candidate's figures depend on: its content, its runtime, and how it is run."""
    content = key_of_model(Path(candidate.spec.model))
    runtime = candidate.backend or "its own"
    return f"{content} in {runtime} at {candidate.scales}{candidate.build}"


def identity_of_reference(truth: Predictor, spec: ModelSpec) -> str:
    """The same for the reference: a file's content, or a network's weights and code."""
    session = truth.session
    if not isinstance(session, TorchSession):
        return f"{key_of_model(Path(spec.model))} in {session.backend}"
    return key_of_network(LoadedNetwork(session.network, truth.contract, None))
