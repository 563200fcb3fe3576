"""`--from`: networks of other frameworks, read from their own files.

Each is compared with the framework's own prediction on the same images: real networks with random
weights, saved by the frameworks themselves.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import onnx
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.models import segmentation

import segdeploy
from segdeploy.adoption.statement import Statement
from segdeploy.engine.manifest import read_manifest
from segdeploy.errors import InputError
from segdeploy.frameworks.read import read_network
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import ModelInputError
from segdeploy.models.registry import build
from segdeploy.network_loading import load_network

from .conftest import Ran, check_one_line
from .framework_networks import (
    HUGGING_FACE,
    MEAN,
    MMSEG,
    NAMES,
    PACKAGES,
    SIDE,
    SMP,
    STD,
    labels_of_smp,
    labels_of_transformers,
    published_by_torchvision,
    sample_images,
    saved_by_smp,
    saved_by_transformers,
    seeded,
)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return sample_images()


# --- Hugging Face ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_by_transformers("segformer", tmp_path_factory.mktemp("hf"))


def check_labels(path: Path, image: np.ndarray, expected: np.ndarray) -> None:
    """The exported graph's labels at its own size equal the framework's, but for ties."""
    with segdeploy.load(path) as network:
        labels = network.logits(image).argmax(0)
    assert labels.shape == expected.shape
    assert (labels == expected).mean() > 0.999


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_frameworks_a_hugging_face_folder_gives_the_labels_of_transformers(
    name: str, tmp_path: Path, images: list[np.ndarray]
) -> None:
    folder = saved_by_transformers(name, tmp_path / "folder")
    report = segdeploy.export(f"hf:{folder}", tmp_path / "m.onnx")
    contract = report.contract
    assert contract.classes == NAMES
    assert contract.assumed == ()
    assert contract.architecture == f"hf:{HUGGING_FACE[name][0]}"
    assert str(tmp_path) not in contract.to_json()
    expected = [labels_of_transformers(folder, image) for image in images]
    assert len(np.unique(expected)) > 2
    for image, labels in zip(images, expected, strict=True):
        check_labels(tmp_path / "m.onnx", image, labels)


def test_frameworks_hugging_face_folders_tell_that_the_input_is_equal(
    segformer: Path, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    ran = run("export", "--from", f"hf:{segformer}", "-o", tmp_path / "m.onnx")
    assert ran.code == 0
    assert "SegformerImageProcessor, equal to the bit on 4 images" in ran.err


def edited(folder: Path, target: Path, name: str, **changes: Any) -> Path:
    """A copy of a folder with other values in one of its JSON files; None removes a value."""
    shutil.copytree(folder, target)
    path = target / name
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: one for key, one in values.items() if one is not None}))
    return target


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("config.json", {"architectures": ["SegformerForImageClassification"]}, "is none of"),
        (
            "config.json",
            {"architectures": ["Mask2FormerForUniversalSegmentation"]},
            "predicts masks with classes",
        ),
        ("config.json", {"architectures": None}, "names no architecture"),
        ("config.json", {"auto_map": {"AutoModel": "evil.py"}}, "is not executed"),
        ("config.json", {"id2label": {"0": "a", "2": "b"}}, "does not name the classes 0, 1, 2"),
        ("config.json", {"id2label": {"0": "a", "1": "b"}}, "weights have another shape"),
        ("config.json", {"num_labels": 9}, "has 9 classes (num_labels), and id2label names 5"),
        ("config.json", {"_model_class": "Unet"}, "--from smp:"),
        ("preprocessor_config.json", {"do_sharpen": True}, "the option do_sharpen is unknown"),
        ("preprocessor_config.json", {"auto_map": {"A": "evil.py"}}, "is not executed"),
        ("preprocessor_config.json", {"resample": 5}, "the filter"),
        ("preprocessor_config.json", {"size": {"longest_edge": 64}}, "preprocessor_config.json"),
    ],
)
def test_frameworks_hugging_face_folders_with_faults_are_refused(
    segformer: Path, tmp_path: Path, file: str, changes: dict[str, Any], told: str
) -> None:
    folder = edited(segformer, tmp_path / "folder", file, **changes)
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        load_network(ModelSpec.of(f"hf:{folder}"))
    assert told in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()


def test_frameworks_a_folder_without_a_processor_says_what_is_assumed(
    segformer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(segformer, folder)
    (folder / "preprocessor_config.json").unlink()
    caplog.set_level("INFO", "segdeploy")
    loaded = load_network(ModelSpec(f"hf:{folder}", size=(SIDE, SIDE)))
    assert "mean" in loaded.contract.assumed
    assert "has no preprocessor_config.json" in caplog.text
    assert "assumed how its images are prepared" in caplog.text


def test_frameworks_weights_that_would_stay_random_are_refused(tmp_path: Path) -> None:
    """transformers gives such a network random weights, with a warning."""
    _, config, _, _ = HUGGING_FACE["segformer"]
    transformers.SegformerModel(config()).save_pretrained(tmp_path / "backbone")
    path = tmp_path / "backbone" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "architectures": ["SegformerForSemanticSegmentation"]}))
    with pytest.raises(InputError, match=r"weights lack decode_head.* would stay random"):
        load_network(ModelSpec(f"hf:{tmp_path / 'backbone'}", size=(SIDE, SIDE)))


def test_frameworks_names_that_occur_twice_get_a_number(segformer: Path, tmp_path: Path) -> None:
    names = {"0": "screen", "1": "screen", "2": "a\tb", "3": "sky", "4": "pole"}
    folder = edited(segformer, tmp_path / "folder", "config.json", id2label=names)
    found = load_network(ModelSpec.of(f"hf:{folder}")).contract.classes
    assert found == ("screen", "screen 2", "a b", "sky", "pole")


# --- segmentation_models_pytorch ------------------------------------------------------------------

PIPELINES = {
    "resize": [A.Resize(SIDE, SIDE), A.Normalize(MEAN, STD)],
    "longest side and padding": [
        A.LongestMaxSize(SIDE),
        A.PadIfNeeded(SIDE, SIDE, border_mode=cv2.BORDER_CONSTANT, fill=0),
        A.Normalize(MEAN, STD),
        A.ToTensorV2(),
    ],
    "smallest side and crop": [
        A.SmallestMaxSize(80),
        A.CenterCrop(SIDE, SIDE),
        A.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
    "padding after normalization": [
        A.LongestMaxSize(SIDE, interpolation=cv2.INTER_AREA),
        A.Normalize(MEAN, STD),
        A.PadIfNeeded(SIDE, SIDE, border_mode=cv2.BORDER_CONSTANT, fill=0, position="top_left"),
    ],
    "bytes": [A.Resize(SIDE, SIDE), A.Normalize((0, 0, 0), (1, 1, 1), max_pixel_value=1.0)],
}


@pytest.mark.parametrize("name", PIPELINES)
def test_frameworks_an_smp_folder_gives_the_labels_of_its_own_pipeline(
    name: str, tmp_path: Path, images: list[np.ndarray]
) -> None:
    network = saved_by_smp(tmp_path / "folder", PIPELINES[name])
    segdeploy.export(f"smp:{tmp_path / 'folder'}", tmp_path / "m.onnx")
    expected = [labels_of_smp(network, PIPELINES[name], image) for image in images]
    assert len(np.unique(expected)) > 2
    for image, labels in zip(images, expected, strict=True):
        check_labels(tmp_path / "m.onnx", image, labels)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([A.Resize(SIDE, SIDE), A.HorizontalFlip(p=0.5)], "HorizontalFlip is applied to a share"),
        ([A.Resize(SIDE, SIDE), A.RandomCrop(32, 32)], "RandomCrop is no step"),
        ([A.CenterCrop(32, 32), A.Resize(SIDE, SIDE)], "a sequence that no contract states"),
        ([A.Resize(SIDE, SIDE, interpolation=4), A.Normalize()], "no kernel of segdeploy"),
        (
            [A.PadIfNeeded(SIDE, SIDE, border_mode=cv2.BORDER_REFLECT_101), A.Normalize()],
            "no padding that a contract states",
        ),
    ],
)
def test_frameworks_augmentation_and_other_steps_are_refused(
    steps: list[Any], told: str, tmp_path: Path
) -> None:
    saved_by_smp(tmp_path / "folder", steps)
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        read_network(f"smp:{tmp_path / 'folder'}")
    assert told in str(caught.value)


def test_frameworks_an_smp_folder_without_a_pipeline_says_what_is_assumed(tmp_path: Path) -> None:
    saved_by_smp(tmp_path / "folder", None, activation="sigmoid")
    loaded = load_network(ModelSpec(f"smp:{tmp_path / 'folder'}", size=(SIDE, SIDE)))
    assert set(loaded.contract.assumed) == {"fit", "resize", "channels", "mean", "std"}
    with pytest.raises(InputError, match="needs --size"):
        load_network(ModelSpec.of(f"smp:{tmp_path / 'folder'}"))


def test_frameworks_smp_folders_with_faults_are_refused(segformer: Path, tmp_path: Path) -> None:
    saved_by_smp(tmp_path / "folder", None)
    other = edited(tmp_path / "folder", tmp_path / "a", "config.json", _model_class="Evil")
    with pytest.raises(InputError, match="'Evil' is none of segmentation_models_pytorch"):
        read_network(f"smp:{other}")
    other = edited(tmp_path / "folder", tmp_path / "b", "config.json", brightness=3)
    with pytest.raises(InputError, match="has no argument brightness"):
        load_network(ModelSpec(f"smp:{other}", size=(SIDE, SIDE)))
    (other / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        read_network(f"smp:{other}")
    with pytest.raises(InputError, match=f"give --from hf:{segformer}"):
        read_network(f"smp:{segformer}")


# --- torchvision ----------------------------------------------------------------------------------


def test_frameworks_published_weights_of_torchvision_come_with_their_transforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[np.ndarray]
) -> None:
    published = segmentation.DeepLabV3_MobileNet_V3_Large_Weights.DEFAULT
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelInputError, match=r"not in PyTorch's cache; fetch https"):
        read_network("torchvision:deeplabv3_mobilenet_v3_large")
    network = published_by_torchvision("deeplabv3_mobilenet_v3_large", tmp_path)
    with segdeploy.load("torchvision:deeplabv3_mobilenet_v3_large") as ours:
        assert ours.contract.classes[:2] == ("background", "aeroplane")
        assert (ours.contract.fit, ours.contract.edge) == ("shortest-edge", 520)
        image = images[1]
        prepared = published.transforms()(Image.fromarray(image))[None]
        assert np.array_equal(ours.prepare(image), prepared.numpy())
        with torch.no_grad():
            expected = network(prepared)["out"][0]
        np.testing.assert_allclose(ours.logits(image), expected.numpy(), atol=1e-5)


# --- bare weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "classes", "channels"),
    [
        ("deeplabv3", {"width": 8}, 5, 3),
        ("semantic_segmentation_model", {"width": 4}, 1, 3),
        ("dilated_vgg16", {"width": 8, "hidden": 24, "context": "basic"}, 3, 1),
        ("deeplabv2_vgg16", {"rates": [6, 12, 18, 24], "width": 4, "hidden": 12}, 7, 3),
        ("deeplabv3_mobilenet_v3_large", {}, 11, 3),
    ],
)
def test_frameworks_bare_weights_are_recognized(
    name: str, arguments: dict[str, Any], classes: int, channels: int, tmp_path: Path
) -> None:
    network = build(name, classes, arguments, channels)
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    if name.endswith("large"):
        state["module.aux_classifier.0.weight"] = torch.zeros(10, 40, 3, 3)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": state, "epoch": 3}, path)
    found = read_network(str(path))
    assert found.architecture == name
    assert found.num_classes == classes
    assert {key: found.arguments[key] for key in arguments} == arguments
    loaded = load_network(ModelSpec(str(path), source=str(path), size=(SIDE, SIDE)))
    assert loaded.contract.channels == (("gray",) if channels == 1 else ("R", "G", "B"))
    expected = network.state_dict()
    for key, value in loaded.network.module.state_dict().items():
        assert torch.equal(value, expected[key])


def test_frameworks_bare_weights_of_other_networks_are_refused_by_name(tmp_path: Path) -> None:
    network = smp.Unet("resnet18", encoder_weights=None, classes=2)
    torch.save(network.state_dict(), tmp_path / "unet.pth")
    with pytest.raises(InputError, match="look like those of segmentation_models_pytorch"):
        read_network(str(tmp_path / "unet.pth"))
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="of no network of the registry; give your own network"):
        read_network(str(tmp_path / "other.pth"))


# --- mmsegmentation -------------------------------------------------------------------------------

MMSEG_PINS = Path(__file__).with_name("mmsegmentation.txt").read_text().split()
BASE = '''
"""A base file."""
norm_cfg = dict(type="SyncBN", requires_grad=True)
data_preprocessor = dict(
    type="SegDataPreProcessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=data_preprocessor,
    pretrained="open-mmlab://resnet50_v1c",
    backbone=dict(type="ResNetV1c", norm_cfg=norm_cfg, strides=(1, 2, 1, 1)),
    decode_head=dict(type="ASPPHead", num_classes=19, align_corners=False),
    auxiliary_head=dict(type="FCNHead", num_classes=19),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"))
'''
CONFIG = """
_base_ = ["./base.py"]
crop_size = (32, 64)
data_preprocessor = dict(size=crop_size, test_cfg=dict(size_divisor=16))
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=5, norm_cfg=dict(_delete_=True, type="BN")),
    auxiliary_head=dict(num_classes=5))
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(96, 48), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
lr = 2 * 0.01
test_dataloader = dict(batch_size=1, dataset=dict(type="X", pipeline={{_base_.norm_cfg}}))
"""
FACTORY = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 6, 3, stride=4, padding=2, dilation=2)
        self.decode_head = nn.Conv2d(6, 5, 1)
    def forward(self, x):
        return self.decode_head(torch.relu(self.backbone(x)))
"""


