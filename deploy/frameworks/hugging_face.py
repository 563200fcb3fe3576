"""Folders of Hugging Face: `config.json`, `preprocessor_config.json` and safetensors weights."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.contract import RESIZE_KERNELS
from segdeploy.contract_inference.function import Preprocessing
from segdeploy.errors import InputError
from segdeploy.frameworks.equality import closest
from segdeploy.frameworks.foreign_network import ForeignNetwork, named_classes
from segdeploy.models.errors import first_line
from segdeploy.models.strict_json import read_json
from segdeploy.packages import require

if TYPE_CHECKING:
    from torch import nn

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
# The options of image processors that change nothing here, beside those that `_fit` and `_values`
# read. Others could change the input in a way that a contract does not state.
_WITHOUT_EFFECT = frozenset(
    (
        *("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class"),
        *("do_reduce_labels", "reduce_labels", "do_convert_rgb", "return_tensors", "data_format"),
        *("input_data_format", "device", "default_to_square", "disable_grouping", "num_labels"),
        *("ignore_index", "_valid_processor_keys", "image_seq_length", "model_input_names"),
    )
)
_READ = frozenset(
    (
        *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale"),
        *("rescale_factor", "do_normalize", "image_mean", "image_std", "do_flip_channel_order"),
        *("do_pad", "pad_size", "size_divisor", "keep_aspect_ratio", "ensure_multiple_of"),
    )
)
_COUNTER = "num_batches_tracked"  # of a BatchNorm; inference does not read it
_LOG = logging.getLogger(__name__)
# Pillow's numbers of the resampling filters, which the processors store.
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
_FORMULAS = ("f32-fused-div", "f32-div", "f32-mul-inv", "f32-affine", "f32-fused-mul", "f64")


def read(folder: Path) -> ForeignNetwork:
    """Read a folder that `save_pretrained` wrote. Nothing in it is executed, nothing is fetched.

    The image processor of the installed transformers gives the input for probe images. The contract
    is the one, among those that the processor's options leave, which gives the same input.

    Raises:
        InputError: for a folder of another kind, code in the folder, an architecture without
            `.logits` of all classes, missing weights, or options that no contract states.
    """
    config = _config(folder)
    require("torch", "safetensors", "transformers")
    _quiet()
    network = _class_of(config, folder)
    classes, notes = _classes(config, folder)
    stated: dict[str, Any] = {}
    if classes is not None:
        stated = dict(zip(("classes", "palette", "ignore_index"), classes, strict=True))
    processor = _processor(folder)
    if processor is None:
        notes.append(
            f"{folder}: has no {PROCESSOR}; state the preprocessing with --contract, or with --fit,"
            " --resize, --mean and --std"
        )
        stated["size"] = _size_of(config)
    else:
        fields, more = _preprocessing(processor, folder)
        stated |= fields
        notes += more
    weights = folder / "model.safetensors"
    return ForeignNetwork(
        architecture=f"hf:{network.__name__}",
        stated={name: value for name, value in stated.items() if value is not None},
        num_classes=_count(config),
        build=lambda count: _loaded(network, folder, count),
        built_from=weights if weights.is_file() else None,
        notes=tuple(notes),
    )


def _quiet() -> None:
    """Leave warnings and progress bars out: what matters of them is an error or a note here."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not folder.is_dir():
        raise InputError(f"hf:{folder}: is no folder; give a folder that save_pretrained wrote")
    if not path.is_file():
        found = next((name for name in ("model_index.json", "adapter_config.json")
                      if (folder / name).is_file()), None)  # fmt: skip
        kind = f"it has {found}, " if found else "it has no config.json, "
        raise InputError(f"hf:{folder}: {kind}so it is no network that transformers saved")
    config = _object(path)
    if "_model_class" in config or "encoder_name" in config:
        raise InputError(
            f"{path}: was written by segmentation_models_pytorch; give --from smp:{folder}"
        )
    if "auto_map" in config:
        raise InputError(
            f"{path}: its network is code in the folder (auto_map), which is not executed; import "
            "the code yourself, and give package.module:factory with --weights"
        )
    return config


