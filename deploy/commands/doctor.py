"""`segdeploy doctor`: report what works on this machine, and why the rest does not."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.device import current_gpu, host_platform
from segdeploy.errors import InputError
from segdeploy.models.errors import first_line
from segdeploy.packages import EXTRAS, installed_version
from segdeploy.runtime.native import LIBRARY_VARIABLE, native_library

_OLDEST = (3, 10)


@dataclass(frozen=True)
class Finding:
    """The result of one check: its state (`ok`, `absent` if optional, `broken`) and a remedy."""

    what: str
    state: str
    detail: str
    remedy: str = ""


def doctor() -> list[Finding]:
    """Check Python, the packages and the GPU, and run each backend on a tiny graph.

    A missing requirement of the default path is `broken`. The default path reads ONNX files and
    runs them in ONNX Runtime on the CPU.
    """
    findings = [
        Finding(
            "Python",
            "ok" if sys.version_info >= _OLDEST else "broken",
            f"{platform.python_version()}, {host_platform()}",
            "" if sys.version_info >= _OLDEST else "install Python 3.10 or later",
        ),
        _base(),
        _two_runtimes(),
        _looked("onnxruntime", "onnxruntime", _onnxruntime, needed=True),
        _looked("PyTorch (training, export)", "torch", _torch),
        _looked("openvino", "openvino", _openvino),
        _looked("tensorrt-rtx (building)", "tensorrt_rtx", _rtx),
        _looked("tensorrt", "tensorrt", _tensorrt),
        _gpu(),
        *_providers(),
        _engines(),
        _library(),
    ]
    return [finding for finding in findings if finding is not None]


def _looked(what: str, module: str, check: Callable[[], str], *, needed: bool = False) -> Finding:
    install = f"pip install 'segdeploy[{EXTRAS[module]}]'"
    try:
        return Finding(what, "ok", check())
    except ModuleNotFoundError as error:
        if error.name == module:
            return Finding(what, "broken" if needed else "absent", "not installed", install)
        return Finding(what, "broken", f"needs the package {error.name}", install)
    except Exception as error:  # an incomplete package may raise any exception
        reason = f"{type(error).__name__}: {first_line(error)}"
        return Finding(what, "broken", reason, f"{install} in a fresh environment")


def _base() -> Finding:
    """Check the packages that every command needs."""
    for name in ("numpy", "PIL", "onnx", "onnx_ir", "safetensors", "rich", "jinja2"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken package may raise any exception
            reason = f"{name}: {type(error).__name__}: {first_line(error)}"
            return Finding(
                "base packages", "broken", reason, "pip install --force-reinstall segdeploy"
            )
    return Finding("base packages", "ok", "numpy, Pillow, onnx, onnx-ir, safetensors, rich, jinja2")


def _two_runtimes() -> Finding | None:
    both = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            both.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if len(both) < 2:
        return None
    return Finding(
        "onnxruntime, twice",
        "broken",
        f"{' and '.join(both)} overwrite each other",
        "pip uninstall both, and install one: 'segdeploy[cpu]' or 'segdeploy[gpu]'",
    )


def _tiny() -> bytes:
    from onnx.parser import parse_model

    model = parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,1,4,4] image) => (float[1,1,4,4] out)
        <float[1,1,3,3] ones = {1,1,1,1,1,1,1,1,1}> {
            out = Conv<pads = [2,2,2,2], dilations = [2,2]>(image, ones)
        }"""
    )
    content: bytes = model.SerializeToString()
    return content


def _ones() -> Any:
    import numpy as np

    return np.ones((1, 1, 4, 4), np.float32)


def _expect(output: object) -> None:
    import numpy as np

    found = np.asarray(output)
    if found.shape != (1, 1, 4, 4) or not np.array_equal(found, np.full((1, 1, 4, 4), 4.0)):
        raise RuntimeError("a dilated convolution of ones gives a wrong result")


def _onnxruntime() -> str:
    import onnxruntime

    session = onnxruntime.InferenceSession(_tiny(), providers=["CPUExecutionProvider"])
    _expect(session.run(None, {"image": _ones()})[0])
    providers = [p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers()]
    return f"{onnxruntime.__version__}, with {', '.join(providers)}"


def _torch() -> str:
    import torch
    import torchvision

    # Fails if torchvision was built for another version of torch.
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    cuda = torch.version.cuda
    seen = "sees the GPU" if torch.cuda.is_available() else "sees no GPU"
    return f"{torch.__version__} with torchvision {torchvision.__version__}, CUDA {cuda}, {seen}"