@pytest.fixture
def mmseg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base.py").write_text(BASE)
    config = CONFIG.replace('dict(type="X", pipeline={{_base_.norm_cfg}})', "dict(type='X')")
    (tmp_path / "config.py").write_text(config)
    (tmp_path / "their_network.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    import their_network

    network = seeded(their_network.Net)
    state = {**network.state_dict(), "auxiliary_head.conv.weight": torch.zeros(1)}
    palette = [[10 * at, 20, 30] for at in range(5)]
    meta = {"dataset_meta": {"classes": NAMES, "palette": palette}, "lr": np.float64(0.1)}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "c.pth")
    return tmp_path


def their_input(image: np.ndarray) -> torch.Tensor:
    """mmcv's `imrescale` to (96, 48), normalization in float32, padding to multiples of 16."""
    height, width = image.shape[:2]
    scale = min(96 / max(height, width), 48 / min(height, width))
    size = int(width * scale + 0.5), int(height * scale + 0.5)
    resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    planes = (torch.as_tensor(resized).permute(2, 0, 1).float() - mean) / std
    pads = [-side % 16 for side in planes.shape[1:]]
    return F.pad(planes, (0, pads[1], 0, pads[0]))[None]


def test_frameworks_a_configuration_of_mmsegmentation_states_the_contract(
    mmseg: Path, images: list[np.ndarray]
) -> None:
    source = f"mmseg:{mmseg / 'config.py'},{mmseg / 'c.pth'}"
    import their_network

    network = seeded(their_network.Net)
    with segdeploy.load(ModelSpec("their_network:Net", source=source)) as ours:
        assert ours.contract.classes == NAMES
        assert ours.contract.palette[2] == (20, 20, 30)
        assert ours.contract.assumed == ()
        for image in images:
            made = their_input(image)
            assert np.array_equal(ours.prepare(image), made.numpy())
            with torch.no_grad():
                low = network(made)
            expected = F.interpolate(low, size=made.shape[2:], mode="bilinear")[0]
            np.testing.assert_allclose(ours.logits(image), expected.numpy(), atol=1e-5)


