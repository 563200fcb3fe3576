"""Giving TensorRT the bytes of an engine that was admitted."""

from __future__ import annotations

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
    runtime = bindings.usable(bindings.trt.Runtime(logger), logger, str(path))
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
