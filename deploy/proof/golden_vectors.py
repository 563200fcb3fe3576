"""Golden vectors: a few images with the reference results of each inference stage.

The vectors are stored beside an engine. Any host can check its own resize, arithmetic and device
against them. The file is safetensors, which holds arrays and no executable code. For each image `i`
it contains:

- `image_i` `(H, W, C)` of the contract's channels and dtype, `(H, W, 3) uint8` RGB for most, and
  `labels_i` `(H, W) uint8`, the labels at the image's size;
- `input_i` and `output_i` `(K,) float32`, samples of the network's input and raw output.

Sample `k` of `K` is at the flat index `k * (size - 1) // (K - 1)`. The header's entry `KEY` is
JSON: the schema, the reference file's name and SHA-256, the SHA-256 of each raw output as float32
bytes, and the tolerances of a self-test by precision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import Contract, Precision
from segdeploy.errors import InputError
from segdeploy.files import check_input, sha256_of_file
from segdeploy.models.errors import first_line
from segdeploy.models.names import escaped
from segdeploy.models.scenes import draw_scene, recorded
from segdeploy.models.strict_json import parse_json
from segdeploy.network_loading import open_frames
from segdeploy.preprocessing.fit import placement
from segdeploy.preprocessing.preprocess import preprocess
from segdeploy.proof.tolerance import Tolerance, described_tolerances, parsed_tolerance
from segdeploy.runtime.predictor import Predictor

KEY = "segdeploy.golden"
SCHEMA = 2
IMAGES = 3
_SAMPLES = 4096
_MOST_IMAGES = 64

Pixels = NDArray[Any]


@dataclass(frozen=True)
class GoldenVector:
    """One image with the reference's input samples, output samples and labels, as in the file."""

    image: Pixels
    input: NDArray[np.float32]
    output: NDArray[np.float32]
    labels: NDArray[np.uint8]
    output_sha256: str


def golden_path(model: Path) -> Path:
    """Return the path of a model's golden vectors: `NAME.engine.golden.safetensors`."""
    return model.with_name(f"{model.name}.golden.safetensors")