def test_frameworks_mmsegmentation_0_is_read_too(mmseg: Path) -> None:
    config = mmseg / "old.py"
    config.write_text(
        "img_norm_cfg = dict(mean=[1.5, 2, 3], std=[4, 5, 6], to_rgb=False)\n"
        "model = dict(decode_head=[dict(num_classes=2), dict(num_classes=2, out_channels=1,"
        " align_corners=True)], test_cfg=dict(mode='slide', crop_size=(32, 64), stride=(21, 42)))\n"
        "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug',"
        " img_scale=(128, 64), flip=False, transforms=[dict(type='Resize', keep_ratio=True),"
        " dict(type='RandomFlip'), dict(type='Normalize', **img_norm_cfg),"
        " dict(type='ImageToTensor', keys=['img'])])]\n"
    )
    torch.save({"meta": {"CLASSES": ["no", "yes"]}, "state_dict": {"a": torch.zeros(1)}},
               mmseg / "old.pth")  # fmt: skip
    found = read_network(f"mmseg:{config},{mmseg / 'old.pth'}")
    assert found.stated["channels"] == ("B", "G", "R")
    assert found.stated["mean"] == (1.5, 2.0, 3.0)
    assert found.stated["size"] == (32, 64)
    assert found.stated["head"] == "binary"
    assert found.stated["threshold"] == 0.3
    assert found.align_corners
    assert "slides a window of 32x64" in found.notes[-1]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("for i in []: pass", "would have to be executed"),
        ("with read_base(): pass", "line 2: with read_base():"),
        ("model = open('{made}', 'w')", "line 2: open('"),
        ("model = __import__('os').system('touch {made}')", "would have to be executed"),
        ("model = [i for i in range(3)]", "would have to be executed"),
        ("model = 'a' * 10**9", "would have to be executed"),
        ("model = [0] * 1000000000", "would have to be executed"),
        ("model = sum([1, unknown])", "line 2: unknown would have to be executed"),
        ("a = open('x')\nmodel = dict(decode_head=a)", "line 2: open('x') would"),
        ("_base_ = 'mmseg::a/b.py'", "lies in an installed package"),
        ("_base_ = './config.py'", "is a _base_ of itself"),
        ("_base_ = './absent.py'", "absent.py: no such file"),
        ("_base_ = 5", "its _base_ 5 is no file name"),
        (
            "\n".join(["a = 99999999999", *["a = a * a"] * 45, "model = a"]),
            "would have to be execu",
        ),
        (f"model = {'+'.join(['1'] * 700)}", "its files are nested too deeply"),
        (f"model = {'+'.join(['1'] * 5000)}", "is not Python (maximum recursion depth"),
        ("x = (", "is not Python"),
        ("test_pipeline = [dict(type='PhotoMetricDistortion')]", "the step PhotoMetricDistortion"),
        ("model = dict(decode_head=dict(num_classes=7))", "names 5 classes, and the decode head"),
    ],
)
def test_frameworks_a_configuration_is_never_executed(mmseg: Path, line: str, told: str) -> None:
    path, made = mmseg / "config.py", str(mmseg / "made")
    text = path.read_text() if line.startswith(("test_pipeline", "model = dict")) else ""
    path.write_text(f"{text}\n{line.replace('{made}', made)}\n")
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        read_network(f"mmseg:{path},{mmseg / 'c.pth'}")
    assert told.replace("{made}", made) in str(caught.value)
    assert not Path(made).exists()


