"""The preprocessing of other frameworks, stated as a contract, gives their input to the bit.

Each framework runs its own code on the same images. The sizes are drawn, so that both orientations,
shrinking and enlarging occur.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from segmentation_models_pytorch.encoders._preprocessing import preprocess_input
from torchvision import transforms
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

from segdeploy.contract import Contract
from segdeploy.contract_statement import with_stated
from segdeploy.preprocessing.preprocess import preprocess

from .conftest import CONTRACT

A = pytest.importorskip("albumentations")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE = (104.00698793, 116.66876762, 122.67891434)
IMAGES = 12
Pixels = np.ndarray


@dataclass(frozen=True)
class Pipeline:
    """A framework's function, the contract's fields, and the images' channels and dtype."""

    run: Callable[[Pixels], Any]
    stated: Mapping[str, Any]
    size: tuple[int, int] = (64, 64)
    channels: int = 3
    dtype: str = "uint8"
    least: int = 20
    tolerance: float = 0.0


def planes(pixels: Pixels) -> Pixels:
    """(H, W, C) or (H, W) as (1, C, H, W) float32."""
    return np.atleast_3d(np.asarray(pixels)).transpose(2, 0, 1)[None].astype(np.float32)


def composed(*steps: Any) -> Callable[[Pixels], Any]:
    run = transforms.Compose(steps)
    return lambda pixels: run(Image.fromarray(pixels))[None]


def of_transformers(name: str, **options: Any) -> Callable[[Pixels], Any]:
    processor = getattr(transformers, name)(**options)
    return lambda pixels: np.asarray(
        processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    )


def of_albumentations(*steps: Any) -> Callable[[Pixels], Any]:
    run = A.Compose(list(steps))
    return lambda pixels: planes(run(image=pixels)["image"])


def segmentation_models(pixels: Pixels) -> Any:
    parameters = {"mean": MEAN, "std": STD, "input_space": "RGB", "input_range": [0, 1]}
    return planes(preprocess_input(cv2.resize(pixels, (64, 64)), **parameters))


def mmsegmentation(pixels: Pixels) -> Any:
    """`Resize(scale, keep_ratio=True)`, `imnormalize` of mmcv, and `Pad(size_divisor=32)`."""
    bgr = pixels[:, :, ::-1]
    height, width = bgr.shape[:2]
    scale = min(128 / max(height, width), 48 / min(height, width))
    new = int(width * scale + 0.5), int(height * scale + 0.5)
    resized = cv2.resize(bgr, new, interpolation=cv2.INTER_LINEAR)
    values = cv2.cvtColor(resized.astype(np.float32), cv2.COLOR_BGR2RGB)
    mean, std = np.float64([[123.675, 116.28, 103.53]]), np.float64([[58.395, 57.12, 57.375]])
    values = cv2.multiply(cv2.subtract(values, mean), 1 / std)
    down, right = -values.shape[0] % 32, -values.shape[1] % 32
    return planes(cv2.copyMakeBorder(values, 0, down, 0, right, cv2.BORDER_CONSTANT, value=0))


def letterbox(pixels: Pixels) -> Any:
    """As detectors do it: OpenCV, gray 114 around the image, values of 0..1."""
    height, width = pixels.shape[:2]
    scale = min(64 / height, 64 / width)
    new = max(1, round(width * scale)), max(1, round(height * scale))
    resized = cv2.resize(pixels, new, interpolation=cv2.INTER_LINEAR)
    down, right = 64 - new[1], 64 - new[0]
    border = (down // 2, down - down // 2, right // 2, right - right // 2)
    boxed = cv2.copyMakeBorder(resized, *border, cv2.BORDER_CONSTANT, value=(114,) * 3)
    return planes(boxed.astype(np.float32) / 255)


def tensorflow(pixels: Pixels) -> Any:
    resized = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR))
    return planes(resized.astype(np.float32) / np.float32(127.5) - np.float32(1))


def caffe(pixels: Pixels) -> Any:
    resized = cv2.resize(pixels[:, :, ::-1], (64, 64), interpolation=cv2.INTER_LINEAR)
    return planes(
        resized.astype(np.float32) - np.float32([104.00698793, 116.66876762, 122.67891434])
    )


def opencv_gray(pixels: Pixels) -> Any:
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    resized = cv2.resize(gray, (64, 64), interpolation=cv2.INTER_AREA)
    return planes((resized.astype(np.float32) / 255 - np.float32(0.5)) / np.float32(0.25))


def deep_gray(pixels: Pixels) -> Any:
    resized = cv2.resize(pixels[:, :, 0], (64, 64), interpolation=cv2.INTER_AREA)
    return planes((resized.astype(np.float32) / 65535 - np.float32(0.4)) / np.float32(0.2))


def multispectral(pixels: Pixels) -> Any:
    resized = cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_NEAREST)
    mean, std = np.float32([0.1, 0.2, 0.3, 0.4]), np.float32([0.5, 0.4, 0.3, 0.2])
    return planes((resized / np.float32(10000) - mean) / std)