def _openvino() -> str:
    import openvino

    compiled = openvino.Core().compile_model(openvino.Core().read_model(_tiny(), b""), "CPU")
    _expect(compiled([_ones()])[0])
    return str(openvino.__version__)


def _rtx() -> str:
    import onnx
    import tensorrt_rtx  # noqa: F401 - a missing package is reported as absent, not broken

    from segdeploy.engine.bindings import open_bindings
    from segdeploy.engine.compiling import build_plan
    from segdeploy.engine.options import BuildOptions

    bindings = open_bindings("tensorrt-rtx")
    known = bindings.compute_capabilities()
    graph = onnx.ModelProto.FromString(_tiny())
    build_plan(bindings, graph, "a tiny graph", BuildOptions(targets=(next(iter(known)),)))
    return f"{bindings.version}, builds for {', '.join(known)}"


def _tensorrt() -> str:
    import tensorrt

    from segdeploy.engine.bindings import open_bindings

    bindings = open_bindings("tensorrt")
    logger = bindings.log()
    bindings.usable(tensorrt.Builder(logger), logger, "the builder")
    return bindings.version


def _gpu() -> Finding:
    gpu = current_gpu()
    if gpu is not None:
        driver = f", driver {gpu.driver}" if gpu.driver else ""
        return Finding("GPU", "ok", f"{gpu.name}, {gpu.compute_capability}{driver}")
    devices = list(Path("/dev").glob("nvidia[0-9]*"))
    if devices:
        return Finding(
            "GPU",
            "broken",
            f"{len(devices)} NVIDIA device found, but its driver does not respond",
            "run nvidia-smi to see why; install the driver, or start the container with --gpus all",
        )
    return Finding("GPU", "absent", "none; engines can be built here, but run only elsewhere")


def _providers() -> list[Finding]:
    """Try each GPU provider that is compiled into ONNX Runtime, since it may not load."""
    try:
        import onnxruntime

        from segdeploy.runtime.session import PROVIDERS
    except Exception:  # reported by the check of onnxruntime
        return []
    findings = []
    for name, provider in PROVIDERS.items():
        if provider == PROVIDERS["onnxruntime"]:
            continue
        if provider not in onnxruntime.get_available_providers():
            continue
        try:
            session = onnxruntime.InferenceSession(_tiny(), providers=[provider])
            loaded = session.get_providers()[0] == provider
            state, detail = (
                ("ok", "runs") if loaded else ("absent", "is compiled in, but cannot be loaded")
            )
        except Exception as error:  # the provider's libraries may raise any exception
            state, detail = "absent", first_line(error)
        remedy = "" if state == "ok" else "needs a GPU, CUDA and cuDNN (PyTorch's wheels will do)"
        findings.append(Finding(name, state, detail, remedy))
    return findings


def _engines() -> Finding:
    """Check whether engines can run, which needs a GPU, PyTorch with CUDA, and TensorRT."""
    what = "running engines"
    if current_gpu() is None:
        return Finding(what, "absent", "needs a GPU")
    try:
        import torch

        if not torch.cuda.is_available():
            return Finding(what, "broken", "PyTorch sees no GPU", "install PyTorch with CUDA")
    except Exception as error:  # reported by the check of PyTorch, too
        return Finding(what, "broken", f"needs PyTorch ({first_line(error)})",
                       f"pip install 'segdeploy[{EXTRAS['torch']}]'")  # fmt: skip
    found = [name for name in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(name)]
    if not found:
        return Finding(what, "absent", "no TensorRT is installed", "pip install 'segdeploy[gpu]'")
    return Finding(what, "ok", f"with {' and '.join(found)}")


def _library() -> Finding:
    """Check the optional C++ library, which performs preprocessing and postprocessing."""
    what = "C++ library"
    try:
        library = native_library()
    except InputError as error:
        return Finding(what, "broken", str(error), f"correct or unset {LIBRARY_VARIABLE}")
    if library is None:
        return Finding(what, "absent", "not installed in this version; numpy is used instead")
    return Finding(what, "ok", "performs preprocessing and postprocessing")


def toolchain() -> dict[str, str]:
    """Return the versions of the packages that write segdeploy's files."""
    names = ("segdeploy", "numpy", "onnx", "onnx-ir", "onnxscript", "safetensors")
    return {name: installed_version(name) or "not installed" for name in names}
