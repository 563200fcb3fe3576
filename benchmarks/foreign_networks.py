"""Networks that others wrote, through every step, each compared with PyTorch by this script.

    python benchmarks/foreign_networks.py [NAME ...]

For each network of tests/foreign_networks.py: a static and a dynamic graph, labels, probabilities,
the camera's bytes, two scales with the mirrored image, late upsampling, INT8, and engines for sm86.
Prints a row of largest differences (of the range of PyTorch's logits) or shares of other labels.
The packages of the extra `dev` are needed; random weights, nothing is fetched.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import segdeploy
from segdeploy.model_spec import ModelSpec
from segdeploy.models import scenes
from segdeploy.profiles import Bounds
from tests import foreign_networks

SIZE = (128, 160)
OTHER = (128, 256)  # a multiple of every network's step
SCALES = (0.75, 1.0)
MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))


def image_of(pixels: np.ndarray) -> np.ndarray:
    """An image `(H, W, 3) uint8` as networks take it: `(1, 3, H, W) float32`."""
    values = (pixels / 255 - MEAN) / STD
    return values.transpose(2, 0, 1)[None].astype(np.float32)


def pytorch(network: nn.Module, image: np.ndarray) -> np.ndarray:
    """PyTorch's logits at the image's size."""
    with torch.no_grad():
        return foreign_networks.logits_of(network, torch.from_numpy(image)).numpy()


def run(path: Path, given: np.ndarray) -> np.ndarray:
    """A plain ONNX Runtime session, without segdeploy."""
    session = onnxruntime.InferenceSession(str(path))
    (found,) = session.run(None, {session.get_inputs()[0].name: given})
    return found


def off(found: np.ndarray, expected: np.ndarray) -> str:
    """The largest difference, of the expected range."""
    return f"{np.abs(found - expected).max() / np.ptp(expected):.0e}"


def other_labels(found: np.ndarray, expected: np.ndarray) -> str:
    """The share of labels that differ."""
    return f"{np.mean(found != expected.argmax(1)):.2%}"


def scaled(network: nn.Module, image: np.ndarray, step: int) -> np.ndarray:
    """Two scales and the mirrored image, with the arithmetic written out."""
    total = np.zeros(1)
    for scale in SCALES:
        size = [int(side * scale) // step * step for side in SIZE]
        resized = nn.functional.interpolate(
            torch.from_numpy(image), size=size, mode="bilinear", align_corners=True
        )
        for mirrored in (False, True):
            given = resized.flip(3) if mirrored else resized
            with torch.no_grad():
                logits = foreign_networks.logits_of(network, given)
            logits = logits.flip(3) if mirrored else logits
            total = (
                total
                + nn.functional.interpolate(
                    logits, size=SIZE, mode="bilinear", align_corners=True
                ).numpy()
            )
    return total / 4


def steps(name: str, folder: Path, data: Path) -> dict[str, Callable[[], str]]:
    """Every step by name; each gives what its result is off."""
    network = foreign_networks.NETWORKS[name]()
    spec = ModelSpec(f"tests.foreign_networks:{name}", size=SIZE)
    pixels = scenes.draw_scene(np.random.default_rng(3), SIZE)[0]
    image = image_of(pixels)
    expected = pytorch(network, image)

    def export(kind: str, **options: Any) -> Any:
        return segdeploy.export(spec, folder / f"{kind}.onnx", data=data, **options)

    def static() -> str:
        export("static")
        return off(run(folder / "static.onnx", image), expected)

    def dynamic() -> str:
        export("dynamic", dynamic=True, bounds=Bounds((96, 96), (256, 256), 2))
        other = image_of(scenes.draw_scene(np.random.default_rng(4), OTHER)[0])
        batch = np.concatenate([other, other[..., ::-1]])
        return off(run(folder / "dynamic.onnx", batch), pytorch(network, batch))

    def labels() -> str:
        export("labels", output="labels")
        return other_labels(run(folder / "labels.onnx", image), expected)

    def probabilities() -> str:
        export("probabilities", output="probabilities")
        softmax = torch.from_numpy(expected).softmax(1).numpy()
        return off(run(folder / "probabilities.onnx", image), softmax)

    def camera() -> str:
        export("bytes", preprocess="BGR", output="labels")
        given = np.ascontiguousarray(pixels[None, ..., ::-1])
        return other_labels(run(folder / "bytes.onnx", given), expected)

    def scales() -> str:
        report = export("scales", scales=SCALES, flip=True)
        found = run(folder / "scales.onnx", image)
        return off(found, scaled(network, image, report.contract.multiple))

    def late() -> str:
        report = export("late", output="labels", late_upsampling=True)
        with segdeploy.load(folder / "late.onnx") as predictor:
            found = predictor.predict(pixels)[None]
        inside = " (in the graph)" if report.contract.upsampling is None else ""
        return other_labels(found, expected) + inside

    def int8() -> str:
        report = segdeploy.calibrate(folder / "static.onnx", data, folder / "int8.onnx", limit=4)
        return f"{1 - report.accuracy.agreement:.2%}"

    def engines() -> str:
        for kind in ("static", "int8"):
            built = segdeploy.build_engine(
                folder / f"{kind}.onnx", folder / f"{kind}.engine", targets=["sm86"]
            )
            assert all(proof.holds for proof in built.convolutions)
        return "built"

    return {
        "static": static,
        "dynamic": dynamic,
        "labels": labels,
        "probabilities": probabilities,
        "bytes": camera,
        "scales": scales,
        "late": late,
        "INT8": int8,
        "engines": engines,
    }


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    names = sys.argv[1:] or list(foreign_networks.NETWORKS)
    columns = ("static", "dynamic", "labels", "probabilities", "bytes", "scales", "late", "INT8",
               "engines")  # fmt: skip
    print(f"| network | {' | '.join(columns)} | s |\n|{'---|' * (len(columns) + 2)}")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "scenes"
        list(scenes.write_scenes(data, {"train": 8, "val": 8}, SIZE))
        for name in names:
            started = time.perf_counter()
            cells = []
            for kind, step in steps(name, Path(folder), data).items():
                try:
                    cells.append(step())
                except Exception as error:
                    cells.append(f"{type(error).__name__}")
                    print(f"{name}, {kind}: {error}", file=sys.stderr)
            seconds = time.perf_counter() - started
            print(f"| `{name}` | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
