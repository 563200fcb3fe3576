"""What each resize kernel, fit and mistake of preprocessing does to labels and mIoU.

`python benchmarks/preprocessing_accuracy.py CAMVID WEIGHTS [FRAMES]` prints JSON: torchvision's
network that was trained on CamVid runs at 240x320 with each resize kernel, at 256x256 with each
fit, and at 360x480 with contracts that are wrong. For each row: mIoU in percent, and the share of
labels that equal those of the group's first row.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import segdeploy
from segdeploy.contract import IMAGENET_MEAN, IMAGENET_STD, RESIZE_KERNELS
from segdeploy.contract_statement import with_stated
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.models.metrics import LabelCounts, defined_mean
from segdeploy.runtime.predictor import Predictor
from segdeploy.runtime.session import open_session

Rows = dict[str, Mapping[str, Any]]
KERNELS: Rows = {name: {"resize": name} for name in ("pillow-bilinear", *RESIZE_KERNELS)}
PAD = {"pad": (124.0, 116.0, 104.0)}
FITS: Rows = {
    "stretch": {"fit": "stretch"},
    "letterbox": {"fit": "letterbox", **PAD},
    "letterbox, bottom-right": {"fit": "letterbox", "pad_side": "bottom-right", **PAD},
    "longest-edge 192, pad": {"fit": "longest-edge,pad", "edge": 192, **PAD},
    "shortest-edge 256, center-crop": {"fit": "shortest-edge,center-crop", "edge": 256},
    "center-crop": {"fit": "center-crop"},
}
MISTAKES: Rows = {
    "right": {},
    "channels B,G,R": {"channels": ("B", "G", "R"), "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "channels and constants B,G,R": {"channels": ("B", "G", "R")},
    "mean 0.5, std 0.5": {"mean": (0.5,), "std": (0.5,)},
    "mean 0, std 1": {"mean": (0.0,), "std": (1.0,)},
    "bytes without scale": {"normalization": "none"},
    "gray": {"gray_image": True},
}


def main() -> None:
    camvid, weights = Path(sys.argv[1]), Path(sys.argv[2])
    frames = open_dataset(camvid).frames("val", int(sys.argv[3]) if sys.argv[3:] else None)
    found = {}
    for title, size, rows in (
        ("kernels", (240, 320), KERNELS),
        ("fits", (256, 256), FITS),
        ("mistakes", (360, 480), MISTAKES),
    ):
        with tempfile.TemporaryDirectory() as folder:
            spec = ModelSpec("deeplabv3_mobilenet_v3_large", weights=weights, size=size)
            path = segdeploy.export(spec, Path(folder) / "m.onnx", data=camvid).path
            found[title] = measured(path, frames, rows)
    print(json.dumps(found, indent=1))


def measured(path: Path, frames: list[Any], rows: Rows) -> dict[str, dict[str, float]]:
    first: list[np.ndarray[Any, Any]] = []
    found = {}
    for name, stated in rows.items():
        fields = {key: value for key, value in stated.items() if key != "gray_image"}
        session = open_session(path)
        session.contract = with_stated(replace(session.contract, assumed=()), fields)
        counts = LabelCounts(len(session.contract.classes), session.contract.ignore_index)
        equal = []
        with Predictor(session) as predictor:
            for index, frame in enumerate(frames):
                image, mask = frame.read()
                if "gray_image" in stated:
                    image = np.repeat(image.mean(2, keepdims=True), 3, 2).astype(np.uint8)
                labels = predictor.predict(image)
                seen = predictor.crop_window(mask.shape)
                counts.add(mask[seen], labels[seen])
                if len(first) <= index:
                    first.append(labels)
                equal.append(np.mean(labels[seen] == first[index][seen]))
        found[name] = {
            "miou": round(100 * defined_mean(counts.iou()), 2),
            "labels_equal": round(100 * float(np.mean(equal)), 3),
        }
    return found


if __name__ == "__main__":
    main()