def raw(pixels: Pixels) -> Any:
    return planes(cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_LINEAR))


def per_image(pixels: Pixels) -> Any:
    """TensorFlow's `per_image_standardization`, in float64."""
    values = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR)) / 1.0
    return planes((values - values.mean()) / max(values.std(), 1 / np.sqrt(values.size)))


def usual(formula: str, **more: Any) -> dict[str, Any]:
    return {"mean": MEAN, "std": STD, "normalization": formula, **more}


WEIGHTS = DeepLabV3_ResNet50_Weights.DEFAULT
TO_TENSOR = (transforms.ToTensor(), transforms.Normalize(MEAN, STD))
BYTES = "torchvision-uint8-bilinear"
CROP = {"fit": "shortest-edge,center-crop", "edge": 80}
SIZES = {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}}
EDGES = {"shortest_edge": 60, "longest_edge": 90}
PIPELINES = {
    "PIL, ToTensor, Normalize": Pipeline(
        composed(transforms.Resize((64, 64)), *TO_TENSOR), usual("f32-div", fit="stretch")
    ),
    "torchvision, shortest edge and center crop": Pipeline(
        composed(transforms.Resize(80), transforms.CenterCrop(64), *TO_TENSOR),
        usual("f32-div", **CROP),
    ),
    "torchvision, shortest edge with a limit": Pipeline(
        composed(transforms.Resize(60, max_size=80), *TO_TENSOR),
        usual("f32-div", fit="shortest-edge", edge=60, longest_edge=80),
    ),
    "torchvision, transforms() of its weights": Pipeline(
        lambda pixels: WEIGHTS.transforms()(Image.fromarray(pixels))[None],
        usual("f32-div", fit="shortest-edge", edge=520),
        least=60,
    ),
    "SegFormer, torchvision": Pipeline(
        of_transformers("SegformerImageProcessor", size={"height": 64, "width": 64}),
        usual("f32-fused-div", fit="stretch", resize=BYTES),
    ),
    "SegFormer, Pillow": Pipeline(
        of_transformers("SegformerImageProcessorPil", size={"height": 64, "width": 64}),
        usual("f32-div", fit="stretch"),
    ),
    "MobileNetV2, torchvision": Pipeline(
        of_transformers("MobileNetV2ImageProcessor", **SIZES),
        {"mean": (0.5,), "std": (0.5,), "normalization": "f32-fused-div", **CROP, "resize": BYTES,
         "rounding": "huggingface"},
    ),
    "MobileNetV2, Pillow": Pipeline(
        of_transformers("MobileNetV2ImageProcessorPil", **SIZES),
        {"mean": (0.5,), "std": (0.5,), "normalization": "f32-div", **CROP,
         "rounding": "huggingface"},
    ),
    "MobileViT, torchvision": Pipeline(
        of_transformers("MobileViTImageProcessor", **SIZES),
        {"channels": ("B", "G", "R"), "mean": (0.0,), "std": (1.0,), "rounding": "huggingface",
         "normalization": "f32-mul-inv", **CROP, "resize": "torchvision-uint8-bicubic"},
    ),
    "MobileViT, Pillow": Pipeline(
        of_transformers("MobileViTImageProcessorPil", **SIZES),
        {"channels": ("B", "G", "R"), "mean": (0.0,), "std": (1.0,), "rounding": "huggingface",
         "normalization": "f32-div", **CROP, "resize": "pillow-bicubic"},
    ),
    "BEiT, torchvision": Pipeline(
        of_transformers("BeitImageProcessor", size={"height": 64, "width": 64},
                        do_center_crop=False),
        {"mean": (0.5,), "std": (0.5,), "normalization": "f32-fused-div", "fit": "stretch",
         "resize": "torchvision-uint8-bicubic"},
    ),
    "BEiT, Pillow": Pipeline(
        of_transformers("BeitImageProcessorPil", size={"height": 64, "width": 64},
                        do_center_crop=False),
        {"mean": (0.5,), "std": (0.5,), "normalization": "f32-div", "fit": "stretch",
         "resize": "pillow-bicubic"},
    ),
    "Mask2Former, torchvision": Pipeline(
        of_transformers("Mask2FormerImageProcessor", size=EDGES),
        usual("f32-fused-div", fit="shortest-edge", edge=60, longest_edge=90, side_multiple=32,
              rounding="huggingface", resize=BYTES),
    ),
    "Mask2Former, Pillow": Pipeline(
        of_transformers("Mask2FormerImageProcessorPil", size=EDGES),
        usual("f32-div", fit="shortest-edge", edge=60, longest_edge=90, side_multiple=32,
              rounding="huggingface"),
    ),
    "albumentations, Resize": Pipeline(
        of_albumentations(A.Resize(64, 64), A.Normalize(MEAN, STD)),
        usual("f32-fused-mul", fit="stretch", resize="opencv-linear"),
    ),
    "albumentations, longest side and padding": Pipeline(
        of_albumentations(
            A.LongestMaxSize(64), A.PadIfNeeded(64, 64, border_mode=cv2.BORDER_CONSTANT, fill=0),
            A.Normalize(MEAN, STD),
        ),
        usual("f32-fused-mul", fit="longest-edge,pad", edge=64, rounding="albumentations",
              pad=(0.0,), resize="opencv-linear"),
    ),
    "albumentations, smallest side and center crop": Pipeline(
        of_albumentations(A.SmallestMaxSize(80), A.CenterCrop(64, 64), A.Normalize(MEAN, STD)),
        usual("f32-fused-mul", **CROP, rounding="albumentations", resize="opencv-linear"),
    ),
    "albumentations, padding to a multiple": Pipeline(
        of_albumentations(
            A.PadIfNeeded(None, None, pad_height_divisor=32, pad_width_divisor=32,
                          border_mode=cv2.BORDER_CONSTANT, fill=0),
            A.Normalize(MEAN, STD),
        ),
        usual("f32-fused-mul", fit="pad-to-multiple", pad_multiple=32, pad=(0.0,)),
    ),
    "segmentation_models_pytorch": Pipeline(
        segmentation_models, usual("f64", fit="stretch", resize="opencv-linear")
    ),
    "mmsegmentation": Pipeline(
        mmsegmentation,
        {"mean_255": (123.675, 116.28, 103.53), "std_255": (58.395, 57.12, 57.375), "scale": 1.0,
         "normalization": "f32sub-f64mul", "fit": "shortest-edge,pad-to-multiple", "edge": 48,
         "longest_edge": 128, "rounding": "mmcv", "pad": (0.0,), "pad_normalized": True,
         "pad_side": "bottom-right", "pad_multiple": 32, "resize": "opencv-linear"},
    ),
    "letterbox at 114": Pipeline(
        letterbox,
        {"mean": (0.0,), "std": (1.0,), "normalization": "f32-div", "fit": "letterbox",
         "pad": (114.0,), "resize": "opencv-linear"},
    ),
    "TensorFlow, -1 to 1": Pipeline(
        tensorflow,
        {"scale": 1 / 127.5, "mean": (1.0,), "std": (1.0,), "normalization": "f32-div",
         "fit": "stretch"},
    ),
    "Caffe, BGR means of 0 to 255": Pipeline(
        caffe,
        {"channels": ("B", "G", "R"), "scale": 1.0, "std": (1.0,), "normalization": "f32-div",
         "mean": CAFFE, "fit": "stretch",
         "resize": "opencv-linear"},
    ),
    "gray by Pillow": Pipeline(
        composed(transforms.Lambda(lambda image: image.convert("L")), transforms.Resize((64, 64)),
                 transforms.ToTensor(), transforms.Normalize((0.45,), (0.22,))),
        {"channels": ("gray",), "gray": "pillow", "mean": (0.45,), "std": (0.22,),
         "normalization": "f32-div", "fit": "stretch"},
    ),
    "gray by OpenCV": Pipeline(
        opencv_gray,
        {"channels": ("gray",), "gray": "opencv", "mean": (0.5,), "std": (0.25,),
         "normalization": "f32-div", "fit": "stretch", "resize": "opencv-area"},
    ),
    "gray of 16 bits": Pipeline(
        deep_gray,
        {"channels": ("gray",), "dtype": "uint16", "mean": (0.4,), "std": (0.2,),
         "normalization": "f32-div", "fit": "stretch", "resize": "opencv-area"},
        channels=1, dtype="uint16",
    ),
    "four channels of 16 bits": Pipeline(
        multispectral,
        {"channels": ("nir", "red", "green", "blue"), "dtype": "uint16", "scale": 1 / 10000,
         "mean": (0.1, 0.2, 0.3, 0.4), "std": (0.5, 0.4, 0.3, 0.2), "normalization": "f32-div",
         "fit": "stretch", "resize": "opencv-nearest"},
        channels=4, dtype="uint16",
    ),
    "the network normalizes itself": Pipeline(
        raw, {"normalization": "none", "fit": "stretch", "resize": "opencv-linear"}
    ),
    "standardization of each image": Pipeline(
        per_image, {"normalization": "per-image", "scale": 1.0, "fit": "stretch"}
    ),
}  # fmt: skip


def contract_of(pipeline: Pipeline) -> Contract:
    start = CONTRACT.stretched_to(pipeline.size)
    return with_stated(start, pipeline.stated)


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_the_networks_input_is_that_of_the_framework(name: str) -> None:
    pipeline = PIPELINES[name]
    contract = contract_of(pipeline)
    rng = np.random.default_rng(0)
    for _ in range(IMAGES):
        height, width = rng.integers(pipeline.least, 200, 2)
        most = np.iinfo(pipeline.dtype).max
        image = rng.integers(0, most + 1, (height, width, pipeline.channels)).astype(pipeline.dtype)
        expected = pipeline.run(image)
        expected = expected.numpy() if isinstance(expected, torch.Tensor) else expected
        found = preprocess(image, contract)
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        difference = np.abs(found - expected).max()
        assert difference <= pipeline.tolerance, (height, width, difference)
