"""Run a graph of another tool once, and bring its ends to the form of the stated contract."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.adoption.statement import Statement, stated_contract
from segdeploy.contract import Contract
from segdeploy.contract_statement import with_stated
from segdeploy.errors import CheckFailed, InputError
from segdeploy.models.channels import RGB
from segdeploy.onnx_graph.foreign_ends import (
    compared_classes,
    conform_input,
    conform_labels,
    conform_scores,
    ends_in_sigmoid,
    input_type,
    is_label_map,
    shape_text,
)
from segdeploy.onnx_graph.model_file import tensor_shape
from segdeploy.preprocessing.preprocess import ordered
from segdeploy.proof.graph_session import runner
from segdeploy.proof.test_inputs import exact_input, noise_image

if TYPE_CHECKING:
    import onnx

# ONNX's names of float types, and the types of the arrays that ONNX Runtime takes.
FLOATS = {"float": "float32", "float16": "float16", "double": "float64"}
_INTEGERS = ("uint8", "uint16", "int32", "int64")


def conformed(
    graph: onnx.ModelProto, statement: Statement, file: Path
) -> tuple[Contract, list[str]]:
    """Run the graph, and bring its ends to the form of a contract, in place.

    Return the contract and what was done.
    """
    shape, kind = tensor_shape(graph.graph.input[0]), input_type(graph)
    if kind not in (*FLOATS, *_INTEGERS):
        raise InputError(
            f"{file}: its input is {kind}; an image is one of {', '.join((*FLOATS, *_INTEGERS))}"
        )
    if isinstance(shape[0] if shape else 1, int) and shape[:1] not in ((), (1,)):
        raise InputError(
            f"{file}: takes batches of {shape[0]} alone; give a file for one image, or one with a "
            "dynamic batch"
        )
    is_nhwc = _is_nhwc(statement, shape)
    stated = dict(statement.preprocessing)
    if kind not in FLOATS:  # a graph that takes whole numbers normalizes them by itself
        stated.setdefault("normalization", "none")
    layout = "NHWC" if is_nhwc and kind == "uint8" else "NCHW"
    known = replace(statement, layout=layout, preprocessing=stated)
    contract = stated_contract(file, known, shape, is_nhwc=is_nhwc)
    image = probe(contract, kind, is_nhwc=is_nhwc)
    given = run_once(graph, image, file, is_repeated=True)
    done = conform_input(graph, is_nhwc=is_nhwc)
    contract, more = _with_output(graph, contract, given, statement, file)
    edited = probe(contract, input_type(graph), is_nhwc=contract.layout == "NHWC")
    found = run_once(graph, edited, file)
    _check_same(found, given, file)
    if contract.output != "labels":
        contract, notes = with_kind(graph, contract, found, statement, file)
        more += notes
    return contract, done + more


def _is_nhwc(statement: Statement, shape: tuple[int | str, ...]) -> bool:
    """Return whether the channels are the last axis of an input of this shape."""
    if statement.layout is not None:
        return statement.layout == "NHWC"
    count = len(statement.preprocessing.get("channels", RGB))
    return shape[3:] in ((count,), (1,)) and shape[1:2] != (count,)


def probe(contract: Contract, kind: str, *, is_nhwc: bool) -> NDArray[Any]:
    """Return a noise image as a graph takes it, with an input of this type and layout."""
    image = ordered(noise_image(contract), contract)
    values = image[None].transpose(0, 3, 1, 2)
    if kind in FLOATS:
        values = exact_input(image, contract)
    if is_nhwc:
        values = values.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(values, FLOATS.get(kind, kind))


def _check_same(found: NDArray[Any], given: NDArray[Any], file: Path) -> None:
    """Refuse edited ends that changed a value: they move and convert values alone.

    `found` is the output of the edited graph, `given` that of the file. Scores that were enlarged
    are new values, and are not compared.

    Raises:
        CheckFailed: if the edited graph gives another value for the same image.
    """
    if found.size != given.size:
        return
    expected = given
    if given.ndim == 4 and found.ndim == 4 and given.shape != found.shape:
        expected = given.transpose(0, 3, 1, 2)
    if not np.allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5):
        raise CheckFailed(f"{file}: the copy gives other values than the file for the same image")


def run_once(
    graph: onnx.ModelProto, image: NDArray[Any], file: Path, *, is_repeated: bool = False
) -> NDArray[Any]:
    """Run the graph once, since its stated shapes and types may be wrong or missing.

    With `is_repeated` the graph is run a second time, and must give the same output.

    Raises:
        InputError: if the graph cannot be run on the image, gives NaN or infinity, or draws random
            numbers.
    """
    try:
        run = runner(graph)  # another session would draw the same random numbers
        output = run(image)
    except CheckFailed as error:
        raise InputError(
            f"{file}: cannot be run on an image of shape {shape_text(image.shape)} ({error}); "
            "state its --size, --channels and --layout"
        ) from error
    if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiub":
        raise InputError(f"{file}: its output is no tensor of numbers; a network gives one")
    if not np.isfinite(output).all():
        raise InputError(f"{file}: gives NaN or infinity for an image of noise")
    if is_repeated and not np.array_equal(output, run(image)):
        raise InputError(
            f"{file}: gives another output for the same image in a second run, so it draws random "
            "numbers, and no copy can be proven"
        )
    return output


def _with_output(
    graph: onnx.ModelProto,
    contract: Contract,
    given: NDArray[Any],
    statement: Statement,
    file: Path,
) -> tuple[Contract, list[str]]:
    """Edit the graph's output to the form of a contract; return the contract and what was done.

    Raises:
        InputError: if the output that the run gave contradicts the statement.
    """
    count, shown = contract.score_channels, shape_text(given.shape)
    if given.ndim not in (2, 3, 4):
        raise InputError(f"{file}: gives an output of shape {shown}; {_EXPECTED}")
    if is_label_map(given, count):
        if statement.output not in (None, "labels"):
            raise InputError(
                f"{file}: gives labels of shape {shown}, not {statement.output}; leave --output out"
            )
        _check_labels(graph, contract, given, file)
        if "threshold" in statement.preprocessing:
            raise InputError(DECIDED.format(file=file))
        done = conform_labels(graph, given)
        return with_stated(contract, {"output": "labels"}), done
    found = {given.shape[1], given.shape[3]} if given.ndim == 4 else {given.shape[0]}
    if count not in found:
        raise InputError(
            f"{file}: gives an output of shape {shown}, and {count} channel"
            f"{'s are' if count != 1 else ' is'} stated; {_mend_of_channels(given)}"
        )
    if statement.output == "labels":
        raise InputError(f"{file}: gives scores of shape {shown}, not labels; leave --output out")
    _check_maps(given, count, contract, file)
    return contract, conform_scores(graph, given, count, contract.size, statement.upsampling)


def _check_maps(given: NDArray[Any], count: int, contract: Contract, file: Path) -> None:
    """Refuse scores that no upsampling brings to the size of the input.

    Raises:
        InputError: for one score for a whole image, or maps that are larger than the input.
    """
    is_nhwc = given.ndim == 4 and given.shape[1] != count
    height, width = given.shape[1:3] if is_nhwc else given.shape[-2:]
    if (height, width) == (1, 1) and contract.size != (1, 1):
        raise InputError(
            f"{file}: gives one score for each class and image, as a classifier; a segmentation "
            "network gives a map"
        )
    if height > contract.size[0] or width > contract.size[1]:
        raise InputError(
            f"{file}: gives maps of {height}x{width}, larger than its input of "
            f"{contract.size[0]}x{contract.size[1]}; name another output with --take, or crop them "
            "in the graph"
        )


def _check_labels(
    graph: onnx.ModelProto, contract: Contract, given: NDArray[Any], file: Path
) -> None:
    """Refuse labels that are no classes of the contract.

    Raises:
        InputError: naming the label, or the number of classes that the graph compares.
    """
    count = len(contract.classes)
    most = 1 << count if contract.has_bit_planes else count
    compared = compared_classes(graph)
    if compared is not None and not contract.has_bit_planes and compared != count:
        raise InputError(
            f"{file}: its labels are the largest of {compared} scores, and {count} classes are "
            "stated; state all classes with --num-classes or --data"
        )
    least, largest = int(given.min(initial=0)), int(given.max(initial=0))
    if least < 0 or largest == contract.ignore_index:
        label = least if least < 0 else largest
        raise InputError(
            f"{file}: gives the label {label} for pixels that it ignores; segdeploy takes graphs "
            f"that give every pixel a class (0 to {most - 1})"
        )
    if largest >= most:
        raise InputError(
            f"{file}: gives the label {largest}, and {count} classes are stated; state all classes "
            "with --num-classes or --data"
        )


def with_kind(
    graph: onnx.ModelProto,
    contract: Contract,
    scores: NDArray[Any],
    statement: Statement,
    file: Path,
) -> tuple[Contract, list[str]]:
    """Return the contract with the kind of the edited graph's scores, and what was found.

    Raises:
        InputError: for maps of another size than the input's, or another kind than stated.
    """
    if scores.shape[2:] != contract.size:
        sides = "x".join(map(str, scores.shape[2:]))
        raise InputError(
            f"{file}: gives maps of {sides} for an input of {contract.size[0]}x{contract.size[1]}; "
            "state how they are enlarged: --upsampling half-pixel (PyTorch's default) or "
            "align-corners"
        )
    kind = _kind_of(contract, scores)
    is_open = kind == "probabilities" and contract.head != "multiclass"
    if is_open and not ends_in_sigmoid(graph):
        # Scores within 0 and 1 on one image prove nothing where they need not sum to 1.
        chosen = statement.output or "logits"
        notes = [] if statement.output else [_NO_SIGMOID]
        return replace(contract, output=chosen), notes
    if statement.output not in (None, kind):
        raise InputError(
            f"{file}: {_KINDS[kind]}, so its output is {kind}; leave --output {statement.output} "
            "out"
        )
    notes = []
    if kind == "probabilities" and statement.output is None:
        notes.append(f"its output is taken as probabilities, since {_KINDS[kind]}")
    return replace(contract, output=kind), notes


_NO_SIGMOID = (
    "its scores are within 0 and 1 on an image of noise, and no sigmoid is at its end, so they are "
    "taken as logits; --output probabilities states otherwise"
)
DECIDED = "{file}: gives labels, which its own threshold has decided; leave --threshold out"
_EXPECTED = "scores are (N, C, H, W) and labels (N, H, W)"
_KINDS = {
    "probabilities": "the scores of a pixel are within 0 and 1 as those of a softmax or sigmoid",
    "logits": "the scores of a pixel are not those of a softmax or sigmoid",
}


def _mend_of_channels(given: NDArray[Any]) -> str:
    if given.ndim == 4 and given.shape[1] == 1:
        return "it is a binary network: give --num-classes 1, or --data with --foreground"
    return "state the number of its classes with --num-classes or --data"


def _kind_of(contract: Contract, scores: NDArray[Any]) -> str:
    """Return `probabilities` for scores that a softmax or a sigmoid ended in, else `logits`."""
    if scores.min() < 0 or scores.max() > 1:
        return "logits"
    if contract.head == "multiclass":
        sums = scores.astype(np.float64).sum(1)
        return "probabilities" if np.abs(sums - 1).max() < 1e-2 else "logits"
    return "probabilities"
