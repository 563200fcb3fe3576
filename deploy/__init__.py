"""Take dilated segmentation networks from PyTorch to TensorRT, and verify every step.

Every command of the command line is a function of this package. The functions are imported on
first use, so `import segdeploy` loads neither torch nor onnx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segdeploy.commands.adopt import adopt
    from segdeploy.commands.bench import bench
    from segdeploy.commands.build_engine import build_engine
    from segdeploy.commands.calibrate import calibrate
    from segdeploy.commands.contract import check_contract, check_predictions, infer_contract
    from segdeploy.commands.deploy import deploy
    from segdeploy.commands.doctor import doctor
    from segdeploy.commands.evaluate import evaluate
    from segdeploy.commands.export import export
    from segdeploy.commands.inspect import inspect
    from segdeploy.commands.optimize import optimize
    from segdeploy.commands.self_test import self_test
    from segdeploy.commands.serve_repo import serve_repo
    from segdeploy.commands.train import train
    from segdeploy.model_spec import ModelSpec
    from segdeploy.runtime.inference_options import InferenceOptions
    from segdeploy.runtime.predictor import load

__version__ = "0.1.0"

__all__ = [
    "InferenceOptions",
    "ModelSpec",
    "adopt",
    "bench",
    "build_engine",
    "calibrate",
    "check_contract",
    "check_predictions",
    "deploy",
    "doctor",
    "evaluate",
    "export",
    "infer_contract",
    "inspect",
    "load",
    "optimize",
    "self_test",
    "serve_repo",
    "train",
]

_HOMES = {
    "InferenceOptions": "segdeploy.runtime.inference_options",
    "ModelSpec": "segdeploy.model_spec",
    "adopt": "segdeploy.commands.adopt",
    "bench": "segdeploy.commands.bench",
    "build_engine": "segdeploy.commands.build_engine",
    "calibrate": "segdeploy.commands.calibrate",
    "check_contract": "segdeploy.commands.contract",
    "check_predictions": "segdeploy.commands.contract",
    "infer_contract": "segdeploy.commands.contract",
    "deploy": "segdeploy.commands.deploy",
    "doctor": "segdeploy.commands.doctor",
    "evaluate": "segdeploy.commands.evaluate",
    "export": "segdeploy.commands.export",
    "inspect": "segdeploy.commands.inspect",
    "load": "segdeploy.runtime.predictor",
    "optimize": "segdeploy.commands.optimize",
    "self_test": "segdeploy.commands.self_test",
    "serve_repo": "segdeploy.commands.serve_repo",
    "train": "segdeploy.commands.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'segdeploy' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
