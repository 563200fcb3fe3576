"""Interrupted, resumed, validated, distributed: training is the same training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import segdeploy
from segdeploy.errors import InputError
from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import ModelInputError
from segdeploy.network import ModelSpec

SMALL = ModelSpec("deeplabv3", arguments={"width": 4, "stride": 4}, size=(32, 48))
SETTINGS = {"epochs": 4, "batch_size": 4, "workers": 0, "augmentation": {"rotation": 15.0}}


class Dropping(nn.Module):
    """A network with dropout and no BatchNorm: equal in one process and in two."""

    def __init__(self, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=2, dilation=2)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv2d(6, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.dropout(self.conv(x).relu()))


def dropping(num_classes: int) -> nn.Module:
    return Dropping(num_classes, 0.5)


def plain(num_classes: int) -> nn.Module:
    return Dropping(num_classes)


def interrupt_in(epoch: int):
    def on_step(step) -> None:
        if step.epoch == epoch and step.index == 1:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize("schedule", ["one-cycle", "poly"])
@pytest.mark.parametrize(
    "spec", [SMALL, ModelSpec(f"{__name__}:dropping", size=(32, 48))], ids=["norm", "dropout"]
)
def test_interrupted_and_resumed_gives_the_same_weights(
    spec: ModelSpec, schedule: str, dataset: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    options = {**SETTINGS, "schedule": schedule}
    expected = segdeploy.train(spec, dataset, whole, **options)
    with pytest.raises(KeyboardInterrupt):
        segdeploy.train(spec, dataset, parts, on_step=interrupt_in(2), **options)
    assert parts.exists()
    assert parts.read_bytes() != whole.read_bytes()
    resumed = segdeploy.train(spec, dataset, parts, resume=True, **options)
    assert parts.read_bytes() == whole.read_bytes()
    assert (resumed.images, resumed.loss) == (expected.images, expected.loss)


def test_an_interruption_in_the_first_epoch_leaves_nothing(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    with pytest.raises(KeyboardInterrupt):
        segdeploy.train(SMALL, dataset, out, on_step=interrupt_in(0), **SETTINGS)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"m\.resume\.pt: no such file"):
        segdeploy.train(SMALL, dataset, out, resume=True, **SETTINGS)


def test_a_resume_file_of_another_training_or_of_rubbish(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    segdeploy.train(SMALL, dataset, out, **SETTINGS)
    with pytest.raises(InputError, match="was trained with another learning_rate; resume with"):
        segdeploy.train(SMALL, dataset, out, resume=True, learning_rate=1.0, **SETTINGS)
    (tmp_path / "m.resume.pt").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="cannot be resumed from"):
        segdeploy.train(SMALL, dataset, out, resume=True, **SETTINGS)


def test_the_best_epoch_is_kept_beside_the_last(dataset: Path, tmp_path: Path) -> None:
    out, last = tmp_path / "m.safetensors", tmp_path / "m.last.safetensors"
    report = segdeploy.train(
        SMALL, dataset, out, validate_every=2, log_dir=tmp_path / "log", **SETTINGS
    )
    assert sorted(report.miou) == [2, 4]
    assert report.best_miou == max(report.miou.values())
    assert segdeploy.evaluate(out, dataset).miou == pytest.approx(report.best_miou, abs=1e-6)
    assert segdeploy.evaluate(last, dataset).miou == pytest.approx(report.miou[4], abs=1e-6)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path / "log"))
    log.Reload()
    assert [event.step for event in log.Scalars("loss")] == [1, 2, 3, 4]
    measured = [event.value for event in log.Scalars("val/mIoU")]
    assert measured == pytest.approx([report.miou[2], report.miou[4]], abs=1e-6)


def test_accumulating_two_batches_is_one_batch_of_both(dataset: Path, tmp_path: Path) -> None:
    spec = ModelSpec(f"{__name__}:plain", size=(32, 48))
    weights = []
    for name, batch, accumulate in (("one", 8, 1), ("two", 4, 2)):
        out = tmp_path / f"{name}.safetensors"
        options = {"epochs": 1, "workers": 0, "augmentation": {"scale": (1.6, 1.6)}}
        segdeploy.train(spec, dataset, out, batch_size=batch, accumulate=accumulate, **options)
        weights.append(load_file(out))
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=2e-2, atol=2e-3)


def test_class_weights_and_mixed_precision_train(dataset: Path, tmp_path: Path) -> None:
    report = segdeploy.train(
        SMALL,
        dataset,
        tmp_path / "m.safetensors",
        class_weights="median-frequency",
        loss={"focal": 1.0, "dice": 1.0},
        amp=True,
        checkpointing=True,
        **SETTINGS,
    )
    assert np.isfinite(report.loss)
    assert report.unseen == ()


def test_unknown_schedules_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelInputError, match="schedule 'cosine': there are one-cycle, poly"):
        segdeploy.train(SMALL, dataset, tmp_path / "m.safetensors", schedule="cosine")


def test_weights_that_are_no_longer_finite_are_not_saved(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    options = {"batch_size": 16, "workers": 0, "epochs": 3}
    with pytest.raises(ModelInputError, match="gives NaN or infinity .* weights have diverged"):
        segdeploy.train(SMALL, dataset, out, learning_rate=1e30, **options)
    assert list(tmp_path.iterdir()) == []
    for wrong in (float("nan"), float("inf"), 1e39):
        with pytest.raises(ModelInputError, match="must be a positive number"):
            segdeploy.train(SMALL, dataset, out, learning_rate=wrong, **options)
    for scale in ((0, 0), (1.6, 1.0), (float("nan"), 1)):
        with pytest.raises(ModelInputError, match="must be positive, the lower one first"):
            segdeploy.train(SMALL, dataset, out, augmentation={"scale": scale}, **options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spec": ModelSpec("deeplabv3", arguments={"width": 8}, size=(32, 48))}, "arguments"),
        ({"validate_every": 1}, "validation"),
        ({"class_weights": "inverse-log"}, "class weights"),
        ({"split": "val"}, "frames"),
    ],
)
def test_resuming_another_run_names_the_difference(
    change: dict, said: str, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.safetensors"
    options = {**SETTINGS, "epochs": 1}
    segdeploy.train(SMALL, dataset, out, **options)
    spec = change.pop("spec", SMALL)
    with pytest.raises(InputError, match=f"was trained with another {said}"):
        segdeploy.train(spec, dataset, out, resume=True, **options, **change)


def test_the_poly_schedule_is_deeplabs(dataset: Path) -> None:
    from segdeploy.models.augmentation import Augmentation
    from segdeploy.models.training import Training, TrainingSettings

    settings = TrainingSettings(
        (32, 48), (0.5,) * 3, (0.5,) * 3, Augmentation((32, 48)), epochs=2, batch_size=4,
        learning_rate=0.01, schedule="poly", workers=0,
    )  # fmt: skip
    frames = open_dataset(dataset).frames("train")
    training = Training(plain(8), frames, 255, settings)
    rates = []
    for _ in range(2):
        for _ in training.epoch():
            rates.append(training._schedule.get_last_lr()[0])
    assert rates == pytest.approx([0.01 * (1 - i / 8) ** 0.9 for i in range(1, 9)])


PROGRAM = """
import json, os, pathlib, sys, segdeploy
from segdeploy.network import ModelSpec
sys.path.insert(0, {root!r})
report = segdeploy.train(
    ModelSpec("tests.test_resume:{network}", size=(32, 48)), {data!r}, {out!r}, epochs=2,
    batch_size={batch}, workers=0, validate_every=1, augmentation={{"scale": (1.0, 1.0)}},
)
said = pathlib.Path({out!r}).with_name(os.environ.get("RANK", "0") + ".json")
said.write_text(json.dumps([report.images, report.miou]))
"""


def test_two_processes_train_what_one_does(dataset: Path, tmp_path: Path) -> None:
    root = str(Path(__file__).parent.parent)
    results = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        program = folder / "program.py"
        out = str(folder / "m.safetensors")
        program.write_text(
            PROGRAM.format(root=root, data=str(dataset), out=out, batch=4, network="plain")
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
    assert one[1][0] == 2 * two[1][0] == 32
    for key, value in one[0].items():
        torch.testing.assert_close(two[0][key], value, rtol=5e-3, atol=5e-4, msg=key)
    for epoch, miou in one[1][1].items():
        assert two[1][1][epoch] == pytest.approx(miou, abs=0.02)


def test_a_batch_that_two_processes_cannot_share(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segdeploy.models.augmentation import Augment, Augmentation
    from segdeploy.models.batches import epoch_loader

    monkeypatch.setenv("WORLD_SIZE", "2")
    augment = Augment(Augmentation((8, 8)), (8, 8), (0.5, 0.5, 0.5), 255)
    frames = open_dataset(dataset).frames("train")
    with pytest.raises(ModelInputError, match="--batch-size 5 cannot be shared by 2 processes"):
        epoch_loader(frames, augment, batch_size=5, seed=0, epoch=0, workers=0)


def with_norm(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, num_classes, 1)
    )


def test_two_processes_validate_the_network_that_is_saved(dataset: Path, tmp_path: Path) -> None:
    root = str(Path(__file__).parent.parent)
    program, out = tmp_path / "program.py", tmp_path / "m.safetensors"
    network = "with_norm"
    program.write_text(
        PROGRAM.format(root=root, data=str(dataset), out=str(out), batch=4, network=network)
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    ran = subprocess.run(
        [sys.executable, *launch], capture_output=True, text=True, check=False, cwd=root
    )
    assert ran.returncode == 0, ran.stderr
    _, miou = json.loads((tmp_path / "0.json").read_text())
    saved = ModelSpec(f"{__name__}:{network}", weights=out)
    assert segdeploy.evaluate(saved, dataset).miou == pytest.approx(max(miou.values()), abs=1e-9)


def test_one_frame_is_not_shared_by_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from segdeploy.models.batches import _Shares

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ModelInputError, match="1 frames cannot be shared by 2 processes"):
        _Shares(1, 4, 0, 0)
    assert [len(share) for share in _Shares(3, 4, 0, 0)] == [1]
