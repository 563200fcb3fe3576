"""Deserialization of an engine that passed the compatibility check."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from segdeploy.engine.bindings import Bindings
from segdeploy.engine.manifest import Manifest
from segdeploy.errors import InputError


def open_engine(bindings: Bindings, manifest: Manifest, path: Path, plan: bytes) -> Any:
    """Deserialize a plan whose manifest was checked.

    The weights of a stripped engine are read from its parent, the ONNX file beside the engine.

    Raises:
        InputError: if TensorRT refuses the plan or weights, or the parent is missing or changed.
    """
    logger = bindings.log()
    runtime = bindings.usable(bindings.trt.Runtime(logger), logger, str(path))
    if manifest.options.get("version_compatible") is True:
        runtime.engine_host_code_allowed = True  # the plan contains its lean runtime
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


def _refit(bindings: Bindings, logger: Any, engine: Any, manifest: Manifest, path: Path) -> None:
    parent = path.with_name(manifest.parent or f"{path.name}.onnx")
    content = parent.read_bytes() if parent.is_file() else b""
    if hashlib.sha256(content).hexdigest() != manifest.parent_sha256:
        raise InputError(
            f"{path}: the stripped engine holds no weights; put {manifest.parent}, unchanged, "
            "beside the engine"
        )
    refitter = bindings.trt.Refitter(engine, logger)
    reader = bindings.trt.OnnxParserRefitter(refitter, logger)
    if not reader.refit_from_bytes(content, str(parent)) or not refitter.refit_cuda_engine():
        reason = "; ".join(logger.errors[:2]) or "no reason given"
        raise InputError(f"{path}: TensorRT cannot load the weights of {parent.name} ({reason})")
