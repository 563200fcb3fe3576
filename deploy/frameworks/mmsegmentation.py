"""Configurations and checkpoints of mmsegmentation, 0.x and 1.x."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from segdeploy.errors import InputError
from segdeploy.files import check_input
from segdeploy.frameworks.foreign_network import ForeignNetwork, named_classes
from segdeploy.frameworks.mmsegmentation_network import builder, is_installed
from segdeploy.frameworks.python_config import read_config
from segdeploy.packages import require

# Steps of a test pipeline that do not change the network's input.
_WITHOUT_EFFECT = frozenset(
    ("LoadAnnotations", "PackSegInputs", "ImageToTensor", "DefaultFormatBundle", "Collect")
)
# The options that are read of the other steps, or that have no effect in testing.
_OPTIONS: Mapping[str, frozenset[str]] = {
    "LoadImageFromFile": frozenset(
        ("to_float32", "color_type", "imdecode_backend", "file_client_args", "backend_args")
    ),
    "Resize": frozenset(
        ("scale", "img_scale", "keep_ratio", "interpolation", "backend", "clip_object_border")
    ),
    "Normalize": frozenset(("mean", "std", "to_rgb")),
    "Pad": frozenset(("size_divisor", "pad_val", "seg_pad_val")),
    "RandomFlip": frozenset(("prob", "direction")),
}
_KERNELS = {
    None: "opencv-linear",
    "bilinear": "opencv-linear",
    "nearest": "opencv-nearest",
    "bicubic": "opencv-cubic",
    "area": "opencv-area",
}
# The names of a configuration that are read here.
_NAMES = ("model", "data_preprocessor", "test_dataloader", "data", "test_pipeline",
          "val_dataloader")  # fmt: skip
_INFER = "find the contract with `segdeploy contract infer`, and state it with --contract"
_BINARY_THRESHOLD = 0.3  # BaseDecodeHead's, for one output channel without a threshold


@dataclass(frozen=True)
class _Sources:
    config: Path
    checkpoint: Path


def read(reference: str, *, has_factory: bool) -> ForeignNetwork:
    """Read `CONFIG,CHECKPOINT`: preprocessing, classes, colors and weights; nothing is executed.

    The network is code of mmsegmentation. The user's own factory builds the network, or the
    installed mmsegmentation without a factory.

    Raises:
        InputError: for a configuration that would have to be executed, a preprocessing that no
            contract states, or a network that mmsegmentation does not build.
        ModelInputError: for a checkpoint that holds more than tensors and plain values.
    """
    config, separator, checkpoint = reference.partition(",")
    if not separator or not config or not checkpoint:
        raise InputError(f"mmseg:{reference}: give mmseg:CONFIG,CHECKPOINT, such as c.py,c.pth")
    sources = _Sources(Path(config), check_input(Path(checkpoint)))
    values = read_config(sources.config, _NAMES)
    model = values.get("model")
    if not isinstance(model, dict):
        raise InputError(f"{sources.config}: has no `model`, so it is none of mmsegmentation")
    require("torch", "safetensors")
    from segdeploy.models.checkpoint import read_checkpoint

    state, meta = read_checkpoint(sources.checkpoint)
    head = _head(model, sources.config)
    steps = list(_steps(_pipeline(values, sources.config), sources.config))
    processor = _processor(values, model)
    fit, told = _window(_fit(steps, processor, sources.config), model, sources.config)
    stated = {**fit, **_normalization(steps, processor, sources.config), **scores_of(head)}
    classes, notes = _classes(meta, head, sources)
    notes += told
    if classes is not None:
        stated |= dict(zip(("classes", "palette", "ignore_index"), classes, strict=True))
    found = ForeignNetwork(
        architecture="",
        stated=stated,
        num_classes=class_count(head),
        state=state,
        weights=sources.checkpoint,
        align_corners=bool(head.get("align_corners")),
        notes=tuple(notes),
    )
    if has_factory or not is_installed():
        return found
    return replace(
        found,
        architecture=f"mmseg:{model.get('type')}",
        build=builder(model, state, sources.config, sources.checkpoint),
        state=None,
        weights=None,
        built_from=sources.checkpoint,
    )


def preprocessing_of(pipeline: Any, path: Path) -> dict[str, Any]:
    """Return the fit, the channels and the normalization of a pipeline that normalizes itself.

    Raises:
        InputError: for a step that no contract states.
    """
    steps = list(_steps(pipeline, path))
    return {**_fit(steps, {}, path), **_normalization(steps, {}, path)}


def _head(model: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Return the decode head, the last one of a cascade."""
    head = model.get("decode_head")
    if isinstance(head, (list, tuple)) and head:
        head = head[-1]
    if not isinstance(head, dict):
        raise InputError(f"{path}: its model has no `decode_head`, so it gives no logits")
    return head


