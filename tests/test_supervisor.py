"""Graphs that loop, swallow memory or crash, and signals: every command ends in time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from . import hostile_graphs as hostile
from .conftest import ROOT

PROGRAM = [sys.executable, "-m", "segdeploy"]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and after how long, and what lies in its folders."""

    code: int
    out: str
    err: str
    seconds: float
    left: list[str]


def start(folder: Path, *words: object) -> subprocess.Popen[str]:
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*PROGRAM, *map(str, words)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], folder: Path, since: float) -> Ended:
    out, err = process.communicate(timeout=120)
    seconds = time.monotonic() - since
    left = [path.name for path in (folder / "tmp").iterdir()]
    left += [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return Ended(process.returncode, out, err, seconds, left)


def run(folder: Path, *words: object) -> Ended:
    since = time.monotonic()
    return ended(start(folder, *words), folder, since)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(path)
    return path


def check_refused(found: Ended, *words: str) -> None:
    assert found.code == 2, found
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert "Traceback" not in found.err
    for word in words:
        assert word in found.err
    assert found.left == []


def test_supervisor_a_loop_without_end_is_ended(tmp_path: Path, image: Path) -> None:
    graph = hostile.write(hostile.endless(is_written=False), tmp_path / "loop.onnx")
    out = ("-o", tmp_path / "o.png")
    found = run(tmp_path, "predict", graph, image, *out, "--timeout", "2")
    check_refused(found, f"{graph}: made no progress in 2 s and was stopped; raise the limit")
    assert found.seconds < 15
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize("kind", ["computed", "if"])
def test_supervisor_memory_that_is_asked_for_at_run_time_is_bounded(
    kind: str, tmp_path: Path, image: Path
) -> None:
    graph = hostile.write(hostile.greedy(kind), tmp_path / "large.onnx")
    out = ("-o", tmp_path / "o.png")
    found = run(tmp_path, "predict", graph, image, *out, "--max-memory", "1.5")
    assert found.code == 2, found
    assert found.err.count("\n") == 1
    assert re.search(r"large\.onnx.* memory|cannot run the graph", found.err)
    assert found.left == []


@pytest.mark.parametrize("command", ["predict", "inspect", "optimize", "evaluate"])
@pytest.mark.parametrize(
    ("name", "model", "words"),
    [
        ("loop", lambda: hostile.endless(is_written=True), "loops 4,611,686,018,427,387,904 times"),
        ("large", lambda: hostile.greedy("written"), "would have 17,179,869,184 values"),
        ("nodes", lambda: hostile.many_nodes(250_000), "has more than 200,000 nodes"),
        ("nested", lambda: hostile.nested(24), "nests If, Loop or Scan more than 16 levels"),
    ],
)
def test_supervisor_what_can_be_read_off_a_graph_is_refused_by_every_command(
    name: str, model: object, words: str, command: str, tmp_path: Path, image: Path,
    dataset: Path, run_here: object,
) -> None:  # fmt: skip
    graph = hostile.write(model(), tmp_path / f"{name}.onnx")  # type: ignore[operator]
    rest = {
        "predict": (image, "-o", tmp_path / "o.png"),
        "inspect": (),
        "optimize": ("-o", tmp_path / "o.onnx"),
        "evaluate": ("--data", dataset),
    }[command]
    since = time.monotonic()
    ran = run_here(command, graph, *rest)  # type: ignore[operator]
    assert ran.code == 2, ran
    assert words in ran.err
    assert time.monotonic() - since < 30
    assert {path.name for path in tmp_path.iterdir()} == {graph.name, image.name}


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str]) -> object:
    from segdeploy.cli import main

    def call(*words: object) -> Ended:
        with pytest.raises(SystemExit) as exited:
            main([str(word) for word in words])
        seen = capsys.readouterr()
        return Ended(int(exited.value.code or 0), seen.out, seen.err, 0.0, [])

    return call


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_supervisor_a_signal_ends_a_run_that_never_returns(
    number: signal.Signals, tmp_path: Path, image: Path
) -> None:
    graph = hostile.write(hostile.endless(is_written=False), tmp_path / "loop.onnx")
    process = start(tmp_path, "predict", graph, image, "-o", tmp_path / "o.png")
    time.sleep(4)
    assert process.poll() is None
    since = time.monotonic()
    process.send_signal(number)
    found = ended(process, tmp_path, since)
    assert found.code == 130, found
    assert found.seconds < 2.5
    assert found.err == "error: interrupted; nothing was left half-written\n"
    assert found.left == []


