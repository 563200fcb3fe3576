"""Training: it learns, it repeats itself, and its checkpoint says what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import segdeploy
from segdeploy.errors import InputError
from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import ModelInputError
from segdeploy.models.training import TrainingSettings, _Crops
from segdeploy.models.training import train as run_steps
from segdeploy.network import ModelSpec
from segdeploy.spec import IMAGENET_MEAN, IMAGENET_STD, METADATA_KEY, read_contract

from .conftest import SIZE

SMALL = ModelSpec("deeplabv3", arguments={"width": 4, "stride": 4}, size=(32, 48))


def test_the_header_holds_the_contract(checkpoint: Path, dataset: Path) -> None:
    with safe_open(checkpoint, "pt") as file:
        contract = read_contract(file.metadata()[METADATA_KEY], "header")
    data = open_dataset(dataset)
    assert (contract.classes, contract.palette) == (data.classes, data.palette)
    assert (contract.ignore_index, contract.size) == (255, SIZE)
    assert (contract.mean, contract.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert contract.architecture == "deeplabv3"
    assert contract.arguments == {"width": 8, "stride": 2}


def test_training_lowers_the_loss_and_reports_every_step(dataset: Path, tmp_path: Path) -> None:
    losses = []
    report = segdeploy.train(
        SMALL,
        dataset,
        tmp_path / "m.safetensors",
        epochs=8,
        batch_size=4,
        workers=0,
        on_step=lambda step: losses.append(step.loss),
    )
    assert len(losses) == 8 * 4
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
    assert report.images == 8 * 16
    assert report.loss == losses[-1]


def test_one_seed_gives_one_checkpoint(dataset: Path, tmp_path: Path) -> None:
    written = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{name}.safetensors"
        segdeploy.train(SMALL, dataset, path, epochs=1, batch_size=4, seed=seed, workers=0)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert written[0] != written[2]


def test_a_worker_process_gives_the_same_frames(dataset: Path) -> None:
    losses = []
    for workers in (0, 1):
        torch.manual_seed(0)
        settings = TrainingSettings(
            (32, 48), IMAGENET_MEAN, IMAGENET_STD, epochs=1, batch_size=4, workers=workers
        )
        network = torch.nn.Conv2d(3, 8, 1)
        steps = list(run_steps(network, open_dataset(dataset).frames("train"), 255, settings))
        losses.append(len(steps))
    assert losses == [4, 4]


def test_image_and_mask_are_cropped_alike(dataset: Path) -> None:
    frames = open_dataset(dataset).frames("train", 1)
    _, mask = frames[0].read()

    class Painted:
        """A frame whose image shows its mask."""

        def read(self):
            return np.repeat(mask[..., None], 3, axis=2), mask

    torch.manual_seed(0)
    crops = _Crops([Painted()], 255, mask.shape)
    for _ in range(5):
        image, labels = crops[0]
        assert image.shape == (3, *mask.shape)
        # Interpolation blurs the image's edges alone; ids of the mask are never mixed.
        assert set(labels.unique().tolist()) <= set(np.unique(mask).tolist())
        assert (image[0] == labels).float().mean() > 0.8


def test_a_diverging_loss_stops_training(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    with pytest.raises(
        ModelInputError, match=r"the loss is .* in epoch 1, step .*lower --learning"
    ):
        segdeploy.train(SMALL, dataset, out, batch_size=4, workers=0, learning_rate=1e30)
    assert not out.exists()


def test_a_checkpoint_is_trained_further(checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "more.safetensors"
    segdeploy.train(checkpoint, dataset, out, epochs=1, batch_size=4, workers=0)
    with safe_open(out, "pt") as file:
        contract = read_contract(file.metadata()[METADATA_KEY], "header")
    assert contract.size == SIZE
    assert len(contract.provenance["parent_sha256"]) == 64


def test_the_output_is_checked_before_the_work(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; make it first"):
        segdeploy.train(SMALL, dataset, tmp_path / "no" / "m.safetensors")
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        segdeploy.train(SMALL, dataset, tmp_path / "m.pth")