def _object(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: is no JSON object")
    return values


def _class_of(config: Mapping[str, Any], folder: Path) -> Any:
    """Return transformers' class of the network.

    Raises:
        InputError: for an architecture that is none of semantic segmentation with logits.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    known = set(modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.values())
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if name in known:
        return getattr(transformers, name)
    if not isinstance(name, str):
        raise InputError(
            f"{folder / CONFIG}: names no architecture; segdeploy reads {', '.join(sorted(known))}"
        )
    universal = modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES.values()
    reason = "is none of semantic segmentation that transformers has"
    if name in set(universal):
        reason = "predicts masks with classes, and no logits of every pixel"
    raise InputError(
        f"{folder / CONFIG}: the architecture {name} {reason}; segdeploy reads "
        f"{', '.join(sorted(known))}"
    )


def _count(config: Mapping[str, Any]) -> int:
    """Return the number of classes; transformers has two by default."""
    names, count = config.get("id2label"), config.get("num_labels")
    return len(names) if names else count if isinstance(count, int) else 2


def _classes(config: Mapping[str, Any], folder: Path) -> tuple[Any, list[str]]:
    """Return the classes of `id2label`; None if they are transformers' placeholders."""
    names = config.get("id2label")
    if names is None:
        return None, []
    path = folder / CONFIG
    if not isinstance(names, dict) or set(names) != {str(at) for at in range(len(names))}:
        raise InputError(f"{path}: its id2label does not name the classes 0, 1, 2, ...")
    count = config.get("num_labels", len(names))
    if count != len(names):
        raise InputError(
            f"{path}: has {count} classes (num_labels), and id2label names {len(names)}"
        )
    ordered = [names[str(at)] for at in range(len(names))]
    if ordered == [f"LABEL_{at}" for at in range(len(names))]:
        return None, []
    return named_classes(ordered, None, str(path))


def _processor(folder: Path) -> Any:
    """Return the image processor of the folder; None without one.

    Raises:
        InputError: for options that segdeploy does not know, or that transformers refuses.
    """
    path = folder / PROCESSOR
    if not path.is_file():
        return None
    options = _object(path)
    if "auto_map" in options:
        raise InputError(
            f"{path}: its image processor is code in the folder (auto_map), which is not executed; "
            "state the preprocessing with --contract, as `segdeploy contract infer` finds it, and "
            f"move {PROCESSOR} away"
        )
    unknown = sorted(set(options) - _WITHOUT_EFFECT - _READ)
    if unknown:
        raise InputError(
            f"{path}: the option {unknown[0]} is unknown here, and may change the network's input; "
            "remove the option if it does not, or state the preprocessing with --contract, as "
            f"`segdeploy contract infer` finds it, and move {PROCESSOR} away"
        )
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises many types
        raise InputError(f"{path}: transformers cannot read it ({first_line(error)})") from error


def _function(processor: Any) -> Callable[[NDArray[np.uint8]], Any]:
    from PIL import Image

    return lambda image: processor(images=Image.fromarray(image), return_tensors="pt")[
        "pixel_values"
    ]


def _preprocessing(processor: Any, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of the contract that give the processor's input, and notes."""
    path, name = folder / PROCESSOR, type(processor).__name__
    for option in ("do_pad", "keep_aspect_ratio"):
        if getattr(processor, option, None):
            raise InputError(
                f"{path}: {name} with {option} sizes images by a rule that no contract states; "
                "give a folder without, or state the preprocessing with --contract, and move "
                f"{PROCESSOR} away"
            )
    base = {**_fit(processor, path), **_values(processor)}
    kernels = _kernels(processor, path, is_pillow=name.endswith("Pil"))
    trials = (
        {**base, "resize": kernel, **_formula(base, formula)}
        for kernel, formula in itertools.product(kernels, _FORMULAS)
    )
    try:
        found = closest(trials, base["size"], Preprocessing(_function(processor), name))
    except InputError as error:
        raise InputError(
            f"{path}: {error}; find the contract with `segdeploy contract infer`, state it with "
            f"--contract, and move {PROCESSOR} away"
        ) from error
    return found.stated, [f"{folder}: the contract gives the input of {name}{found.told}"]


def _formula(base: Mapping[str, Any], formula: str) -> dict[str, str]:
    return {} if base.get("normalization") == "none" else {"normalization": formula}


def _fit(processor: Any, path: Path) -> dict[str, Any]:
    """Return the fit that the processor's options say, with the nominal size of the input."""
    size = _sides(getattr(processor, "size", None)) if processor.do_resize else {}
    crop = _sides(processor.crop_size) if getattr(processor, "do_center_crop", None) else {}
    edge, longest = size.get("shortest_edge"), size.get("longest_edge")
    window = (crop["height"], crop["width"]) if crop else None
    if not size:
        fit: dict[str, Any] = {"fit": "center-crop" if crop else "none"}
        return {**fit, "size": window or (512, 512)}
    if edge:
        fit = {"fit": "shortest-edge", "edge": edge, "rounding": "huggingface"}
        if longest:
            fit["longest_edge"] = longest
        if window and longest is None:
            return {**fit, "fit": "shortest-edge,center-crop", "size": window}
        if not window:
            return {**fit, "size": (edge, edge)}
    elif longest and not edge and "height" not in size and not window:
        return {
            "fit": "longest-edge",
            "edge": longest,
            "rounding": "huggingface",
            "size": (longest, longest),
        }
    elif "height" in size and window in (None, (size["height"], size["width"])):
        return {"fit": "stretch", "size": (size["height"], size["width"])}
    raise InputError(
        f"{path}: the size {size} with the crop {crop} is a rule that no contract states; state "
        f"the preprocessing with --contract, and move {PROCESSOR} away"
    )


def _sides(size: Any) -> dict[str, int]:
    """Return the sides that a processor's size names, without those that are None."""
    held = dict(size) if isinstance(size, Mapping) else dict(vars(size) if size else {})
    return {name: int(value) for name, value in held.items() if value}


def _values(processor: Any) -> dict[str, Any]:
    """Return scale, constants and channels that the processor's options say."""
    rescales, normalizes = bool(processor.do_rescale), bool(processor.do_normalize)
    if getattr(processor, "do_flip_channel_order", None):
        channels = ("B", "G", "R")
    else:
        channels = ("R", "G", "B")
    if not rescales and not normalizes:
        return {"channels": channels, "normalization": "none"}
    return {
        "channels": channels,
        "scale": float(processor.rescale_factor) if rescales else 1.0,
        "mean": _numbers(processor.image_mean) if normalizes else (0.0,),
        "std": _numbers(processor.image_std) if normalizes else (1.0,),
    }


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values)) if isinstance(values, (list, tuple)) else (float(values),)


