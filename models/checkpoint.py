"""Checkpoints: safetensors files with the contract in the header, and `.pth` state dicts."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from segdeploy.models.errors import ModelInputError, first_line

# Auxiliary heads are used in training only. A published file may hold them although the network
# has none.
TRAINING_ONLY = ("aux_classifier.", "auxiliary_head.")
_PICKLED = (".pth", ".pt")
# Keys under which training frameworks store the state dict, in order of preference.
_ENVELOPES = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "ema_state_dict",
    "ema",
    "model_ema",
)
_SHOWN = 3


def to_bytes(module: nn.Module, metadata: Mapping[str, str]) -> bytes:
    """Serialize a module's state dict as a safetensors file with `metadata` in its header."""
    # Cloned, because safetensors refuses tied weights, which share their memory.
    state = {
        key: value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()
    }
    data: bytes = serialize(state, metadata=dict(metadata))
    return data


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a `.pth` file of plain tensors.

    Nothing in the file is executed: safetensors holds tensors only, and `.pth` is read with
    `weights_only=True`.

    Raises:
        ModelInputError: if the file is neither safetensors nor a plain state dict.
    """
    if path.suffix in _PICKLED:
        return _read_pth(path)
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata in a checkpoint's header; empty for a `.pth` file.

    Raises:
        ModelInputError: if the file is not safetensors.
    """
    if path.suffix in _PICKLED:
        return {}
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ModelInputError(
            f"{path}: is not a safetensors checkpoint ({error}); "
            "give a .safetensors file that `segdeploy train` wrote, or --weights FILE.pth"
        ) from error


class _LogBuffer:
    """Stands for mmengine's buffer of logged numbers, which training leaves in a checkpoint."""

    def __setstate__(self, state: Any) -> None:
        """Drop the numbers."""


def _harmless() -> list[Any]:
    """Return the classes, beside tensors, that a checkpoint of mmengine may hold.

    numpy's scalars and arrays hold numbers alone.
    """
    import numpy as np

    scalar, array = np.float64(0), np.zeros(1)
    found: list[Any] = [np.ndarray, np.dtype, type(np.dtype("i8"))]
    found += [type(np.dtype("f4")), type(np.dtype("f8"))]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 1 and 2
        found.append((scalar.__reduce__()[0], f"{module}.scalar"))
        found.append((array.__reduce__()[0], f"{module}._reconstruct"))
    found.append((_LogBuffer, "mmengine.logging.history_buffer.HistoryBuffer"))
    return found


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Read the state dict and the `meta` values of a checkpoint of OpenMMLab; nothing is executed.

    Raises:
        ModelInputError: for a file without a state dict, or with more than tensors and values.
    """
    loaded = _loaded(path)
    state = _state_dict(loaded)
    if state is None:
        raise ModelInputError(f"{path}: has no state dict (names to tensors)")
    meta = loaded.get("meta")
    return state, meta if isinstance(meta, dict) else {}


def _read_pth(path: Path) -> dict[str, Tensor]:
    state = _state_dict(_loaded(path))
    if state is None:
        raise ModelInputError(
            f"{path}: is not a plain state dict (names to tensors); "
            "save it with torch.save(model.state_dict(), FILE)"
        )
    return state


def _loaded(path: Path) -> Any:
    refuse_torchscript(path)
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelInputError(
            f"{path}: holds more than tensors, and loading it could run code; "
            "save the state dict alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # torch.load raises many types on a damaged file
        raise ModelInputError(
            f"{path}: cannot be read as a PyTorch file ({first_line(error)})"
        ) from error


def refuse_torchscript(path: Path) -> None:
    """Refuse a TorchScript archive (from `torch.jit.save`), which holds code.

    Raises:
        ModelInputError: if the file is a TorchScript archive.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            holds_code = any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return  # damaged; loading the file reports the error
    if holds_code:
        raise ModelInputError(
            f"{path}: is a TorchScript module, whose code cannot be verified; give the "
            "nn.Module that it was made from (package.module:factory), and its state dict with "
            "--weights"
        )


