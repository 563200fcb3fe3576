"""`segdeploy selftest`: does this host give what the reference gave?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy.engine.manifest import read_manifest
from segdeploy.errors import InputError
from segdeploy.files import sha256_of_file
from segdeploy.onnx_graph.model_file import load_onnx
from segdeploy.proof.golden_vectors import (
    GoldenVector,
    golden_path,
    golden_reference,
    make_vectors,
    read_golden,
)
from segdeploy.proof.score_check import check_scores
from segdeploy.proof.tolerance import tolerance_of
from segdeploy.runtime.predictor import Predictor, load
from segdeploy.runtime.session import ENGINE_SUFFIXES

# Preprocessing is float32 arithmetic on bytes: more than rounding is another resize, mean or std.
_MOST_INPUT_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Stage:
    """One picture: the largest difference of the network's input and of its raw output.

    The output's is a share of the reference's range. `agreement` is the share of equal labels;
    `same_bytes` says that the whole raw output is the reference's, bit for bit.
    """

    input: float
    output: float
    agreement: float
    same_bytes: bool


@dataclass(frozen=True)
class SelfTest:
    """What `selftest` found, picture by picture.

    `most_output` is the largest difference of a score that the precision allows, of its range; None
    for a graph that gives labels. `note` says where the vectors are those of another graph.
    """

    model: Path
    backend: str
    golden: Path
    least_agreement: float
    most_output: float | None
    pictures: tuple[Stage, ...]
    note: str | None = None

    @property
    def complaint(self) -> str | None:
        """The first stage that differs, or None."""
        for index, stage in enumerate(self.pictures):
            if not stage.input <= _MOST_INPUT_DIFFERENCE:
                return (
                    f"picture {index}: the network's input differs by {stage.input:.2g}: this host "
                    "resizes or normalises otherwise (Pillow's version?)"
                )
            if self.most_output is not None and not stage.output <= self.most_output:
                return (
                    f"picture {index}: the network's output differs by {stage.output:.2g} of its "
                    f"range (limit {self.most_output:g}), {stage.agreement:.3%} of the labels are "
                    "the reference's: another network, or arithmetic that is broken here"
                )
            if not stage.agreement >= self.least_agreement:
                return (
                    f"picture {index}: {stage.agreement:.3%} of the labels are the reference's, "
                    f"less than {self.least_agreement:.1%}; its output differs by "
                    f"{stage.output:.2g} of the range"
                )
        return None

    @property
    def holds(self) -> bool:
        """Whether every picture came out as it should."""
        return self.complaint is None


def selftest(
    model: Path | str, *, golden: Path | str | None = None, backend: str | None = None
) -> SelfTest:
    """Run the golden vectors that travel beside an engine, or those of `golden`.

    An ONNX file can be tested, too, with the vectors of the engine that was built from it.

    Raises:
        InputError: if there are none, or the model cannot be run here.
        CheckFailed: if the scores that a graph makes labels of are not finite.
    """
    model = Path(model)
    path = Path(golden) if golden else golden_path(model)
    if model.suffix in ENGINE_SUFFIXES and golden is None:
        manifest = read_manifest(model)
        if manifest.golden is None:
            raise InputError(f"{model}: was built without golden vectors; give --golden FILE")
        path = model.with_name(manifest.golden)
        if path.is_file() and sha256_of_file(path) != manifest.golden_sha256:
            raise InputError(
                f"{path}: is not the file that {model.name} was built with; copy both again"
            )
    vectors = read_golden(path)
    with load(model, backend=backend) as predictor:
        contract = predictor.contract
        if model.suffix == ".onnx":
            shown = {f"picture {i}": vector.image for i, vector in enumerate(vectors)}
            check_scores(load_onnx(model), contract, str(model), shown)
        tolerance = tolerance_of(contract.precision, predictor.session.backend)
        return SelfTest(
            model,
            predictor.session.backend,
            path,
            tolerance.least_agreement,
            None if contract.output == "labels" else tolerance.most_difference,
            tuple(_compared(predictor, vector) for vector in vectors),
            _note(model, path),
        )


def _note(model: Path, golden: Path) -> str | None:
    """That a graph is compared with another one's vectors, as those of its symmetric twin."""
    if model.suffix != ".onnx":
        return None
    name, digest = golden_reference(golden)
    if digest == sha256_of_file(model):
        return None
    twin = (
        ", the symmetric graph that was built from it" if name.endswith(".symmetric.onnx") else ""
    )
    return (
        f"{golden.name} was made by {name}{twin}, and not by {model.name}: differences between the "
        "two graphs count as this host's"
    )


def _compared(predictor: Predictor, expected: GoldenVector) -> Stage:
    (found,) = make_vectors(predictor, [expected.image])
    span = float(np.ptp(expected.output)) or 1.0
    return Stage(
        input=_largest(found.input, expected.input),
        output=_largest(found.output, expected.output) / span,
        agreement=float(np.mean(found.labels == expected.labels)),
        same_bytes=found.output_sha256 == expected.output_sha256,
    )


def _largest(some: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    if some.shape != others.shape:
        return float("inf")
    return float(np.abs(some - others).max())