def test_frameworks_a_configuration_may_compute_what_is_not_needed(mmseg: Path) -> None:
    path, made = mmseg / "config.py", mmseg / "made"
    path.write_text(
        f"import os.path as osp\nx: int = 3\ny: int\n{path.read_text()}\n"
        "tta_pipeline = [[dict(scale_factor=r) for r in (1, 2)]]\n"
        f"work_dir = open({str(made)!r}, 'w')\n"
    )
    base = mmseg / "base.py"
    base.write_text(f"tta_model = dict(module=osp.x)\n{base.read_text()}")
    found = read_network(f"mmseg:{path},{mmseg / 'c.pth'}")
    assert found.stated["mean"] == (123.675, 116.28, 103.53)
    assert not made.exists()


def test_frameworks_the_network_of_mmsegmentation_is_the_users_own(mmseg: Path) -> None:
    source = f"mmseg:{mmseg / 'config.py'},{mmseg / 'c.pth'}"
    with pytest.raises(InputError, match=r"give your own factory, too: package\.module:factory"):
        load_network(ModelSpec.of(source))


def test_frameworks_code_in_a_checkpoint_is_refused(mmseg: Path) -> None:
    torch.save({"state_dict": {}, "meta": {"x": Path("a")}}, mmseg / "c.pth")
    with pytest.raises(ModelInputError, match="holds more than tensors"):
        read_network(f"mmseg:{mmseg / 'config.py'},{mmseg / 'c.pth'}")


