"""Every TensorRT symbol and signature that we call exists in NVIDIA's real bindings.

TensorRT's own libraries need not be here: the bindings of 10 and 11 are imported over stand-in
libraries that export the C functions they are linked to, and their classes are asked. RTX is asked
as it is. What is called is read from our sources, so that a new call is checked without a new test.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import skip

ROOT = Path(__file__).parent.parent
MEMBERS = Path(__file__).with_name("tensorrt_members.py")
STAND_INS = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
C_FUNCTIONS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getPluginRegistry"),
    *("getBuilderPluginRegistry", "getNvOnnxParserVersion", "initLibNvInferPlugins"),
)
# Our files, and of which class the objects are that they call, by how they are written.
CALLERS = {
    "deploy/engine/bindings.py": {},
    "deploy/engine/compiling.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "config": "IBuilderConfig",
        "error": "ParserError",
        "shapes": "IOptimizationProfile",
        "image": "ITensor",
    },
    "deploy/engine/network_proof.py": {
        "network": "INetworkDefinition",
        "layer": "IConvolutionLayer",
        "tensor": "ITensor",
    },
    "deploy/engine/timing_cache.py": {"config": "IBuilderConfig", "cache": "ITimingCache"},
    "deploy/engine/deserialization.py": {
        "runtime": "Runtime",
        "refitter": "Refitter",
        "reader": "OnnxParserRefitter",
    },
    "deploy/runtime/tensorrt_session.py": {
        "engine": "ICudaEngine",
        "self._engine": "ICudaEngine",
        "context": "IExecutionContext",
        "self._context": "IExecutionContext",
        "config": "IRuntimeConfig",
        "self.cache": "IRuntimeCache",
    },
}
# Called where `Bindings.is_rtx` says so alone, or says not.
ONLY_RTX = {
    ("ComputeCapability", "__members__"), ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
    ("IBuilderConfig", "num_compute_capabilities"), ("IBuilderConfig", "set_compute_capability"),
    ("ICudaEngine", "create_runtime_config"), ("IRuntimeCache", "deserialize"),
    ("IRuntimeCache", "serialize"), ("IRuntimeConfig", "create_runtime_cache"),
    ("IRuntimeConfig", "cuda_graph_strategy"), ("IRuntimeConfig", "set_runtime_cache"),
}  # fmt: skip


def members_of(module: str, *libraries: Path, path: Path | None = None) -> dict:
    environment = {"PYTHONPATH": str(path)} if path else None
    ran = subprocess.run(
        [sys.executable, MEMBERS, module, *libraries],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    described: dict = json.loads(ran.stdout)
    return described


@pytest.fixture(scope="module", params=[10, 11])
def tensorrt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    major = request.param
    path = Path(sys.prefix, f"tensorrt-{major}")
    if not path.is_dir():
        skip(f"the bindings of TensorRT {major} are not at {path}; `make test` puts them there")
    folder = tmp_path_factory.mktemp(f"stand-ins-{major}")
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in C_FUNCTIONS))
    libraries = []
    for name in STAND_INS:
        library = folder / f"{name}.so.{major}"
        soname = f"-Wl,-soname,{library.name}"
        subprocess.run(["cc", "-shared", "-fPIC", soname, "-o", library, source], check=True)
        libraries.append(library)
    described = members_of("tensorrt_bindings", *libraries, path=path)
    assert described["__version__"].startswith(f"{major}.")
    return described


@pytest.fixture(scope="module")
def rtx(tensorrt_rtx: object) -> dict:
    return members_of("tensorrt_rtx")


def uses() -> set[tuple[str, str, int | None]]:
    """What our sources use: class (or module), member, and how many arguments a call gives."""
    found: set[tuple[str, str, int | None]] = set()
    for file, objects in CALLERS.items():
        tree = ast.parse((ROOT / file).read_text())
        calls = {
            id(node.func): len(node.args) + len(node.keywords)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and not any(isinstance(a, ast.Starred) for a in node.args)
        }
        seen = set()
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            owner = ast.unparse(node.value)
            called = calls.get(id(node))
            if owner == "trt" or owner.endswith(".trt"):
                found.add(("__module__", node.attr, None))
                if called is not None:  # an object is made
                    found.add((node.attr, "__init__", called))
            elif owner.startswith("trt.") or ".trt." in owner:
                if node.attr == "__init__" and called:
                    called -= 1  # self
                found.add((owner.split("trt.")[1], node.attr, called))
            elif owner in objects:
                seen.add(owner)
                found.add((objects[owner], node.attr, called))
        assert seen == set(objects), f"{file}: no longer calls {set(objects) - seen}"
    return found


def check(described: dict, *, is_rtx: bool) -> int:
    checked = 0
    for owner, member, called in sorted(uses(), key=str):
        if (owner, member) in ONLY_RTX and not is_rtx:
            continue
        if owner == "__module__":
            rtx_classes = {one for one, _ in ONLY_RTX} - {"IBuilderConfig", "ICudaEngine"}
            if member in rtx_classes and not is_rtx:
                continue
            assert member in described["__module__"] or member == "__version__", member
        else:
            kind = owner.split(".")[0]
            if "." in owner:  # ILogger.Severity.ERROR
                inner = owner.split(".")[1]
                assert inner in described[kind], owner
                checked += 1
                continue
            assert member in {*described[kind], "__members__", "__class__"}, f"{owner}.{member}"
            fits = described[kind].get(member) or []
            if called is not None and fits:
                assert any(low <= called <= most for low, most in fits), (
                    f"{owner}.{member} is called with {called} arguments; it takes {fits}"
                )
        checked += 1
    return checked


def test_tensorrt_api_tensorrt_10_and_11_have_what_we_call(tensorrt: dict) -> None:
    assert check(tensorrt, is_rtx=False) > 60


def test_tensorrt_api_rtx_has_what_we_call(rtx: dict) -> None:
    assert check(rtx, is_rtx=True) > 70


def test_tensorrt_api_what_we_override_is_there_to_be_overridden(tensorrt: dict) -> None:
    assert tensorrt["ILogger"]["log"] == [[2, 2]]
    monitor = tensorrt["IProgressMonitor"]
    expected = {"phase_start": 3, "phase_finish": 1, "step_complete": 2}
    assert {name: monitor[name][0][1] for name in expected} == expected


def test_tensorrt_api_a_call_that_does_not_exist_is_found(rtx: dict) -> None:
    wrong = json.loads(json.dumps(rtx))
    del wrong["IExecutionContext"]["execute_async_v3"]
    with pytest.raises(AssertionError, match=r"IExecutionContext\.execute_async_v3"):
        check(wrong, is_rtx=True)
    wrong = json.loads(json.dumps(rtx))
    wrong["IExecutionContext"]["set_input_shape"] = [[3, 3]]
    with pytest.raises(AssertionError, match="set_input_shape is called with 2 arguments"):
        check(wrong, is_rtx=True)


LEAN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tensorrt_lean_bindings as trt
from segdeploy.engine.bindings import Bindings
from segdeploy.errors import InputError
bindings = Bindings("tensorrt", trt)
for _ in range(2):
    logger = bindings.log()
    try:
        bindings.usable(trt.Runtime(logger), logger, "m.engine")
    except InputError as error:
        print(error)
"""


@pytest.mark.parametrize(("family", "version"), [(10, "10.16.1.11"), (11, "11.4.0.106")])
def test_tensorrt_api_where_cuda_cannot_start_no_runtime_is_used(family: int, version: str) -> None:
    """The real lean runtime: using or freeing what it gives there would end the process."""
    folder = Path(sys.prefix) / f"tensorrt-lean-{family}"
    if not folder.is_dir():
        skip("TensorRT's lean runtimes are not in the environment; make .venv/.ready puts them")
    if Path("/dev/nvidia0").exists():
        pytest.skip("CUDA starts here")
    ran = subprocess.run([sys.executable, "-c", LEAN, folder], capture_output=True, text=True)
    assert ran.returncode == 0, ran
    lines = ran.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"m.engine: tensorrt {version} cannot start CUDA here (")
        assert "CUDA initialization failure" in line