def _kernels(processor: Any, path: Path, *, is_pillow: bool) -> Iterator[str]:
    """Return the kernels that a processor's filter may mean, the likeliest first."""
    if not processor.do_resize:
        return iter(("pillow-bilinear",))
    try:
        name = _FILTERS.get(int(processor.resample))
    except (TypeError, ValueError):
        name = None
    if name is None:
        raise InputError(f"{path}: the filter {processor.resample!r} is none that segdeploy has")
    of_pillow = [f"pillow-{name}", f"pillow-pre13-{name}"]
    of_torch = [f"torchvision-uint8-{name}", f"torch-{name}", f"torch-{name}-exact"]
    of_torch.append(f"torch-{name}-antialias")
    ordered = [*of_pillow, *of_torch] if is_pillow else [*of_torch, *of_pillow]
    return (kernel for kernel in ordered if kernel in RESIZE_KERNELS)


def _size_of(config: Mapping[str, Any]) -> tuple[int, int] | None:
    side = config.get("image_size")
    return (side, side) if isinstance(side, int) and side > 0 else None


def _loaded(network: Any, folder: Path, count: int | None) -> nn.Module:
    """Return the network with its weights, with a new classifier for another number of classes.

    Raises:
        InputError: for weights that are missing or of another network.
    """
    import torch

    changed = {} if count is None else {"num_labels": count}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module, told = network.from_pretrained(
                str(folder),
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                attn_implementation="eager",  # the others take a bias that has no ONNX form
                ignore_mismatched_sizes=True,  # told below
                **changed,
            )
    except Exception as error:  # transformers raises many types
        raise InputError(
            f"hf:{folder}: transformers cannot load it ({first_line(error)})"
        ) from error
    missing = sorted(one for one in told["missing_keys"] if not one.endswith(_COUNTER))
    mismatched = sorted(str(one[0] if isinstance(one, tuple) else one)
                        for one in told["mismatched_keys"])  # fmt: skip
    if missing or (count is None and mismatched):
        what, keys = ("lack", missing) if missing else ("have another shape for", mismatched)
        raise InputError(
            f"hf:{folder}: its weights {what} {', '.join(keys[:3])}, which would stay random; give "
            f"the folder of a network that was trained for the classes of {CONFIG}"
        )
    if surplus := sorted(one for one in told["unexpected_keys"] if not one.endswith(_COUNTER)):
        _LOG.info(
            f"hf:{folder}: left out {len(surplus)} weights that the network of {CONFIG} has no "
            f"place for ({', '.join(surplus[:3])}{', ...' if len(surplus) > 3 else ''})"
        )
    loaded: nn.Module = module.eval()
    return loaded