# --- all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["export", "-o", "m.onnx"], "or give --from SOURCE"),
        (["export", "--from", "xx:dir", "-o", "m.onnx"], "is no source; give hf:DIR"),
        (["export", "--from", "hf:", "-o", "m.onnx"], "names nothing; give hf:DIR"),
        (["export", "--from", "hf:absent", "-o", "m.onnx"], "is no folder"),
        (["export", "--from", "smp:absent", "-o", "m.onnx"], "has no config.json"),
        (["export", "--from", "mmseg:c.py", "-o", "m.onnx"], "give mmseg:CONFIG,CHECKPOINT"),
        (["export", "--from", "absent.pth", "-o", "m.onnx"], "no such file"),
        (["export", "--from", "torchvision:x", "-o", "m.onnx"], "x has no published weights"),
    ],
)
def test_frameworks_sources_that_cannot_be_read_are_one_line(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Ran],
) -> None:
    monkeypatch.chdir(tmp_path)
    check_one_line(run(*arguments), told)
    assert list(tmp_path.iterdir()) == []


def test_frameworks_model_beside_a_source_that_tells_the_network_is_refused(
    segformer: Path,
) -> None:
    with pytest.raises(InputError, match="leave MODEL out"):
        load_network(ModelSpec("deeplabv3", source=f"hf:{segformer}"))