def _state_dict(loaded: Any, depth: int = 2) -> dict[str, Tensor] | None:
    """Return the state dict in a loaded object: the object itself, or under one of `_ENVELOPES`."""
    if not isinstance(loaded, dict):
        return None
    if loaded and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        return loaded
    if depth:
        for key in _ENVELOPES:
            state = _state_dict(loaded.get(key), depth - 1)
            if state is not None:
                return state
    return None


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], source: str, architecture: str
) -> list[str]:
    """Load `state` into `module` strictly, and refuse weights that are not finite.

    A prefix of the keys (`model.`, `net.`, `_orig_mod.`, `module.`) is removed. Auxiliary heads are
    skipped if the module has none. Returns notes about a removed prefix
    and about keys without it, one sentence each.

    Raises:
        ModelInputError: naming the first missing keys, surplus keys and keys of another shape, or
            the tensor that holds NaN or infinity.
    """
    wanted = module.state_dict()
    notes = []
    prefix = prefix_of(wanted, state, source)
    if prefix:
        notes.append(f"{source}: the prefix {prefix} was removed from the keys")
        others = [key for key in state if not key.startswith(prefix)]
        if others:
            notes.append(f"{source}: {_listed('left out', others)[0]}, which lack that prefix")
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    given = {
        key: value
        for key, value in state.items()
        if key in wanted or not key.startswith(TRAINING_ONLY)
    }
    for key, value in given.items():
        same_kind = key not in wanted or value.is_floating_point() == _is_float(wanted[key])
        if value.layout != torch.strided or value.is_meta or not same_kind:
            raise ModelInputError(
                f"{source}: tensor {key} is {value.dtype}, {value.layout} on {value.device}, which "
                "cannot be loaded here; save dense tensors with the network's own dtypes"
            )
    problems = [
        *_listed("missing", [key for key in wanted if key not in given]),
        *_listed("surplus", [key for key in given if key not in wanted]),
        *_listed(
            "of another shape",
            [
                f"{key} {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
                for key in wanted
                if key in given and given[key].shape != wanted[key].shape
            ],
        ),
    ]
    if problems:
        raise ModelInputError(
            f"{source}: the weights are not those of {architecture}: {'; '.join(problems)}; "
            f"{_advice(state, architecture)}"
        )
    module.load_state_dict(given, strict=True)
    check_finite(module, source)
    return notes


def prefix_of(wanted: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> str:
    """Return the prefix under which `state` holds every key of `wanted`.

    If no prefix fits, return the first component that all keys share, or an empty string.

    Raises:
        ModelInputError: if several prefixes fit, as in a file of two networks.
    """
    first = next((key for key in wanted if key not in state), None)
    if first is None:
        return ""
    ends = [key.removesuffix(first) for key in state if key.endswith(f".{first}")]
    fitting = [p for p in ends if all(f"{p}{key}" in state for key in wanted)]
    if len(fitting) > 1:
        raise ModelInputError(
            f"{source}: holds several such networks, under {', '.join(fitting)}; save the state "
            "dict of one of them"
        )
    if fitting:
        return fitting[0]
    # No prefix fits. Remove the shared component, so that the error names the keys without it.
    shared = {key.partition(".")[0] for key in state}
    common = f"{shared.pop()}." if len(shared) == 1 else ""
    return common if any(key.removeprefix(common) in wanted for key in state) else ""


def _advice(state: Mapping[str, Tensor], architecture: str) -> str:
    from segdeploy.models.registry import likeliest

    keys = {key for key in state if not key.startswith(TRAINING_ONLY)}
    likely = likeliest(keys)
    if likely and architecture not in likely:
        return f"they look like those of {likely[0]}"
    return "check the architecture, --num-classes, --channels, --width and --arg"


def check_finite(module: nn.Module, source: str) -> None:
    """Refuse a network whose weights are not finite float32 numbers.

    Raises:
        ModelInputError: naming the first tensor that holds NaN or infinity, has another float type,
            or (in a lazy layer) has no shape yet.
    """
    for key, parameter in module.named_parameters():
        if is_lazy(parameter):
            raise ModelInputError(
                f"{source}: parameter {key} has no shape yet; run the network once in its factory"
            )
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ModelInputError(
                f"{source}: parameter {key} is {parameter.dtype}; give a float32 network (the "
                "precision is lowered later)"
            )
    for key, value in module.state_dict().items():
        if _is_float(value) and not torch.isfinite(value).all():
            raise ModelInputError(
                f"{source}: tensor {key} holds NaN or infinity; retrain or mend it"
            )


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _listed(kind: str, keys: list[str]) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return [f"{kind}: {', '.join(keys[:_SHOWN])}{more}"]
