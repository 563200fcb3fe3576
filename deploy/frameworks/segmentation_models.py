"""Folders of segmentation_models_pytorch: what its `save_pretrained` writes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.errors import InputError
from segdeploy.frameworks import albumentations_pipeline
from segdeploy.frameworks.foreign_network import ForeignNetwork
from segdeploy.models.errors import first_line
from segdeploy.models.strict_json import read_json
from segdeploy.packages import require

if TYPE_CHECKING:
    from torch import nn

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_HEAD = "segmentation_head."


def read(folder: Path) -> ForeignNetwork:
    """Read a folder with `config.json`, `model.safetensors`, and maybe an albumentations pipeline.

    Without a pipeline, mean and standard deviation are those of the encoder's weights, if
    segmentation_models_pytorch tells them without a download.

    Raises:
        InputError: for a folder of another kind, an unknown architecture, or weights or a pipeline
            that cannot be read.
    """
    config = _config(folder)
    require("torch", "safetensors", "segmentation_models_pytorch")
    network = _class_of(config, folder)
    count = config.get("classes")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"{folder / _CONFIG}: its number of classes is {count!r}")
    pipeline = albumentations_pipeline.read(folder)
    if pipeline is not None:
        stated, notes = pipeline.stated, pipeline.notes
    else:
        stated = _constants(config)
        known = "mean and standard deviation are those of its encoder's weights; " if stated else ""
        notes = (
            f"{folder}: has no albumentations pipeline; {known}state the rest of the preprocessing "
            "with --size, --fit and --resize",
        )
    return ForeignNetwork(
        architecture=f"smp:{network.__name__}",
        stated=stated,
        build=lambda classes: _loaded(network, config, folder, classes),
        num_classes=count,
        built_from=folder / _WEIGHTS,
        notes=notes,
    )


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / _CONFIG
    if not path.is_file():
        raise InputError(
            f"smp:{folder}: has no {_CONFIG}, so it is no folder that segmentation_models_pytorch "
            "saved"
        )
    config = read_json(path)
    if not isinstance(config, dict) or "_model_class" not in config:
        mend = ""
        if isinstance(config, dict) and "architectures" in config:
            mend = f"; transformers wrote it: give --from hf:{folder}"
        raise InputError(
            f"{path}: was not written by segmentation_models_pytorch's save_pretrained{mend}"
        )
    if not (folder / _WEIGHTS).is_file():
        raise InputError(
            f"smp:{folder}: has no {_WEIGHTS}; load it with segmentation_models_pytorch and save "
            "it again with save_pretrained"
        )
    return config


def _class_of(config: Mapping[str, Any], folder: Path) -> Any:
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.base import SegmentationModel

    name = config["_model_class"]
    found = getattr(smp, name, None) if isinstance(name, str) else None
    if not (inspect.isclass(found) and issubclass(found, SegmentationModel)):
        raise InputError(
            f"{folder / _CONFIG}: the architecture {name!r} is none of "
            f"segmentation_models_pytorch {smp.__version__}"
        )
    return found


def _constants(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing of the encoder's weights; empty if no local file tells it.

    The arithmetic is that of segmentation_models_pytorch's `preprocess_input`.
    """
    from huggingface_hub import try_to_load_from_cache
    from segmentation_models_pytorch.encoders import encoders

    weights = config.get("encoder_weights")
    settings = encoders.get(config.get("encoder_name"), {}).get("pretrained_settings", {})
    found = settings.get(weights) if isinstance(weights, str) else None
    if found is None:
        return {}
    if "repo_id" in found:
        cached = try_to_load_from_cache(found["repo_id"], _CONFIG, revision=found.get("revision"))
        if not isinstance(cached, str):
            return {}
        found = read_json(Path(cached))
    mean, std = found.get("mean"), found.get("std")
    if not mean or not std:
        return {}
    is_reversed = found.get("input_space") == "BGR"
    return {
        "channels": ("B", "G", "R") if is_reversed else ("R", "G", "B"),
        "scale": 1 / 255 if (found.get("input_range") or [0, 1])[1] == 1 else 1.0,
        "mean": tuple(map(float, mean)),
        "std": tuple(map(float, std)),
        "normalization": "f64",
    }


def _loaded(network: Any, config: Mapping[str, Any], folder: Path, count: int | None) -> nn.Module:
    """Return the network with its weights, with a new head for another number of classes.

    Raises:
        InputError: if the network cannot be built as `config.json` says.
        ModelInputError: for weights of another network.
    """
    from segdeploy.models.checkpoint import load_weights, read_weights

    arguments = {name: value for name, value in config.items() if name != "_model_class"}
    unknown = sorted(set(arguments) - set(inspect.signature(network).parameters))
    if unknown and not str(config.get("encoder_name")).startswith("tu-"):  # timm takes any
        raise InputError(
            f"{folder / _CONFIG}: {network.__name__} has no argument {unknown[0]} in the installed "
            "segmentation_models_pytorch; install the version that saved the folder"
        )
    arguments["encoder_weights"] = None  # nothing is fetched; the file holds them
    if count is not None:
        arguments["classes"] = count
    try:
        module: nn.Module = network(**arguments)
    except Exception as error:  # the library raises many types
        raise InputError(
            f"{folder / _CONFIG}: {network.__name__} cannot be built ({first_line(error)})"
        ) from error
    state = read_weights(folder / _WEIGHTS)
    if count is not None:
        own = module.state_dict()
        kept = {key: value for key, value in own.items() if key.startswith(_HEAD)}
        state = {key: value for key, value in state.items() if not key.startswith(_HEAD)} | kept
    load_weights(module, state, str(folder / _WEIGHTS), network.__name__)
    return module.eval()
