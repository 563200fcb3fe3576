"""Two processes train, validate and fail as one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import segdeploy
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import ModelInputError

GROUP = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
PROGRAM = """
import json, os, pathlib, sys, segdeploy
from segdeploy.model_spec import ModelSpec
sys.path.insert(0, {root!r})
report = segdeploy.train(
    ModelSpec("tests.{network}", size=(32, 48)), {data!r}, {out!r}, epochs=2,
    batch_size={batch}, workers=0, validate_every=1, augmentation={{"scale": (1.0, 1.0)}},
)
said = pathlib.Path({out!r}).with_name(os.environ.get("RANK", "0") + ".json")
said.write_text(json.dumps([report.images, report.miou, report.loss]))
"""


def test_distributed_two_processes_train_what_one_does(dataset: Path, tmp_path: Path) -> None:
    root = str(Path(__file__).parent.parent)
    results = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        program = folder / "program.py"
        out = str(folder / "m.safetensors")
        program.write_text(
            PROGRAM.format(
                root=root, data=str(dataset), out=out, batch=4, network="test_resume:plain"
            )
        )
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *(launch if processes > 1 else []), str(program)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
        assert ran.returncode == 0, ran.stderr
        lines = [json.loads(path.read_text()) for path in folder.glob("*.json")]
        assert len(lines) == processes
        assert all(line == lines[0] for line in lines)
        results[processes] = (load_file(out), lines[0])
    one, two = results[1], results[2]
    assert one[1][0] == two[1][0] == 32
    assert two[1][2] == pytest.approx(one[1][2], rel=1e-3)
    for key, value in one[0].items():
        torch.testing.assert_close(two[0][key], value, rtol=1e-3, atol=1e-4, msg=key)
    for epoch, miou in one[1][1].items():
        assert two[1][1][epoch] == pytest.approx(miou, abs=0.01)


def test_distributed_a_batch_that_two_processes_cannot_share(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segdeploy.models.augmentation import Augment, Augmentation
    from segdeploy.models.batches import epoch_loader

    for name, value in GROUP.items():
        monkeypatch.setenv(name, value)
    augment = Augment(Augmentation((8, 8)), (8, 8), (0.5, 0.5, 0.5), 255)
    frames = open_dataset(dataset).frames("train")
    with pytest.raises(ModelInputError, match="--batch-size 5 cannot be divided among 2 processes"):
        epoch_loader(frames, augment, batch_size=5, seed=0, epoch=0, workers=0)


def with_norm(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, num_classes, 1)
    )


def test_distributed_two_processes_validate_the_network_that_is_saved(
    dataset: Path, tmp_path: Path
) -> None:
    root = str(Path(__file__).parent.parent)
    program, out = tmp_path / "program.py", tmp_path / "m.safetensors"
    network = "test_distributed:with_norm"
    program.write_text(
        PROGRAM.format(root=root, data=str(dataset), out=str(out), batch=4, network=network)
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    ran = subprocess.run(
        [sys.executable, *launch], capture_output=True, text=True, check=False, cwd=root
    )
    assert ran.returncode == 0, ran.stderr
    _, miou, _ = json.loads((tmp_path / "0.json").read_text())
    saved = ModelSpec(f"tests.{network}", weights=out)
    assert segdeploy.evaluate(saved, dataset).miou == pytest.approx(max(miou.values()), abs=1e-9)


def test_distributed_one_frame_is_not_shared_by_two_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from segdeploy.models.batches import _Shares

    for name, value in GROUP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelInputError, match="1 frames are too few for 2 processes"):
        _Shares(1, 4, 0, 0)
    assert [len(share) for share in _Shares(3, 4, 0, 0)] == [1]


ENDING = """
import os, sys
sys.path.insert(0, {root!r})
import segdeploy
from segdeploy.model_spec import ModelSpec

def leave(step):
    if os.environ["RANK"] == "1":
        os._exit(7)

try:
    segdeploy.train(
        ModelSpec("tests.test_resume:plain", size=(32, 48)), {data!r}, {out!r}, epochs=1,
        batch_size=4, workers=0, on_step=leave,
    )
except Exception as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


def test_distributed_a_process_whose_partner_has_ended_says_so(
    dataset: Path, tmp_path: Path
) -> None:
    root = str(Path(__file__).parent.parent)
    program, out = tmp_path / "program.py", tmp_path / "m.safetensors"
    program.write_text(ENDING.format(root=root, data=str(dataset), out=str(out)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, str(program)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, "RANK": rank},
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [1, 7], said
    assert "InputError: training: another process of the group has ended" in said[0]
    assert not out.exists()
