"""Candidates of a bench: names, contract checks, content keys, and opening for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segdeploy.artifact import Artifact, OnnxFile, open_artifact
from segdeploy.benchmark.accuracy import OpenCandidate
from segdeploy.benchmark.cpp_program import read_cpp_candidate
from segdeploy.benchmark.process import Candidate
from segdeploy.content_keys import key_of_network
from segdeploy.contract import Contract, listed
from segdeploy.contract_statement import STATED
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.names import escaped
from segdeploy.network_loading import LoadedNetwork
from segdeploy.runtime.predictor import Predictor, load
from segdeploy.runtime.session import PROVIDERS
from segdeploy.runtime.torch_session import TorchSession


def name_candidates(
    paths: Sequence[Path], backends: Sequence[str], program: Path | None = None
) -> list[Candidate]:
    """Return the candidates: each `.onnx` once per runtime, each engine and C++ file once.

    `program` times the candidates that run in C++.

    Raises:
        InputError: if a path or backend is given twice, a backend is unknown, or the candidate's
            program cannot be used.
    """
    for what, named in (("candidate", paths), ("backend", backends)):
        if len(set(named)) < len(named):
            raise InputError(f"bench: a {what} is given twice; give it once")
    for backend in backends:
        if backend not in (*PROVIDERS, "openvino"):
            raise InputError(
                f"{backend}: no such backend; there are {', '.join(PROVIDERS)}, openvino"
            )
    found: list[Candidate] = []
    for path in paths:
        if path.suffix == ".json":
            found.append(read_cpp_candidate(path, program))
            continue
        file = open_artifact(path)
        found += [
            Candidate(_name(path, paths, backend, backends), ModelSpec(str(path)), backend, file)
            for backend in (backends if isinstance(file, OnnxFile) else ("",))
        ]
    return found


def _name(path: Path, paths: Sequence[Path], backend: str, backends: Sequence[str]) -> str:
    """Return the file's name, or its path if file names repeat; add the runtime if several run."""
    alike = [other for other in paths if other.name == path.name]
    name = escaped(path.name if len(alike) == 1 else str(path))
    return name if len(backends) == 1 or not backend else f"{name} ({backend})"


def check_contract(candidate: Candidate, truth: Predictor) -> None:
    """Refuse a candidate whose contract differs from the reference's, before anything runs.

    Raises:
        InputError: with both values of the field that differs.
    """
    file = candidate.exported
    path, theirs, ours = file.path, file.contract, truth.contract
    if isinstance(file, OnnxFile):
        file.check()
        file.release()  # the measurements begin only later
    if candidate.scales:
        theirs = replace(theirs, scales=candidate.scales)
    is_network = isinstance(truth.session, TorchSession)
    advice = (
        "; the options of preprocessing (--fit, --pad, --resize, --mean, ...) state the reference's"
        if is_network
        else ""
    )
    stated = [field for field in STATED if field != "source_channels"]
    differences = []
    for what in ("classes", "size", *stated, "image_channels", "scales", "flip"):
        one, other = (_comparable(contract, what) for contract in (theirs, ours))
        if one != other:
            shown = (_shown(getattr(contract, what)) for contract in (theirs, ours))
            differences.append("its {} is {}, but the reference has {}".format(what, *shown))
    if differences:
        more = advice if "its classes" not in differences[0] else ""
        raise InputError(f"{path}: {'; '.join(differences)}; they cannot be compared{more}")


def _shown(value: Any) -> str:
    return listed(value) if isinstance(value, tuple) else str(value)


def _comparable(contract: Contract, field: str) -> Any:
    """Return a field that two contracts must share, whatever the order of their channels."""
    value = getattr(contract, field)
    if field == "channels":
        return tuple(sorted(value))
    if field in ("mean", "std", "pad") and value is not None:
        # Constants of 0 to 255 that were divided differ in the last bit of a double.
        single = (float(np.float32(one)) for one in value)
        return tuple(one for _, one in sorted(zip(contract.channels, single, strict=True)))
    return value


def open_candidate(
    stack: ExitStack, candidate: Candidate, shared: dict[str, Predictor]
) -> OpenCandidate:
    """Open a candidate for evaluation.

    A quantized or 16-bit graph is opened twice: for reference execution, and with the runtime's own
    kernels. Candidates of the same file share the predictor for reference execution in `shared`.

    Raises:
        InputError: for a file that cannot be used.
    """
    file = candidate.exported
    kernels = stack.enter_context(
        load(file, backend=candidate.backend or None, scales=candidate.scales)
    )
    rounds = isinstance(file, OnnxFile) and file.rounds
    predictor = kernels
    if rounds:
        key = f"{file.path} at {candidate.scales}"
        if key not in shared:
            opened = load(file, reference_execution=True, scales=candidate.scales)
            shared[key] = stack.enter_context(opened)
        predictor = shared[key]
    own = kernels if rounds else None
    return OpenCandidate(candidate.name, predictor, own, file.precision, identity_of(candidate))


def identity_of(candidate: Candidate) -> str:
    """Return the key of all that a candidate's figures depend on: content, runtime, scales."""
    runtime = candidate.backend or "its own"
    return f"{candidate.exported.key} in {runtime} at {candidate.scales}{candidate.build}"


def identity_of_reference(truth: Predictor, file: Artifact | None) -> str:
    """Return the key of the reference: a file's content, or a network's weights and code."""
    session = truth.session
    if file is not None:
        return f"{file.key} in {session.backend}"
    assert isinstance(session, TorchSession)
    return key_of_network(LoadedNetwork(session.network, truth.contract, None))
