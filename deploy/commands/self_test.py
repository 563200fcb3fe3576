"""`segdeploy self-test`: check that this host reproduces the reference's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segdeploy.artifact import EngineFile, OnnxFile, artifact_of
from segdeploy.calibration.difference import label_agreement, max_abs, over_range, value_range
from segdeploy.errors import InputError
from segdeploy.files import sha256_of_file
from segdeploy.model_spec import ModelSpec
from segdeploy.proof.golden_vectors import (
    GoldenVector,
    golden_path,
    golden_reference,
    golden_tolerance,
    make_vectors,
    read_golden,
)
from segdeploy.proof.score_check import check_scores
from segdeploy.runtime.predictor import Predictor, load


@dataclass(frozen=True)
class ImageResult:
    """The result for one image: the largest differences of the network's input and raw output.

    The output difference is divided by the range of the reference output. `agreement` is the share
    of equal labels. `same_bytes` is true if the raw output is bit-identical to the reference.
    """

    input_difference: float
    output_difference: float
    agreement: float
    same_bytes: bool


@dataclass(frozen=True)
class SelfTest:
    """The result of `self-test`, image by image.

    `max_output_difference` is the largest output difference that the precision allows, divided by
    the range; None for a graph that returns labels. `note` states if another graph made the golden
    vectors.
    """

    model: Path
    backend: str
    golden: Path
    max_input_difference: float
    min_agreement: float
    max_output_difference: float | None
    images: tuple[ImageResult, ...]
    note: str | None = None

    @property
    def failure(self) -> str | None:
        """The description of the first stage beyond its limit, or None."""
        for index, one in enumerate(self.images):
            off, largest = one.output_difference, self.max_output_difference
            equal = f"{one.agreement:.3%} of the labels are the reference's"
            if not one.input_difference <= self.max_input_difference:
                return (
                    f"image {index}: the network's input differs by {one.input_difference:.2g}: "
                    "this host resizes or normalizes differently (check the version of Pillow)"
                )
            if largest is not None and not off <= largest:
                return (
                    f"image {index}: the network's output differs by {off:.2g} of its range (limit "
                    f"{largest:g}), {equal}: the network differs, or this host computes wrongly"
                )
            if not one.agreement >= self.min_agreement:
                return (
                    f"image {index}: {equal}, less than {self.min_agreement:.1%}; its output "
                    f"differs by {off:.2g} of the range"
                )
        return None

    @property
    def holds(self) -> bool:
        """Whether every image is within its limits."""
        return self.failure is None


def self_test(
    model: Path | str, *, golden: Path | str | None = None, backend: str | None = None
) -> SelfTest:
    """Compare a model with golden vectors: those beside the engine, or those of the file `golden`.

    An ONNX file can also be tested, with the golden vectors of the engine that was built from it.

    Raises:
        InputError: if there are no golden vectors, or the model cannot be run here.
        CheckFailed: if the logits that a graph computes labels from are not finite.
    """
    model = Path(model)
    path = Path(golden) if golden else golden_path(model)
    file = artifact_of(ModelSpec.of(model))
    if isinstance(file, EngineFile) and golden is None:
        manifest = file.manifest
        if manifest.golden is None:
            raise InputError(f"{model}: was built without golden vectors; give --golden FILE")
        path = model.with_name(manifest.golden)
        if path.is_file() and sha256_of_file(path) != manifest.golden_sha256:
            raise InputError(
                f"{path}: is not the file that {model.name} was built with; copy both again"
            )
    if golden is None and not path.exists():
        raise InputError(
            f"{path}: no such file; give the golden vectors of the engine that was built from "
            f"{model.name}: --golden FILE"
        )
    vectors = read_golden(path)
    with load(file or model, backend=backend) as predictor:
        contract = predictor.contract
        if isinstance(file, OnnxFile):
            shown = {f"image {i}": vector.image for i, vector in enumerate(vectors)}
            check_scores(file.graph, contract, str(model), shown)
        backend = predictor.session.backend
        most_input, tolerance = golden_tolerance(path, contract.precision, backend)
        return SelfTest(
            model,
            backend,
            path,
            most_input,
            tolerance.least_agreement,
            None if contract.output == "labels" else tolerance.most_difference,
            tuple(_compared(predictor, vector) for vector in vectors),
            _note(file, path) if isinstance(file, OnnxFile) else None,
        )


def _note(file: OnnxFile, golden: Path) -> str | None:
    """Return a note if another graph, such as the symmetric version, made the golden vectors."""
    name, digest = golden_reference(golden)
    if digest == sha256_of_file(file.path):
        return None
    twin = ", the symmetric graph that was made from it" if name.endswith(".symmetric.onnx") else ""
    return (
        f"{golden.name} was made by {name}{twin}, and not by {file.path.name}: differences between "
        "the two graphs appear as differences of this host"
    )


def _compared(predictor: Predictor, expected: GoldenVector) -> ImageResult:
    (found,) = make_vectors(predictor, [expected.image])
    off = max_abs(found.output, expected.output)
    return ImageResult(
        input_difference=max_abs(found.input, expected.input),
        output_difference=over_range(off, value_range(expected.output) or 1.0),
        agreement=label_agreement(found.labels, expected.labels),
        same_bytes=found.output_sha256 == expected.output_sha256,
    )
