"""`doctor`: each backend is run, and what fails is told with what mends it."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import segdeploy
from segdeploy.commands import doctor
from segdeploy.device import current_gpu


def states() -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in segdeploy.doctor()}


def test_doctor_this_machine_is_well(run, tensorrt_rtx: object) -> None:
    found = states()
    backends = ("onnxruntime", "openvino", "PyTorch (training, export)")
    for what in ("Python", "base packages", *backends):
        assert found[what].state == "ok", found[what]
    assert "builds for sm75" in found["tensorrt-rtx (building)"].detail
    if current_gpu() is None:
        assert found["GPU"].state == "absent"
        assert found["tensorrt"].remedy == "pip install 'segdeploy[gpu]'"
    ran = run("doctor")
    assert ran.code == 0
    assert "onnxruntime" in ran.out
    described = json.loads(run("doctor", "--json").out)
    assert described["packages"]["onnx"]


def test_doctor_a_backend_that_computes_wrongly_is_broken(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(doctor, "_onnxruntime", lambda: doctor._expect([1.0]))
    ran = run("doctor")
    assert ran.code == 1
    assert (
        "broken: onnxruntime: RuntimeError: a dilated convolution of ones gives a wrong result"
        in ran.err
    )


def test_doctor_a_package_that_cannot_be_imported_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def torchvision_of_another_torch() -> str:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(doctor, "_torch", torchvision_of_another_torch)
    found = states()["PyTorch (training, export)"]
    assert found.state == "broken"
    assert found.detail == "RuntimeError: operator torchvision::nms does not exist"


def test_doctor_without_onnxruntime_the_default_path_is_broken() -> None:
    """In a process where the package cannot be found, as on a machine that lacks it."""
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from segdeploy.cli import main; main(['doctor'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "broken: onnxruntime: not installed; pip install 'segdeploy[cpu]'" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_doctor_a_torch_that_lacks_its_libraries_breaks_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    ran = subprocess.run(
        [sys.executable, "-m", "segdeploy", "doctor"], capture_output=True, text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert ran.returncode == 1, ran.stderr
    assert "OSError: libcudart.so.13: cannot open" in ran.stderr
    assert "ok      onnxruntime" in ran.stdout


def test_doctor_two_onnxruntimes_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    true_version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: "1.31.1" if name == "onnxruntime-gpu" else true_version(name),
    )
    found = states()["onnxruntime, twice"]
    assert found.state == "broken"
    assert "and onnxruntime-gpu 1.31.1 overwrite each other" in found.detail


def test_doctor_a_driver_that_does_not_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "current_gpu", lambda: None)
    monkeypatch.setattr(doctor, "Path", lambda _: tmp_path)
    (tmp_path / "nvidia0").touch()
    assert doctor._gpu().state == "broken"
    assert "--gpus all" in doctor._gpu().remedy
