"""Giving TensorRT the bytes of an engine that was admitted."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path
from typing import Any

from segdeploy.engine.bindings import Bindings
from segdeploy.engine.manifest import Manifest
from segdeploy.errors import InputError


def open_engine(bindings: Bindings, manifest: Manifest, path: Path, plan: bytes) -> Any:
    """Deserialise a plan whose manifest was checked; stripped weights come from its parent.

    Raises:
        InputError: if TensorRT refuses it, or the parent is not beside it.
    """
    logger = bindings.log()
    runtime = _runtime(bindings, logger, path)
    if manifest.options.get("version_compatible") is True:
        runtime.engine_host_code_allowed = True  # its lean runtime rides in the plan
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = "; ".join(logger.errors[:2]) or "no reason given"
        raise InputError(
            f"{path}: {bindings.name} {bindings.version} cannot open it ({reason}); `segdeploy "
            f"doctor` looks at the driver; else build it again: {manifest.rebuild()}"
        )
    if manifest.options.get("weights") == "stripped":
        _refit(bindings, logger, engine, manifest, path)
    return engine


def _runtime(bindings: Bindings, logger: Any, path: Path) -> Any:
    """A runtime that can be used.

    Where CUDA cannot start, TensorRT 10.15 to 11.4 give a pointer that is neither null nor valid:
    every use of the runtime around it, freeing it too, ends the process. The log says so before.

    Raises:
        InputError: with CUDA's reason.
    """
    runtime = bindings.trt.Runtime(logger)
    if logger.no_cuda and not bindings.is_rtx:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))  # it is never freed
        raise InputError(
            f"{path}: {bindings.name} {bindings.version} makes no runtime here ({logger.no_cuda}); "
            "`segdeploy doctor` looks at the driver"
        )
    return runtime


def _refit(bindings: Bindings, logger: Any, engine: Any, manifest: Manifest, path: Path) -> None:
    parent = path.with_name(manifest.parent or f"{path.name}.onnx")
    content = parent.read_bytes() if parent.is_file() else b""
    if hashlib.sha256(content).hexdigest() != manifest.parent_sha256:
        raise InputError(
            f"{path}: holds no weights; they come from {manifest.parent}, which must lie beside "
            "it, unchanged"
        )
    refitter = bindings.trt.Refitter(engine, logger)
    reader = bindings.trt.OnnxParserRefitter(refitter, logger)
    if not reader.refit_from_bytes(content, str(parent)) or not refitter.refit_cuda_engine():
        reason = "; ".join(logger.errors[:2]) or "no reason given"
        raise InputError(f"{path}: cannot be given the weights of {parent.name} ({reason})")
