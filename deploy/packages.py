"""Optional packages: imported when first needed, with the install command in the error."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

from segdeploy.errors import InputError

EXTRAS = {
    "torch": "torch",
    "torchvision": "torch",
    "safetensors": "torch",
    "onnxscript": "torch",
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "segmentation_models_pytorch": "smp",
    "tensorboard": "tensorboard",
    "tensorrt": "gpu",
    "tensorrt_rtx": "rtx",
    "transformers": "hf",
}


def require(*modules: str) -> ModuleType:
    """Import optional packages, and return the last one.

    Raises:
        InputError: if a package is missing or cannot be imported. The message names the package,
            the extra that installs it and, for a failed import, the reason.
    """
    imported: ModuleType | None = None
    for module in modules:
        try:
            imported = importlib.import_module(module)
        except ImportError as error:
            extra = EXTRAS[module]
            missing = isinstance(error, ModuleNotFoundError) and error.name == module
            what = "is not installed" if missing else f"cannot be imported ({error})"
            raise InputError(
                f"this needs the package {module}, which {what}; "
                f"run: pip install 'segdeploy[{extra}]'"
            ) from error
    if imported is None:
        raise ValueError("require() needs the name of a module")
    return imported


def versions(*distributions: str) -> dict[str, str]:
    """Return the versions of segdeploy and the named distributions, for a file's provenance."""
    found = {name: installed_version(name) for name in ("segdeploy", *distributions)}
    return {name: version for name, version in found.items() if version is not None}


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution or of its `-gpu` variant; None if neither exists."""
    for name in (distribution, f"{distribution}-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
