"""segdeploy: dilated-convolution segmentation networks from PyTorch to TensorRT, with proof.

The functions here are those of the command line. Each is imported on first use, so that
`import segdeploy` loads neither torch nor onnx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segdeploy.adoption import adopt
    from segdeploy.benchmark.run import bench
    from segdeploy.calibrator.calibrating import calibrate
    from segdeploy.engine.build import build_engine
    from segdeploy.evaluation import evaluate
    from segdeploy.exporter.onnx_export import export
    from segdeploy.health import doctor
    from segdeploy.inspection import inspect
    from segdeploy.network import ModelSpec
    from segdeploy.optimization import optimize
    from segdeploy.runtime.predictor import load
    from segdeploy.self_test import selftest
    from segdeploy.serve.repository import serve_repo
    from segdeploy.shipping import deploy
    from segdeploy.training import train

__version__ = "0.1.0"

__all__ = [
    "ModelSpec",
    "adopt",
    "bench",
    "build_engine",
    "calibrate",
    "deploy",
    "doctor",
    "evaluate",
    "export",
    "inspect",
    "load",
    "optimize",
    "selftest",
    "serve_repo",
    "train",
]

_HOMES = {
    "ModelSpec": "segdeploy.network",
    "adopt": "segdeploy.adoption",
    "bench": "segdeploy.benchmark.run",
    "build_engine": "segdeploy.engine.build",
    "calibrate": "segdeploy.calibrator.calibrating",
    "deploy": "segdeploy.shipping",
    "doctor": "segdeploy.health",
    "evaluate": "segdeploy.evaluation",
    "export": "segdeploy.exporter.onnx_export",
    "inspect": "segdeploy.inspection",
    "load": "segdeploy.runtime.predictor",
    "optimize": "segdeploy.optimization",
    "selftest": "segdeploy.self_test",
    "serve_repo": "segdeploy.serve.repository",
    "train": "segdeploy.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'segdeploy' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
