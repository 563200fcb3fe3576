"""Real files that many tests read, made once a session: a data set, a checkpoint, graphs."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings

import segdeploy
from segdeploy.cli import main
from segdeploy.contract import Contract
from segdeploy.device import current_gpu
from segdeploy.model_spec import ModelSpec
from segdeploy.models import scenes

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("SEGDEPLOY_SHARED", ROOT.parent / "shared"))
SIZE = (48, 64)
CONTRACT = Contract(
    architecture="deeplabv3",
    classes=("road", "sky"),
    palette=((1, 2, 3), (4, 5, 6)),
    ignore_index=255,
    size=(360, 480),
    arguments={"width": 16},
    provenance={"torch": "2"},
)
# The longest first: a long file that begins last keeps one process alone at the end.
LONGEST = (
    *("test_docs.py", "test_cpp.py", "test_foreign_networks.py", "test_deployed_graphs.py"),
    *("test_supervisor.py", "test_crash_safety.py", "test_camvid.py", "test_trust.py"),
    *("test_page.py", "test_bench.py", "test_ledger.py", "test_recording.py", "test_cli.py"),
    *("test_deploy.py", "test_engine.py", "test_fuzz.py", "test_fold_linear_head.py"),
)

# The same examples each time, and no verdict on how busy the machine is.
settings.register_profile(
    "tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


def pytest_configure() -> None:
    """Let Ctrl-C reach the programs that tests start, where the shell had it ignored (`make &`)."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none; begin with the longest files."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and current_gpu() is None:
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]


def skip(reason: str) -> None:
    """Skip a test that cannot run here, unless SEGDEPLOY_SKIP_NOTHING says that it must."""
    if os.environ.get("SEGDEPLOY_SKIP_NOTHING"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def tensorrt_rtx() -> ModuleType:
    """TensorRT-RTX's bindings, where they are installed."""
    try:
        return importlib.import_module("tensorrt_rtx")
    except ImportError as error:
        skip(f"TensorRT-RTX cannot be imported ({error}); install the extra rtx")
        raise


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated scenes: 16 frames to train, 4 to validate, 96x128."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    list(scenes.write_scenes(root, {"train": 16, "val": 4}, (96, 128)))
    return root


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the session's checkpoint and graphs."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="session")
def checkpoint(files: Path, dataset: Path) -> Path:
    """A small DeepLabV3, trained for two epochs: width 8, stride 2, 48x64."""
    spec = ModelSpec("deeplabv3", arguments={"width": 8, "stride": 2}, size=SIZE)
    out = files / "model.safetensors"
    segdeploy.train(spec, dataset, out, epochs=2, batch_size=4, workers=0)
    return out


@pytest.fixture(scope="session")
def graph(files: Path, checkpoint: Path) -> Path:
    """The checkpoint, exported and optimized."""
    return segdeploy.export(checkpoint, files / "model.onnx").path


@pytest.fixture(scope="session")
def dynamic_graph(files: Path, checkpoint: Path) -> Path:
    """The checkpoint, exported with dynamic batch, height and width."""
    return segdeploy.export(checkpoint, files / "dynamic.onnx", dynamic=True).path


@pytest.fixture(scope="session")
def int8_graph(files: Path, graph: Path, dataset: Path) -> Path:
    """The exported graph, quantized."""
    return segdeploy.calibrate(graph, dataset, files / "model.int8.onnx").path


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The CamVid data set, where it lies beside the checkout."""
    root = SHARED / "data" / "camvid"
    if not root.is_dir():
        skip(f"CamVid is not at {root}; set SEGDEPLOY_SHARED to the folder that holds data/")
    return root


@pytest.fixture(scope="session")
def camvid_weights() -> Path:
    """torchvision's network trained on CamVid, where it lies beside the checkout."""
    path = SHARED / "weights" / "camvid-deeplabv3_mobilenet_v3_large.pth"
    if not path.is_file():
        skip(f"the CamVid weights are not at {path}; set SEGDEPLOY_SHARED")
    return path


@pytest.fixture(scope="session")
def camvid_graph(files: Path, camvid: Path, camvid_weights: Path) -> Path:
    """torchvision's network trained on CamVid, exported at 360x480."""
    spec = ModelSpec("deeplabv3_mobilenet_v3_large", weights=camvid_weights, size=(360, 480))
    return segdeploy.export(spec, files / "camvid.onnx", data=camvid).path


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command line in this process."""

    def call(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as exited:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(int(exited.value.code or 0), captured.out, captured.err)

    return call


def check_one_line(ran: Ran, *parts: str) -> None:
    """A user's mistake: exit code 2, nothing on stdout, one line on stderr that holds `parts`.

    A note on the assumed preprocessing of a foreign network may precede the line.
    """
    assert ran.code == 2, ran
    assert ran.out == ""
    (line,) = [one for one in ran.err.splitlines() if ": assumed how its images" not in one]
    assert line.startswith("error: ")
    assert "Traceback" not in ran.err
    for part in parts:
        assert part in line, ran.err
