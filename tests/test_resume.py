"""Interrupted, resumed, accumulated, validated: training is the same training."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import segdeploy
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import ModelInputError

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
def test_resume_interrupted_and_resumed_gives_the_same_weights(
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


def test_resume_an_interruption_in_the_first_epoch_leaves_nothing(
    dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.safetensors"
    with pytest.raises(KeyboardInterrupt):
        segdeploy.train(SMALL, dataset, out, on_step=interrupt_in(0), **SETTINGS)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"m\.resume\.pt: no such file"):
        segdeploy.train(SMALL, dataset, out, resume=True, **SETTINGS)


def test_resume_a_resume_file_of_another_training_or_of_rubbish(
    dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.safetensors"
    segdeploy.train(SMALL, dataset, out, **SETTINGS)
    with pytest.raises(InputError, match="was trained with another learning_rate; resume with"):
        segdeploy.train(SMALL, dataset, out, resume=True, learning_rate=1.0, **SETTINGS)
    (tmp_path / "m.resume.pt").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="cannot be resumed from"):
        segdeploy.train(SMALL, dataset, out, resume=True, **SETTINGS)


def test_resume_the_best_epoch_is_kept_beside_the_last(dataset: Path, tmp_path: Path) -> None:
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


def test_resume_accumulated_gradients_are_those_of_one_batch(dataset: Path) -> None:
    from segdeploy.models.augmentation import Augmentation
    from segdeploy.models.training import Training, TrainingSettings

    frames = open_dataset(dataset).frames("train")[:12]
    updates: list[list[list[torch.Tensor]]] = []
    for batch, accumulate in ((8, 1), (4, 2)):
        settings = TrainingSettings(
            (32, 48), (0.5,) * 3, (0.5,) * 3, Augmentation((32, 48), scale=(1.6, 1.6)), epochs=1,
            batch_size=batch, accumulate=accumulate, workers=0,
        )  # fmt: skip
        torch.manual_seed(0)
        training = Training(plain(8), frames, 255, settings)
        seen: list[list[torch.Tensor]] = []
        training._optimizer.register_step_pre_hook(
            lambda optimizer, *_, seen=seen: seen.append(
                [p.grad.clone() for g in optimizer.param_groups for p in g["params"]]
            )
        )
        list(training.epoch())
        updates.append(seen)
    whole, parts = updates
    # Of 12 frames, 8 and then nothing; 4 and 4, and then the 4 of an incomplete group.
    assert (len(whole), len(parts)) == (1, 2)
    # Close and not equal, since each batch is averaged over its own pixels that count.
    for expected, found in zip(whole[0], parts[0], strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()
    assert all(0.3 < b.norm() / a.norm() < 3 for a, b in zip(*parts, strict=True))


def test_resume_class_weights_and_mixed_precision_train(dataset: Path, tmp_path: Path) -> None:
    report = segdeploy.train(
        SMALL,
        dataset,
        tmp_path / "m.safetensors",
        class_weights="median-frequency",
        loss={"focal": 1.0, "dice": 1.0},
        amp=True,
        gradient_checkpointing=True,
        **SETTINGS,
    )
    assert np.isfinite(report.loss)
    assert report.unseen == ()


def test_resume_unknown_schedules_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelInputError, match="schedule 'cosine': must be one of one-cycle, poly"):
        segdeploy.train(SMALL, dataset, tmp_path / "m.safetensors", schedule="cosine")


def test_resume_weights_that_are_no_longer_finite_are_not_saved(
    dataset: Path, tmp_path: Path
) -> None:
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
def test_resume_resuming_another_run_names_the_difference(
    change: dict, said: str, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.safetensors"
    options = {**SETTINGS, "epochs": 1}
    segdeploy.train(SMALL, dataset, out, **options)
    spec = change.pop("spec", SMALL)
    with pytest.raises(InputError, match=f"was trained with another {said}"):
        segdeploy.train(spec, dataset, out, resume=True, **options, **change)


def test_resume_the_poly_schedule_is_deeplabs(dataset: Path) -> None:
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


def test_resume_ctrl_c_leaves_what_resume_continues_from(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    command = [
        *(sys.executable, "-m", "segdeploy", "train", "deeplabv3", "--width", "4", "--stride", "4"),
        *("--data", dataset, "--size", "32x48", "--batch-size", "4", "--workers", "0"),
        *("--epochs", "200", "-q", "-o", out),
    ]
    running = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "m.resume.pt").exists():
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert [line for line in said.splitlines() if line] == [
        "note: to continue, run the same command with --resume",
        "error: interrupted; nothing was left half-written",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.resume.pt", "m.safetensors"]
    state = torch.load(tmp_path / "m.resume.pt", weights_only=True)
    assert 1 <= state["training"]["epochs_done"] < 200
    segdeploy.evaluate(out, dataset, limit=1)


def test_resume_a_full_disk_leaves_the_last_good_checkpoint(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    options = {"epochs": 1, "batch_size": 4, "workers": 0}
    segdeploy.train(SMALL, dataset, out, **options)
    (tmp_path / "m.resume.pt").unlink()
    good = out.read_bytes()
    # A limit on a file's size stops the writing where a full disk would.
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from segdeploy.cli import main; main()"
    )
    command = [
        *(sys.executable, "-c", limited, "train", "deeplabv3", "--width", "4", "--stride", "4"),
        *("--data", dataset, "--size", "32x48", "--epochs", "1", "--batch-size", "4"),
        *("--workers", "0", "-q", "-o", out),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("error: ")
    assert "m.safetensors: File too large" in ran.stderr
    assert out.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_resume_a_class_in_no_mask_is_told_before_the_first_epoch(
    dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(dataset, root := tmp_path / "data")
    for path in (root / "train" / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[mask == 3] = 255
        Image.fromarray(mask).save(path)
    missing = open_dataset(root).classes[3]
    called: list[object] = []
    report = segdeploy.train(
        SMALL,
        root,
        tmp_path / "m.safetensors",
        on_start=called.append,
        on_step=lambda step: called.append(step.index),
        **{**SETTINGS, "epochs": 1},
    )
    assert called[:2] == [(missing,), 0]
    assert report.unseen == (missing,)