def _pipeline(values: Mapping[str, Any], path: Path) -> Any:
    """Return the test pipeline: of the test data loader (1.x), of `data` (0.x), or by its name."""
    for keys in (
        ("test_dataloader", "dataset", "pipeline"),
        ("data", "test", "pipeline"),
        ("test_pipeline",),
        ("val_dataloader", "dataset", "pipeline"),
    ):
        found: Any = values
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, (list, tuple)):
            return found
    raise InputError(f"{path}: has no test pipeline; name it test_pipeline = [...]")


def _steps(pipeline: Any, path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a pipeline; those in MultiScaleFlipAug (0.x) get its one scale."""
    for step in pipeline:
        name = step.get("type") if isinstance(step, dict) else None
        if not isinstance(name, str):
            raise InputError(f"{path}: its test pipeline has the step {step!r:.60}")
        if name == "MultiScaleFlipAug":
            scale, ratios = step.get("img_scale"), step.get("img_ratios")
            if ratios not in (None, 1.0, [1.0], (1.0,)) or step.get("flip"):
                raise InputError(
                    f"{path}: MultiScaleFlipAug runs at several scales or mirrored; give the "
                    "pipeline of one run, and state --scales and --flip"
                )
            for inner in step.get("transforms") or ():
                kind = inner.get("type") if isinstance(inner, dict) else None
                if kind == "Resize":
                    inner = {"img_scale": scale, **inner}
                if kind != "RandomFlip":  # mirrors where `flip` says so, which is false here
                    yield from _steps([inner], path)
        else:
            unknown = sorted(step.keys() - _OPTIONS.get(name, step.keys()) - {"type"})
            if unknown:
                raise InputError(
                    f"{path}: the option {unknown[0]} of {name} is not read here, and may change "
                    f"the network's input; {_INFER}"
                )
            if name == "RandomFlip" and step.get("prob"):
                raise InputError(f"{path}: its test pipeline mirrors images at random (RandomFlip)")
            yield step


def _fit(
    steps: list[Mapping[str, Any]], processor: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Return the fit of the test pipeline, with the padding to a multiple.

    Raises:
        InputError: for a step that no contract states.
    """
    fit: dict[str, Any] = {"fit": "none", "size": (512, 512)}
    for step in steps:
        name = step["type"]
        if name == "LoadImageFromFile":
            if step.get("to_float32") or step.get("color_type", "color") != "color":
                raise InputError(f"{path}: {name} reads other images than 8-bit color")
        elif name == "Resize" and fit["fit"] == "none":
            fit = _resize(step, path)
        elif name not in _WITHOUT_EFFECT and name not in ("Normalize", "Pad", "RandomFlip"):
            raise InputError(
                f"{path}: the step {name} of the test pipeline is none that a contract states; "
                f"{_INFER}"
            )
    multiple, value, is_before = _padding(steps, processor, path)
    if multiple is None:
        return fit
    resized = fit["fit"]
    if resized == "stretch":
        if any(side % multiple for side in fit["size"]):
            height, width = fit["size"]
            raise InputError(
                f"{path}: resizes images to {height}x{width} and pads them to multiples of "
                f"{multiple}, which no contract states; {_INFER}"
            )
        return fit
    return {
        **fit,
        "fit": "pad-to-multiple" if resized == "none" else f"{resized},pad-to-multiple",
        "size": tuple(-(-side // multiple) * multiple for side in fit["size"]),
        "pad": (float(value),),
        "pad_normalized": not is_before,
        "pad_side": "bottom-right",
        "pad_multiple": multiple,
    }


def _resize(step: Mapping[str, Any], path: Path) -> dict[str, Any]:
    scale = step.get("scale") or step.get("img_scale")
    if not _is_size(scale):
        raise InputError(f"{path}: Resize has the scale {scale!r}; a contract states two numbers")
    if step.get("backend", "cv2") != "cv2":
        raise InputError(f"{path}: Resize with the backend {step['backend']} is not read")
    kernel = _KERNELS.get(step.get("interpolation"))
    if kernel is None:
        raise InputError(f"{path}: the interpolation {step['interpolation']} is no kernel here")
    wide, high = scale
    if not step.get("keep_ratio", "img_scale" in step or "scale" not in step):
        return {"fit": "stretch", "size": (high, wide), "resize": kernel}
    shorter, longer = sorted(scale)
    return {
        "fit": "shortest-edge",
        "edge": shorter,
        "longest_edge": longer,
        "rounding": "mmcv",
        "resize": kernel,
        "size": (shorter, longer) if wide >= high else (longer, shorter),
    }


def _padding(
    steps: list[Mapping[str, Any]], processor: Mapping[str, Any], path: Path
) -> tuple[int | None, float, bool]:
    """Return the multiple that images are padded to in testing, and the value of the padding.

    The last value says whether images are padded before the normalization.
    """
    names = [step["type"] for step in steps]
    if "Pad" in names:
        step = steps[names.index("Pad")]
        multiple, value = step.get("size_divisor"), step.get("pad_val", 0)
        if isinstance(value, dict):  # of images and of masks
            value = value.get("img", 0)
        if not isinstance(multiple, int) or multiple < 1:
            raise InputError(f"{path}: Pad without a size_divisor above 0 is not stated here")
        is_before = "Normalize" not in names or names.index("Pad") < names.index("Normalize")
        return multiple, value, is_before
    in_test = processor.get("test_cfg") or {}
    if "size" in in_test:
        raise InputError(f"{path}: data_preprocessor pads to the size {in_test['size']} in testing")
    multiple = in_test.get("size_divisor")
    if multiple is not None and (not isinstance(multiple, int) or multiple < 1):
        raise InputError(f"{path}: data_preprocessor has the size_divisor {multiple!r}")
    return multiple, processor.get("pad_val", 0), False


def _processor(values: Mapping[str, Any], model: Mapping[str, Any]) -> Mapping[str, Any]:
    found = model.get("data_preprocessor") or values.get("data_preprocessor")
    return found if isinstance(found, dict) else {}


def _normalization(
    steps: list[Mapping[str, Any]], processor: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Return the order of the channels and the constants: of the preprocessor, or of Normalize.

    The first computes in float32 (mmseg/models/data_preprocessor.py); `Normalize` is mmcv's
    `imnormalize`, which multiplies by the inverse in float64.
    """
    step = next((one for one in steps if one["type"] == "Normalize"), None)
    if step is not None:
        if processor.get("mean") is not None:
            raise InputError(
                f"{path}: normalizes twice, by Normalize and by data_preprocessor; remove one"
            )
        constants, is_rgb, formula = step, step.get("to_rgb", True), "f32sub-f64mul"
    else:
        constants, is_rgb, formula = processor, processor.get("bgr_to_rgb", False), "f32-div"
    if processor.get("rgb_to_bgr"):
        raise InputError(f"{path}: data_preprocessor reverses the channels of RGB images")
    channels = ("R", "G", "B") if is_rgb else ("B", "G", "R")
    mean, std = constants.get("mean"), constants.get("std")
    if mean is None or std is None:
        return {"channels": channels, "normalization": "none"}
    return {
        "channels": channels,
        "scale": 1.0,
        "mean": tuple(map(float, mean)),
        "std": tuple(map(float, std)),
        "normalization": formula,
    }


def class_count(head: Mapping[str, Any]) -> Any:
    """Return the number of classes of a decode head; 1 is a binary network."""
    return 1 if head.get("out_channels") == 1 else head.get("num_classes")


def scores_of(head: Mapping[str, Any]) -> dict[str, Any]:
    """Return the head of a contract and the threshold of a decode head with one output channel."""
    if head.get("out_channels") != 1:
        return {}
    threshold = head.get("threshold")
    return {
        "head": "binary",
        "threshold": _BINARY_THRESHOLD if threshold is None else float(threshold),
    }


def _classes(
    meta: Mapping[str, Any], head: Mapping[str, Any], sources: _Sources
) -> tuple[Any, list[str]]:
    """Return the classes and colors of the checkpoint; None if it has none.

    Raises:
        InputError: if their number is not that of the decode head.
    """
    held = meta.get("dataset_meta") or {"classes": meta.get("CLASSES"),
                                        "palette": meta.get("PALETTE")}  # fmt: skip
    names, count = held.get("classes"), head.get("num_classes")
    if not isinstance(names, (list, tuple)):
        return None, [f"{sources.checkpoint}: names no classes; name them with --data"]
    if isinstance(count, int) and count != len(names):
        raise InputError(
            f"{sources.checkpoint}: names {len(names)} classes, and the decode head of "
            f"{sources.config} has {count}"
        )
    palette = held.get("palette")
    colors = [list(color) for color in palette] if isinstance(palette, (list, tuple)) else None
    return named_classes(list(names), colors, str(sources.checkpoint))


def _is_size(value: Any) -> TypeGuard[Sequence[int]]:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(side, int) and side > 0 for side in value)
    )


def _window(
    fit: dict[str, Any], model: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], list[str]]:
    """Return the fit of one window of a network that slides over the image, and a note about it."""
    test = model.get("test_cfg") or {}
    mode, crop, stride = test.get("mode", "whole"), test.get("crop_size"), test.get("stride")
    if mode == "whole":
        return fit, []
    if mode != "slide" or not _is_size(crop) or not _is_size(stride):
        raise InputError(
            f"{path}: its test_cfg has the mode {mode!r} with the crop_size {crop!r} and the "
            f"stride {stride!r}; a window has two numbers above 0 each"
        )
    resized = "x".join(map(str, fit["size"]))
    first = f" over an image that was resized to {resized}" if fit["fit"] != "none" else ""
    window = {"fit": "stretch", "size": (int(crop[0]), int(crop[1])), "resize": "opencv-linear"}
    return window, [
        f"{path}: slides a window of {crop[0]}x{crop[1]} by {stride}{first}; the network is that "
        "of one window. --tile slides windows of this size, too; it blends their scores by the "
        "distance from the border, where mmsegmentation takes their mean"
    ]