def test_frameworks_a_hugging_face_network_is_trained_for_other_classes(
    segformer: Path, dataset: Path, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    source, out = f"hf:{segformer}", tmp_path / "trained.safetensors"
    refused = run("evaluate", "--from", source, "--data", dataset)
    assert refused.code == 2
    assert "has the classes road, car" in refused.err.splitlines()[-1]
    trained = run("train", "--from", source, "--data", dataset, "--epochs", 1, "-o", out)
    assert trained.code == 0, trained
    assert "its classifier is new, of 8 classes instead of 5" in trained.err
    check_one_line(run("evaluate", out, "--data", dataset), f"--from hf:DIR --weights {out}")
    report = run("evaluate", "--from", source, "--weights", out, "--data", dataset, "--json")
    assert report.code == 0, report
    assert len(json.loads(report.out)["iou"]) == 8


def test_frameworks_deploy_takes_a_source(
    segformer: Path, dataset: Path, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    folder, names = tmp_path / "folder", dict(enumerate(load_classes(dataset)))
    _, config, _, options = HUGGING_FACE["segformer"]
    settings = config()
    settings.id2label = names
    seeded(lambda: transformers.SegformerForSemanticSegmentation(settings)).save_pretrained(folder)
    transformers.SegformerImageProcessor(**options).save_pretrained(folder)
    arguments = ("--data", dataset, "--target", "sm86", "--dry-run", "-o", tmp_path / "d")
    steps = run("deploy", "--from", f"hf:{folder}", *arguments)
    assert steps.code == 0, steps
    onnx = segdeploy.export(f"hf:{folder}", tmp_path / "m.onnx").path
    ran = run(
        "bench", onnx, "--from", f"hf:{folder}", "--data", dataset, "--seconds", 0.2, "--json"
    )
    assert ran.code == 0, ran
    (candidate,) = [one for one in json.loads(ran.out)["rows"] if one["agreement"]]
    assert candidate["agreement"]["labels"] > 0.9999


def load_classes(dataset: Path) -> list[str]:
    classes = json.loads((dataset / "dataset.json").read_text())["classes"]
    return [one["name"] if isinstance(one, dict) else one for one in classes]


def test_frameworks_the_table_of_support_holds_for_the_installed_versions(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    """`benchmarks/framework_support.py` writes the table; a new version needs a new run."""
    rows = json.loads(run("models", "--support", "--json").out)
    for row in rows:
        if row["framework"] == "mmseg":
            assert f"mmsegmentation=={row['version']}" in MMSEG_PINS
        else:
            assert row["version"] == importlib.metadata.version(PACKAGES[row["framework"]]), row
        if "refused" in row and row["framework"] == "mmseg":
            assert "draws random numbers" in row["refused"]
            continue
        if "refused" in row:
            folder = tmp_path / row["architecture"]
            folder.mkdir()
            config = {"architectures": [row["architecture"]]}
            (folder / "config.json").write_text(json.dumps(config))
            with pytest.raises(InputError) as caught:
                read_network(f"hf:{folder}")
            assert row["refused"] in str(caught.value)
            continue
        assert row["read"] == "read"
        assert row["build-engine"] == "built"
        assert float(row["export"].split()[0]) > 99.9
        assert row["calibrate"] == "calibrated"
    named = {(row["framework"], row["architecture"]) for row in rows if "refused" not in row}
    networks = {("hf", network) for network, _, _, _ in HUGGING_FACE.values()}
    networks |= {("smp", name) for name in SMP}
    networks |= {("mmseg", name.partition("/")[2]) for name in MMSEG if "segnext" not in name}
    assert networks <= named
    assert "MobileViT" in run("models", "--support").out


# --- ONNX files of frameworks ---------------------------------------------------------------------


class Logits(torch.nn.Module):
    """A network of transformers whose output is the tensor of its logits, as exporters trace it."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values=pixel_values).logits


def test_frameworks_an_onnx_file_of_transformers_is_adopted_by_its_folder(
    segformer: Path, tmp_path: Path, images: list[np.ndarray]
) -> None:
    """The exporters of transformers' networks write maps of a quarter of the input's size."""
    network = transformers.AutoModelForSemanticSegmentation.from_pretrained(segformer).eval()
    path = tmp_path / "theirs.onnx"
    program = torch.onnx.export(Logits(network), (torch.zeros(1, 3, SIDE, SIDE),), dynamo=True)
    program.save(str(path))
    statement = Statement(source=f"hf:{segformer}")
    adopted = segdeploy.adopt(path, statement, out=tmp_path / "adopted.onnx")
    for image in images:
        check_labels(adopted, image, labels_of_transformers(segformer, image))
    with segdeploy.load(adopted) as ours:
        assert ours.contract.classes == NAMES
        assert ours.contract.assumed == ()
    both = Statement(source=f"hf:{segformer}", like=adopted)
    with pytest.raises(InputError, match="--like and --from"):
        segdeploy.adopt(path, both, out=tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_frameworks_an_engine_is_adopted_by_its_folder(segformer: Path, tmp_path: Path) -> None:
    """Only the manifest is written: nothing reads the engine before the target does."""
    engine = tmp_path / "theirs.engine"
    engine.write_bytes(b"built elsewhere")
    statement = Statement(source=f"hf:{segformer}")
    built = {"backend": "tensorrt-rtx", "version": "1.5", "targets": ["sm86"]}
    segdeploy.adopt(engine, statement, **built)
    contract = read_manifest(engine).contract
    assert (contract.classes, contract.size) == (NAMES, (SIDE, SIDE))
    assert contract.resize == "torchvision-uint8-bilinear"


@pytest.mark.parametrize("text", ["{0: 'road', 1: 'car'}", "{1: 'a'}", "{0: open('x')}", "((("])
def test_frameworks_classes_in_the_metadata_of_an_onnx_file_are_read(
    tmp_path: Path, text: str
) -> None:
    """Ultralytics writes `names` as Python writes a mapping; nothing is executed."""
    network = torch.nn.Conv2d(3, 2, 1)
    path = tmp_path / "theirs.onnx"
    torch.onnx.export(network, (torch.zeros(1, 3, 8, 8),), dynamo=True).save(str(path))
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {"names": text, "stride": "32"})
    onnx.save(graph, path)
    plain = {"mean": (0,), "std": (1,)}
    statement = Statement(preprocessing=plain)
    out = tmp_path / "adopted.onnx"
    if "car" not in text:
        with pytest.raises(InputError, match="its classes are unknown"):
            segdeploy.adopt(path, statement, out=out)
        return
    with segdeploy.load(segdeploy.adopt(path, statement, out=out)) as ours:
        assert ours.contract.classes == ("road", "car")
    named = replace(statement, num_classes=2)
    with segdeploy.load(segdeploy.adopt(path, named, out=out)) as ours:
        assert ours.contract.classes == ("class_0", "class_1")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["model = [*range(3)]"], "would have to be executed"),
        (["a = [1]", *("a = a + a" for _ in range(25))], "has more than 1,000,000 values"),
        (["a = dict(x=1)", *("a = dict(l=a, r=a)" for _ in range(25))], "has more than 1,000,000"),
    ],
)
def test_frameworks_a_configuration_cannot_exhaust_the_memory(
    mmseg: Path, lines: list[str], told: str
) -> None:
    path = mmseg / "config.py"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError) as caught:
        read_network(f"mmseg:{path},{mmseg / 'c.pth'}")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": {"height": 100_000, "width": 100_000}}, "more than 100000000 pixels"),
        ({"resample": "bilinear"}, "the filter 'bilinear' is none that segdeploy has"),
        ({"image_std": [0, 0, 0]}, "returns NaN or infinity"),
        ({"image_mean": [0.5, 0.5]}, "failed on an image"),
    ],
)
def test_frameworks_options_of_a_processor_that_cannot_be_are_refused(
    segformer: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    folder = edited(segformer, tmp_path / "folder", "preprocessor_config.json", **options)
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        read_network(f"hf:{folder}")
    assert told in str(caught.value)


# --- what the files say and a user states otherwise ----------------------------------------------


def test_frameworks_adopt_refuses_a_data_set_of_other_classes(
    segformer: Path, dataset: Path, tmp_path: Path
) -> None:
    statement = Statement(source=f"hf:{segformer}", data=dataset)
    network = torch.nn.Conv2d(3, 2, 1)
    path = tmp_path / "theirs.onnx"
    torch.onnx.export(network, (torch.zeros(1, 3, 8, 8),), dynamo=True).save(str(path))
    with pytest.raises(InputError, match="has the classes road, car, .*use the data set that it"):
        segdeploy.adopt(path, statement, out=tmp_path / "a.onnx")
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {"names": "{0: 'road', 1: 'car'}"})
    onnx.save(graph, path)
    plain = Statement(data=dataset, preprocessing={"mean": (0,), "std": (1,)})
    with pytest.raises(InputError, match="its metadata: has the classes road, car; "):
        segdeploy.adopt(path, plain, out=tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_frameworks_a_folder_of_another_size_than_the_graph_is_told_or_refused(
    segformer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "theirs.onnx"
    network = torch.nn.Conv2d(3, len(NAMES), 1)
    torch.onnx.export(network, (torch.zeros(1, 3, 48, 56),), dynamo=True).save(str(path))
    with caplog.at_level(logging.INFO):
        segdeploy.adopt(path, Statement(source=f"hf:{segformer}"), out=tmp_path / "a.onnx")
    assert "resizes images to 64x64, and the graph takes 48x56" in caplog.text
    folder = saved_by_transformers("mobilenet_v2", tmp_path / "cropped")
    with pytest.raises(
        InputError, match=r"gives images of 64x64 \(--fit shortest-edge,center-crop"
    ):
        segdeploy.adopt(path, Statement(source=f"hf:{folder}"), out=tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("number", [None, "abc", [], {}, -1, 1e400])
def test_frameworks_values_of_any_type_in_a_folder_are_one_line(
    segformer: Path, tmp_path: Path, name: str, number: object
) -> None:
    """Every value of the file in turn; a value that is right or that nobody reads is taken."""
    held = json.loads((segformer / name).read_text())
    for key in held:
        folder = edited(segformer, tmp_path / f"{key}", name, **{key: number})
        try:
            read_network(f"hf:{folder}")
        except InputError as error:
            assert "\n" not in str(error)


def test_frameworks_the_number_of_classes_without_names_is_read(
    segformer: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(segformer, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (folder / "config.json").write_text(json.dumps({**config, "num_labels": len(NAMES)}))
    assert read_network(f"hf:{folder}").num_classes == len(NAMES)


def test_frameworks_weights_without_a_place_are_told_and_counters_may_be_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved_by_transformers("mobilenet_v2", tmp_path / "folder")
    state = load_file(folder / "model.safetensors")
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    assert counters
    kept = {key: value for key, value in state.items() if key not in counters}
    kept["segmentation_head.extra.weight"] = torch.zeros(3)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.INFO):
        load_network(ModelSpec(f"hf:{folder}"))
    assert "left out 1 weights that the network of config.json has no place for" in caplog.text
    assert "segmentation_head.extra.weight" in caplog.text


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "test_pipeline = [dict(type='Resize', scale=(90, 50), keep_ratio=False)]",
            "resizes images to 50x90 and pads them to multiples of 16, which no contract states",
        ),
        ("test_pipeline = [dict(type='Resize', scale=(96, 48), min_size=9)]", "option min_size"),
        ("test_pipeline = [dict(type='RandomFlip', prob=1.0)]", "mirrors images at random"),
        (
            "test_pipeline = [dict(type='Normalize', mean=[1, 2, 3], std=[1, 1, 1])]",
            "normalizes twice",
        ),
        ("model = dict(test_cfg=dict(mode='slide', crop_size=(-5, 10)))", "two numbers above 0"),
        ("model = dict(test_cfg=[1])", "of another type than its framework writes"),
        ("data_preprocessor = dict(mean='abc')\nmodel = dict(data_preprocessor="
         "data_preprocessor)", "of another type than its framework writes"),
    ],
)  # fmt: skip
def test_frameworks_what_a_test_pipeline_says_is_read_or_refused(
    mmseg: Path, line: str, told: str
) -> None:
    path = mmseg / "config.py"
    path.write_text(f"{path.read_text()}\n{line}\n")
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        read_network(f"mmseg:{path},{mmseg / 'c.pth'}")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "is_normalized"),
    [
        ("dict(type='Pad', size_divisor=16, pad_val=dict(img=7, seg=255))", False),
        ("dict(type='Normalize', mean=[1, 2, 3], std=[1, 1, 1]), dict(type='Pad', size_divisor=16,"
         " pad_val=7)", True),
        ("dict(type='Pad', size_divisor=16, pad_val=7), dict(type='Normalize', mean=[1, 2, 3],"
         " std=[1, 1, 1])", False),
    ],
)  # fmt: skip
def test_frameworks_padding_has_the_place_of_its_step(
    mmseg: Path, steps: str, is_normalized: bool
) -> None:
    path = mmseg / "config.py"
    resize = "dict(type='Resize', scale=(96, 48), keep_ratio=True)"
    own = "" if "Normalize" in steps else "mean=[1, 2, 3], std=[1, 1, 1]"
    path.write_text(
        f"test_pipeline = [{resize}, {steps}]\n"
        f"model = dict(decode_head=dict(num_classes=5), data_preprocessor=dict({own}))\n"
    )
    found = read_network(f"mmseg:{path},{mmseg / 'c.pth'}").stated
    assert (found["pad"], found["pad_normalized"]) == ((7.0,), is_normalized)
    assert found["fit"] == "shortest-edge,pad-to-multiple"


def test_frameworks_mmsegmentation_0_keeps_the_ratio_by_default(mmseg: Path) -> None:
    path = mmseg / "config.py"
    path.write_text(
        "model = dict(decode_head=dict(num_classes=5))\n"
        "test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(96, 48),"
        " transforms=[dict(type='Resize'), dict(type='RandomFlip')])]\n"
    )
    found = read_network(f"mmseg:{path},{mmseg / 'c.pth'}").stated
    assert (found["fit"], found["edge"], found["longest_edge"]) == ("shortest-edge", 48, 96)


# --- MMDeploy -------------------------------------------------------------------------------------


def dumped(folder: Path, transforms: list[dict[str, Any]], **head: Any) -> Path:
    """The files that MMDeploy writes beside a graph, as `export_info.py` builds them."""
    folder.mkdir()
    tasks = [
        {"type": "Task", "module": "Transform", "name": "Preprocess", "transforms": transforms},
        {"name": "fcn", "type": "Task", "module": "Net", "input_map": {"img": "input"}},
        {"type": "Task", "module": "mmseg", "name": "postprocess", "component": "ResizeMask",
         "params": {"type": "FCNHead", "num_classes": 5, "with_argmax": True, **head}},
    ]  # fmt: skip
    (folder / "pipeline.json").write_text(json.dumps({"pipeline": {"tasks": tasks}}))
    models = [{"name": "fcn", "net": "end2end.onnx", "backend": "onnxruntime"}]
    (folder / "deploy.json").write_text(json.dumps({"version": "1.3.1", "models": models}))
    return folder


TRANSFORMS = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "keep_ratio": False, "size": [96, 48]},
    {"type": "Normalize", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375],
     "to_rgb": True},
    {"type": "ImageToTensor", "keys": ["img"]},
    {"type": "Collect", "keys": ["img"], "meta_keys": ["img_shape"]},
]  # fmt: skip


class Labels(torch.nn.Module):
    """mmsegmentation's logits at half the size, enlarged, and their largest, as of MMDeploy."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 5, 3, stride=2, padding=2, dilation=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores = self.convolution(image)
        return F.interpolate(scores, image.shape[2:], mode="bilinear").argmax(1, keepdim=True)


def test_frameworks_the_files_of_mmdeploy_state_a_graph(
    tmp_path: Path, images: list[np.ndarray], run: Callable[..., Ran]
) -> None:
    folder = dumped(tmp_path / "work", TRANSFORMS)
    network = seeded(Labels)
    path = folder / "end2end.onnx"
    torch.onnx.export(network, (torch.zeros(1, 3, 48, 96),), dynamo=True).save(str(path))
    ran = run("adopt", path, "--from", f"mmdeploy:{folder}", "-o", tmp_path / "m.onnx")
    assert ran.code == 0, ran.err
    assert "names no classes; name them with --data" in ran.err
    with segdeploy.load(tmp_path / "m.onnx") as ours:
        assert ours.contract.assumed == ()
        for image in images:
            resized = cv2.resize(image, (96, 48), interpolation=cv2.INTER_LINEAR)
            mean = np.array([123.675, 116.28, 103.53])
            std = np.array([58.395, 57.12, 57.375])
            made = torch.from_numpy((resized - mean) / std).permute(2, 0, 1)[None].float()
            with torch.no_grad():
                labels = network(made)[0, 0].numpy()
            assert np.mean(ours.predict(resized) == labels) > 0.999
    ran = run("export", "--from", f"mmdeploy:{folder}", "-o", tmp_path / "n.onnx")
    check_one_line(ran, "describes a graph that was exported", f"`segdeploy adopt {path} --from")


@pytest.mark.parametrize(
    ("transforms", "told"),
    [
        (None, "has no pipeline.json, which MMDeploy writes with --dump-info"),
        ([{"type": "CenterCrop", "crop_size": 5}], "the step CenterCrop of the test pipeline"),
        ([5], "its test pipeline has the step 5"),
        ([{"type": "Resize", "size": [0, 5]}], "Resize has the scale [0, 5]"),
    ],
)
def test_frameworks_files_of_mmdeploy_that_cannot_be_stated_are_refused(
    tmp_path: Path, transforms: list[Any] | None, told: str
) -> None:
    if transforms is not None:
        dumped(tmp_path / "work", transforms)
    with pytest.raises(InputError) as caught:
        read_network(f"mmdeploy:{tmp_path / 'work'}")
    assert told in str(caught.value)
    (tmp_path / "work").mkdir(exist_ok=True)
    (tmp_path / "work" / "pipeline.json").write_text('{"pipeline": {"tasks": [1]}}')
    with pytest.raises(InputError, match="has no task of the module Transform"):
        read_network(f"mmdeploy:{tmp_path / 'work'}")


def test_frameworks_training_tells_which_class_keeps_which_weights(
    segformer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    pixels = np.arange(len(NAMES), dtype=np.uint8).repeat(20).reshape(10, 10)
    Image.fromarray(np.stack([pixels] * 3, 2)).save(tmp_path / "images" / "a.png")
    Image.fromarray(pixels).save(tmp_path / "masks" / "a.png")
    data = open_dataset(Path(f"masks:{tmp_path / 'images'},{tmp_path / 'masks'}"))
    with caplog.at_level(logging.INFO):
        load_network(ModelSpec(f"hf:{segformer}"), data, (64, 64), is_trained_here=True)
    told = "its classifier keeps the weights of road, car, tree, sky, pole for class_0, class_1, "
    assert told in caplog.text