@pytest.mark.parametrize("delay", [0.02, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_supervisor_ctrl_c_at_the_start_is_quiet(delay: float, tmp_path: Path) -> None:
    process = start(tmp_path, "export", "deeplabv3", "-o", tmp_path / "m.onnx")
    time.sleep(delay)
    since = time.monotonic()
    process.send_signal(signal.SIGINT)
    found = ended(process, tmp_path, since)
    # Before `program.main` runs, Python ends with a trace of its own.
    files = re.findall(r'File "([^"]+)"', found.err)
    ours = {Path(name).name for name in files if Path(name).is_relative_to(ROOT / "deploy")}
    is_early = bool(files) and ours <= {"__init__.py", "__main__.py", "program.py"}
    assert "Traceback" not in found.err or is_early
    assert found.code in (130, -signal.SIGINT, 1 if is_early else 130)
    assert found.seconds < 2.5
    assert found.left == []
    assert not (tmp_path / "m.onnx").exists()


def test_supervisor_a_killed_parent_takes_its_child_along(tmp_path: Path, image: Path) -> None:
    graph = hostile.write(hostile.endless(is_written=False), tmp_path / "loop.onnx")
    process = start(tmp_path, "predict", graph, image, "-o", tmp_path / "o.png")
    time.sleep(3)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate(timeout=30)
    for _ in range(50):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"process {child} goes on")


def test_supervisor_a_killed_bench_takes_its_workers_along(
    tmp_path: Path, graph: Path, dataset: Path
) -> None:
    common = ("--reference", graph, "--data", dataset, "-q")
    process = start(tmp_path, "bench", graph, *common, "--seconds", "60")
    deadline = time.monotonic() + 60
    while len(workers := family(process.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) >= 3  # the parent, the child, and a worker
    process.kill()
    process.communicate(timeout=30)
    while any(Path(f"/proc/{one}").exists() for one in workers[1:]):
        assert time.monotonic() < deadline + 10
        time.sleep(0.1)


def family(process: int) -> list[int]:
    from segdeploy.supervisor import _family

    return _family(process)


def test_supervisor_a_reader_that_has_read_enough(tmp_path: Path) -> None:
    command = f"{sys.executable} -m segdeploy models 2>{tmp_path / 'err'} | head -1"
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0
    assert ran.stdout.count("\n") == 1
    assert (tmp_path / "err").read_text() == ""


@pytest.mark.parametrize("reader", ["true", "head -c1"])
@pytest.mark.parametrize("words", ["models --json", "doctor", "--help"])
def test_supervisor_a_pipe_that_is_closed_early(words: str, reader: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m segdeploy {words} 2>{tmp_path / 'err'} | {reader}"
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0
    assert (tmp_path / "err").read_text() == ""


def test_supervisor_signals_that_are_ignored_stay_so(tmp_path: Path, image: Path) -> None:
    """As `nohup` has it: the work outlives its terminal."""
    graph = hostile.write(hostile.endless(is_written=False), tmp_path / "loop.onnx")
    process = subprocess.Popen(
        [*PROGRAM, "predict", graph, image, "-o", tmp_path / "o.png", "--timeout", "5"],
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    time.sleep(2)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "made no progress in 5 s" in err


def test_supervisor_time_in_which_a_command_is_stopped_does_not_count(
    tmp_path: Path, image: Path
) -> None:
    """Ctrl-Z, and `fg` later."""
    graph = hostile.write(hostile.endless(is_written=False), tmp_path / "loop.onnx")
    process = subprocess.Popen(
        [*PROGRAM, "predict", graph, image, "-o", tmp_path / "o.png", "--timeout", "6"],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    time.sleep(3)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(7)
    os.killpg(process.pid, signal.SIGCONT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_supervisor_a_crash_in_a_library_is_one_line(tmp_path: Path) -> None:
    program = (
        "import os, signal\n"
        "from segdeploy.supervisor import supervised\n"
        "raise SystemExit(supervised(lambda: os.kill(os.getpid(), signal.SIGSEGV)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: the process was killed by SIGSEGV: a library crashed")
    assert ran.stderr.count("\n") == 1


def test_supervisor_memory_that_is_not_there_is_one_line(
    tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch, run_here: object
) -> None:
    from segdeploy.commands import predict

    def read(path: Path) -> None:
        np.empty(1 << 60, np.uint8)

    monkeypatch.setattr(predict, "check_regular", read)
    ran = run_here("predict", graph, "x.png", "-o", tmp_path / "o.png")  # type: ignore[operator]
    assert ran.code == 2
    assert ran.err.startswith("error: out of memory (Unable to allocate 1.00 EiB")
    assert ran.err.count("\n") == 1
