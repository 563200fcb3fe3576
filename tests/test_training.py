"""Training: it learns, it repeats itself, and its checkpoint says what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import segdeploy
from segdeploy.contract import IMAGENET_MEAN, IMAGENET_STD, METADATA_KEY
from segdeploy.contract_json import read_contract
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.augmentation import Augment, Augmentation
from segdeploy.models.batches import Batch, epoch_loader
from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import ModelInputError

from .conftest import SIZE

SMALL = ModelSpec("deeplabv3", arguments={"width": 4, "stride": 4}, size=(32, 48))


def test_training_the_header_holds_the_contract(checkpoint: Path, dataset: Path) -> None:
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


def test_training_one_seed_gives_one_checkpoint(dataset: Path, tmp_path: Path) -> None:
    written = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{name}.safetensors"
        segdeploy.train(SMALL, dataset, path, epochs=1, batch_size=4, seed=seed, workers=0)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert written[0] != written[2]


def test_training_workers_give_the_same_batches(dataset: Path) -> None:
    frames = open_dataset(dataset).frames("train")
    augment = Augment(Augmentation((32, 48), color=0.5, rotation=20), (32, 48), IMAGENET_MEAN, 255)

    def batches(workers: int, epoch: int = 0) -> list[Batch]:
        loader = epoch_loader(frames, augment, batch_size=4, seed=3, epoch=epoch, workers=workers)
        return list(loader)

    alone, helped, later = batches(0), batches(2), batches(0, epoch=1)
    assert len(alone) == 4
    for one, other in zip(alone, helped, strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)
    assert [b.names for b in alone] != [b.names for b in later]
    assert sorted(n for b in later for n in b.names) == sorted(f.name for f in frames)


def test_training_a_batch_may_be_larger_than_the_split(dataset: Path, tmp_path: Path) -> None:
    report = segdeploy.train(
        SMALL, dataset, tmp_path / "m.safetensors", epochs=2, batch_size=64, workers=0
    )
    assert report.images == 2 * 16


def test_training_a_diverging_loss_stops_training(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    with pytest.raises(
        ModelInputError, match=r"the loss is .* in epoch \d, batch .*train_00.*lower --learning"
    ):
        segdeploy.train(SMALL, dataset, out, batch_size=4, workers=0, learning_rate=1e30)
    assert not out.exists()


def test_training_a_checkpoint_is_trained_further(
    checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "more.safetensors"
    segdeploy.train(checkpoint, dataset, out, epochs=1, batch_size=4, workers=0)
    with safe_open(out, "pt") as file:
        contract = read_contract(file.metadata()[METADATA_KEY], "header")
    assert contract.size == SIZE
    assert len(contract.provenance["parent_sha256"]) == 64


def test_training_the_output_is_checked_before_the_work(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; make it first"):
        segdeploy.train(SMALL, dataset, tmp_path / "no" / "m.safetensors")
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        segdeploy.train(SMALL, dataset, tmp_path / "m.pth")


def test_training_a_checkpoint_is_not_trained_onto_itself(checkpoint: Path, dataset: Path) -> None:
    before = checkpoint.read_bytes()
    with pytest.raises(InputError, match="is the input itself; give another output"):
        segdeploy.train(checkpoint, dataset, checkpoint, epochs=1)
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    ("factory", "options", "said"),
    [
        ("frozen", {}, "no trainable parameter"),
        ("flat", {"gradient_checkpointing": True}, "no block of two convolutions or more"),
        ("half", {}, "parameter weight is torch.float16; give a float32 network"),
        ("lazy", {}, "parameter weight has no shape yet"),
        ("moody", {}, r"fails in training mode on a batch of 4 \(KeyError: 'no'\)"),
    ],
)
def test_training_networks_that_cannot_be_trained_say_why(
    factory: str, options: dict, said: str, dataset: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(f"{__name__}:{factory}", size=(32, 48))
    with pytest.raises(ModelInputError, match=said):
        segdeploy.train(
            spec, dataset, tmp_path / "m.safetensors", batch_size=4, workers=0, **options
        )
    assert list(tmp_path.iterdir()) == []


def flat(num_classes: int) -> nn.Module:
    return nn.Conv2d(3, num_classes, 1)


def frozen(num_classes: int) -> nn.Module:
    return flat(num_classes).requires_grad_(False)


def half(num_classes: int) -> nn.Module:
    return flat(num_classes).half()


def lazy(num_classes: int) -> nn.Module:
    return nn.LazyConv2d(num_classes, 1)


class Moody(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise KeyError("no")
        return super().forward(x)


def moody(num_classes: int) -> nn.Module:
    return Moody(3, num_classes, 1)


class Scaled(nn.Module):
    """Blocks that take an argument by its name."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.block = Block()
        self.last = nn.Conv2d(3, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.block(x, scale=2.0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return self.two(self.one(x).relu() * scale)


def test_training_checkpointing_passes_named_arguments_on(dataset: Path, tmp_path: Path) -> None:
    spec = ModelSpec(f"{__name__}:Scaled", size=(32, 48))
    losses = [
        segdeploy.train(
            spec,
            dataset,
            tmp_path / f"{on}.safetensors",
            epochs=1,
            workers=0,
            gradient_checkpointing=on,
        ).loss
        for on in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_training_a_frame_that_cannot_be_cropped_is_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelInputError, match="scale up to 3000"):
        segdeploy.train(
            SMALL, dataset, tmp_path / "m.safetensors", augmentation={"scale": (1, 3000)}
        )


@pytest.mark.parametrize(
    "said", [{"WORLD_SIZE": "x"}, {"RANK": "2"}, {"WORLD_SIZE": "0"}, {"RANK": ""}]
)
def test_training_a_senseless_environment_is_told(
    said: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segdeploy.models.distributed import rank, world_size

    group = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**group, **said}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelInputError, match="are not what torchrun sets"):
        world_size()
    monkeypatch.delenv("MASTER_PORT")
    assert (rank(), world_size()) == (0, 1)
