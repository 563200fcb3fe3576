"""Time of preprocessing in numpy, relative to the libraries that the kernels are named after.

`python benchmarks/preprocessing.py` prints JSON: for each kernel and pair of sizes the library's
median in ms, and the ratio of ours to it. The two sides are pure functions, so they run in turns in
one process, with one thread each. The last row is a whole letterbox, with normalization.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional

from segdeploy.contract import Contract
from segdeploy.preprocessing.preprocess import preprocess
from segdeploy.resize_kernels.kernels import resize

SIZES = (
    ((720, 960), (360, 480)),
    ((1080, 1920), (512, 1024)),
    ((1080, 1920), (512, 512)),
    ((360, 480), (512, 512)),
)
ROUNDS = 15
Bytes = NDArray[np.uint8]


def opencv(image: Bytes, size: tuple[int, int], by: int) -> Bytes:
    return cv2.resize(image, size[::-1], interpolation=by)


def pillow(image: Bytes, size: tuple[int, int]) -> Bytes:
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def torchvision(image: Bytes, size: tuple[int, int]) -> Any:
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    return functional.resize(tensor, list(size), antialias=True)


LIBRARIES: dict[str, Callable[[Bytes, tuple[int, int]], Any]] = {
    "pillow-bilinear": pillow,
    "opencv-linear": lambda image, size: opencv(image, size, cv2.INTER_LINEAR),
    "opencv-area": lambda image, size: opencv(image, size, cv2.INTER_AREA),
    "torchvision-uint8-bilinear": torchvision,
}


def in_turns(theirs: Callable[[], object], ours: Callable[[], object]) -> dict[str, float]:
    """Return the library's median in ms, and the ratio of our median to it."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, taken in zip((theirs, ours), times, strict=True):
            started = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - started))
    their, our = (statistics.median(one) for one in times)
    return {"library_ms": round(their, 3), "ratio": round(our / their, 2)}


def letterbox(image: Bytes, size: tuple[int, int]) -> NDArray[np.float32]:
    """Write a letterbox with 114 as it is written with OpenCV: resize, border, division by 255."""
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (round(side * scale) for side in image.shape[:2])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    down, right = size[0] - height, size[1] - width
    borders = (down // 2, down - down // 2, right // 2, right - right // 2)
    image = cv2.copyMakeBorder(image, *borders, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
    return planes.astype(np.float32) / 255


def rows(source: tuple[int, int], target: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Yield the measurement of every kernel, then of the letterbox, for one pair of sizes."""
    image = np.random.default_rng(0).integers(0, 256, (*source, 3)).astype(np.uint8)
    for name, library in LIBRARIES.items():
        calls = partial(library, image, target), partial(resize, image, target, name)
        yield {"kernel": name, **in_turns(*calls)}
    contract = Contract(
        "none", ("a", "b"), ((0, 0, 0),) * 2, 255, target, mean=(0.0,) * 3, std=(1.0,) * 3,
        resize="opencv-linear", fit="letterbox", pad=(114.0,) * 3,
    )  # fmt: skip
    whole = partial(letterbox, image, target), partial(preprocess, image, contract)
    yield {"kernel": "letterbox, opencv-linear", **in_turns(*whole)}


def main() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for source, target in SIZES:
        case = {"source": "x".join(map(str, source)), "target": "x".join(map(str, target))}
        for row in rows(source, target):
            print(json.dumps({**case, **row}), flush=True)


if __name__ == "__main__":
    main()