def golden_images(contract: Contract, data: Path | None = None) -> list[Pixels]:
    """Return frames spread over split `val` (else the first) of `data`, or generated road scenes.

    One scene has the contract's size. The others have different sizes, so that resizing is covered.
    """
    if data is not None:
        dataset = open_frames(data, contract, "the network")
        frames = dataset.frames("val" if "val" in dataset.splits else next(iter(dataset.splits)))
        step = max(1, len(frames) // IMAGES)
        return [frame.read_image() for frame in frames[::step][:IMAGES]]
    height, width = contract.input_size
    sizes = ((height, width), (height + height // 3, width + 1), (max(8, height // 2) + 1, width))
    return [
        _scene(seed, size, contract)
        for seed, size in enumerate(sizes)
        if _fits_input(size, contract)
    ]


def _fits_input(size: tuple[int, int], contract: Contract) -> bool:
    """Return whether the contract's fit brings an image of `size` to the contract's size."""
    if contract.source_size is not None:
        return size == contract.source_size
    try:
        return placement(size, contract).size == contract.size
    except InputError:  # smaller than the crop
        return False


def _scene(seed: int, size: tuple[int, int], contract: Contract) -> Pixels:
    """Return a generated scene with the contract's channels and dtype."""
    image, _ = draw_scene(np.random.default_rng(seed), size)
    return recorded(image, contract.image_channels, contract.dtype, 1 / contract.scale)


def sample(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return `K` evenly spaced values of an array, `(K,) float32`; all if it has at most `K`."""
    flat = values.reshape(-1)
    count = min(_SAMPLES, flat.size)
    places = np.arange(count, dtype=np.int64) * (flat.size - 1) // max(1, count - 1)
    return flat[places].astype(np.float32)


def make_vectors(predictor: Predictor, images: Sequence[Pixels]) -> list[GoldenVector]:
    """Run images through a predictor and record the input, output and labels of each.

    Raises:
        InputError: if the output holds NaN or infinity.
    """
    made = []
    for image in images:
        array = preprocess(image, predictor.contract)
        output = predictor.finite(predictor.session.run(array))
        labels = predictor.labels_of(output[0], (image.shape[0], image.shape[1]))
        digest = hashlib.sha256(np.ascontiguousarray(output, np.float32).tobytes()).hexdigest()
        made.append(GoldenVector(image, sample(array), sample(output), labels, digest))
    return made


def golden_content(vectors: Sequence[GoldenVector], reference: Path) -> bytes:
    """Serialize golden vectors that were computed by the file `reference`."""
    from safetensors.numpy import save

    arrays = {}
    for index, vector in enumerate(vectors):
        for name in _KINDS:
            arrays[f"{name}_{index}"] = np.ascontiguousarray(getattr(vector, name))
    described = {
        "schema": SCHEMA,
        "reference": reference.name,
        "reference_sha256": sha256_of_file(reference),
        "output_sha256": [vector.output_sha256 for vector in vectors],
        "tolerances": described_tolerances(),
    }
    content: bytes = save(arrays, {KEY: json.dumps(described)})
    return content


def golden_reference(path: Path) -> tuple[str, str]:
    """Return the name and SHA-256 of the file that golden vectors were computed by.

    Raises:
        InputError: if the file of golden vectors is missing or damaged.
    """
    with _opened(path) as (_, described):
        named = described if isinstance(described, dict) else {}
    return escaped(str(named.get("reference"))), str(named.get("reference_sha256"))


def golden_tolerance(path: Path, precision: Precision, backend: str) -> tuple[float, Tolerance]:
    """Return the largest input difference and the tolerance that a file of golden vectors states.

    Raises:
        InputError: if the file is missing or damaged, or states none for this precision.
    """
    with _opened(path) as (_, described):
        return parsed_tolerance(described["tolerances"], precision, backend)


def read_golden(path: Path) -> list[GoldenVector]:
    """Read golden vectors.

    Raises:
        InputError: if the file is missing or damaged, or an array has the wrong shape or dtype.
    """
    with _opened(path) as (file, described):
        names = set(file.keys())
        digests = _digests(described)
        arrays = [
            {name: file.get_tensor(f"{name}_{index}") for name in _KINDS}
            for index in range(len(digests))
            if {f"{name}_{index}" for name in _KINDS} <= names
        ]
    if len(arrays) != len(digests) or not all(map(_fits, arrays)):
        raise InputError(
            f"{path}: an array is missing or has the wrong dtype or shape; build the engine again"
        )
    return [
        GoldenVector(**held, output_sha256=digest)
        for held, digest in zip(arrays, digests, strict=True)
    ]


_KINDS = {
    "image": ((np.uint8, np.uint16, np.float32), 3),
    "input": ((np.float32,), 1),
    "output": ((np.float32,), 1),
    "labels": ((np.uint8,), 2),
}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file of golden vectors; yield the file and its parsed header entry.

    Raises:
        InputError: if the file is missing, or reading from it fails.
    """
    from safetensors import SafetensorError, safe_open

    check_input(path)
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get(KEY, "null")
            yield file, parse_json(header, f"{path}: its header")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: holds no golden vectors ({first_line(error)}); build the engine again"
        ) from error


def _digests(described: Any) -> list[str]:
    if not isinstance(described, dict) or described.get("schema") != SCHEMA:
        raise ValueError("no header of this schema")
    digests = described.get("output_sha256")
    if not isinstance(digests, list) or not 0 < len(digests) <= _MOST_IMAGES:
        raise ValueError("no hashes of outputs")
    return [str(digest) for digest in digests]


def _fits(arrays: dict[str, NDArray[Any]]) -> bool:
    typed = all(
        arrays[name].dtype in dtype and arrays[name].ndim == dimensions and arrays[name].size
        for name, (dtype, dimensions) in _KINDS.items()
    )
    image = arrays["image"]
    return bool(typed and image.shape[:2] == arrays["labels"].shape)
