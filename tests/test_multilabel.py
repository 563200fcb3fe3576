"""Networks that find several classes for one pixel: the labels are bit planes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score
from torch import nn
from torch.nn import functional

import segdeploy
from segdeploy.adoption.statement import Statement
from segdeploy.calibration.reference_execution import scores_of
from segdeploy.contract import Contract
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.bit_planes import packed, plane
from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import ModelInputError
from segdeploy.models.metrics import LabelCounts
from segdeploy.models.scenes import CAR, PERSON, PLANES, ROAD, draw_scene, generate
from segdeploy.onnx_graph.model_file import load_onnx, set_contract
from segdeploy.proof.golden_vectors import golden_path, read_golden
from segdeploy.runtime.inference_options import InferenceOptions
from segdeploy.runtime.late_upsampling import late_labels
from segdeploy.runtime.postprocess import label_colors
from segdeploy.serve.pre_post_processing import labels_graph

from .conftest import Ran, check_one_line

THRESHOLDS = (0.5, 0.4, 0.3, 0.2)


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of bit planes."""
    from segdeploy.cli import main

    folder = tmp_path_factory.mktemp("planes") / "scenes"
    words = ["--train", "12", "--val", "2", "--size", "48x64", "--multilabel", "-q"]
    with pytest.raises(SystemExit) as exited:
        main(["data", "scenes", str(folder), *words])
    assert not exited.value.code
    return folder


@pytest.fixture(scope="module")
def network(planes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was trained on bit planes, with a threshold for each class."""
    out = tmp_path_factory.mktemp("multilabel") / "m.safetensors"
    spec = ModelSpec(
        "deeplabv3",
        arguments={"width": 12, "stride": 2},
        size=(48, 64),
        stated={"threshold": THRESHOLDS},
    )
    loss = {"cross-entropy": 1.0, "focal": 1.0, "dice": 0.5}
    segdeploy.train(spec, planes, out, epochs=10, batch_size=4, loss=loss)
    return out


def test_multilabel_scenes_overlap() -> None:
    """Every vehicle and every person is an object, too."""
    (_, image, labels), *_ = generate("train", 1, (96, 128), 0, multilabel=True)
    plain, mask = draw_scene(np.random.default_rng([0, 0, 0]), (96, 128))
    assert plain.shape == image.shape
    ((_, _, ids),) = generate("train", 1, (96, 128), 0)
    assert PLANES == ("ground", "object", "vehicle", "person")
    assert np.array_equal(plane(labels, 2) == 1, ids == CAR)
    assert np.array_equal(plane(labels, 3) == 1, ids == PERSON)
    assert np.all(plane(labels, 1)[(ids == CAR) | (ids == PERSON)] == 1)
    assert np.all(plane(labels, 0)[ids == ROAD] == 1)
    assert np.array_equal(labels == 255, ids == 255)
    assert mask.shape == ids.shape


def test_multilabel_every_kind_of_graph_gives_the_same_labels(
    run: Callable[..., Ran], network: Path, planes: Path, tmp_path: Path
) -> None:
    """The labels are those of PyTorch's sigmoid at the image's own size, class by class."""
    contract = segdeploy.inspect(network).contract
    assert (contract.head, contract.classes, contract.threshold) == (
        *("multilabel", PLANES),
        THRESHOLDS,
    )
    image = open_dataset(planes).frames("val")[0].read_image()
    kinds = {
        "logits": {},
        "probabilities": {"output": "probabilities"},
        "labels": {"output": "labels"},
        "late": {"output": "labels", "late_upsampling": True},
    }
    found = {}
    for name, options in kinds.items():
        path = segdeploy.export(network, tmp_path / f"{name}.onnx", data=planes, **options).path
        with segdeploy.load(path) as loaded:
            found[name] = loaded.predict(image)
            if name == "logits":
                logits = torch.from_numpy(loaded.logits(image))
                probabilities = loaded.probabilities(image)
    np.testing.assert_allclose(probabilities, logits.sigmoid().numpy(), atol=1e-6)
    limits = torch.tensor(THRESHOLDS)[:, None, None]
    expected = packed(list((logits.sigmoid() > limits).numpy()))
    assert len(np.unique(expected)) > 3
    for name, labels in found.items():
        assert labels.dtype == np.uint8
        assert np.mean(labels == expected) > 0.999, name
    assert segdeploy.inspect(tmp_path / "late.onnx").contract.upsampling
    odd = np.ascontiguousarray(image[:41, :59])
    with segdeploy.load(tmp_path / "logits.onnx") as loaded:
        scores = torch.from_numpy(loaded.scores(odd))[None]
        wide = functional.interpolate(scores, odd.shape[:2], mode="bilinear")[0].sigmoid()
        labels = packed(list((wide > limits).numpy()))
        assert np.mean(loaded.predict(odd) == labels) > 0.999
        tiles = loaded.predict(np.tile(image, (2, 2, 1)), InferenceOptions(tile=True))
        assert tiles.shape == (96, 128)
        assert tiles.max() < 16


def test_multilabel_goes_the_whole_way(
    run: Callable[..., Ran], network: Path, planes: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    graph = segdeploy.export(network, tmp_path / "m.onnx", data=planes).path
    ran = run("evaluate", graph, "--data", planes, "--json")
    figures = json.loads(ran.out)
    assert set(figures["iou"]) == set(PLANES)
    int8 = segdeploy.calibrate(graph, planes, tmp_path / "int8.onnx", max_miou_drop=0.9).path
    labels = segdeploy.export(network, tmp_path / "l.onnx", data=planes, output="labels").path
    report = segdeploy.build_engine(labels, tmp_path / "m.engine", targets=["sm86"])
    assert report.golden
    for vector in read_golden(golden_path(tmp_path / "m.engine")):
        with segdeploy.load(labels) as loaded:
            assert np.mean(loaded.predict(vector.image) == vector.labels) > 0.999
    ran = run("bench", int8, labels, "--reference", graph, "--data", planes, "--seconds", 0.1,
              "--ece", "--report", tmp_path / "report", "--min-agreement", 0)  # fmt: skip
    assert ran.code == 0, ran.err
    assert (tmp_path / "report" / "index.html").is_file()
    assert scores_of(load_onnx(labels)) == load_onnx(graph).graph.output[0].name
    image = planes / "val" / "images" / "val_0000.jpg"
    ran = run("predict", graph, image, "-o", tmp_path / "o.png", "--labels", tmp_path / "l.png",
              "--json")  # fmt: skip
    shares = json.loads(ran.out)["shares"]
    written = np.asarray(Image.open(tmp_path / "l.png"))
    assert shares["ground"] == pytest.approx(np.mean(written & 1))
    assert shares["object"] == pytest.approx(np.mean(written >> 1 & 1))
    assert run("serve-repo", graph, "-o", tmp_path / "repo").code == 0


def test_multilabel_metrics_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth, found = (rng.integers(0, 8, (30, 40)).astype(np.uint8) for _ in range(2))
    truth[:3] = 255
    counts = LabelCounts(3, 255, bit_planes=True)
    counts.add(truth, found)
    kept = truth != 255
    true, given = (
        np.stack([one[kept] >> index & 1 for index in range(3)], axis=1) for one in (truth, found)
    )
    np.testing.assert_allclose(counts.iou(), jaccard_score(true, given, average=None))
    np.testing.assert_allclose(counts.dice(), f1_score(true, given, average=None))
    assert counts.pixel_accuracy() == pytest.approx(np.mean((true == given).all(1)))


def test_multilabel_losses_are_those_of_every_class(
    network: Path, planes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the first step is PyTorch's binary cross-entropy over the labeled pixels."""
    from segdeploy.models.training import Training

    steps: list[tuple[torch.Tensor, torch.Tensor, float]] = []
    logits_of, backward = Training._logits, Training._backward
    kept: list[torch.Tensor] = []

    def recorded(self, images, batch):
        kept.append(logits_of(self, images, batch))
        return kept[-1]

    def noted(self, batch, index, group):
        loss = backward(self, batch, index, group)
        steps.append((kept[-1].detach(), batch.masks.clone(), loss))
        return loss

    monkeypatch.setattr(Training, "_logits", recorded)
    monkeypatch.setattr(Training, "_backward", noted)
    spec = ModelSpec("deeplabv3", arguments={"width": 4, "stride": 2}, size=(48, 64))
    segdeploy.train(spec, planes, tmp_path / "m.safetensors", epochs=1, batch_size=2)
    for logits, masks, loss in steps:
        labeled = masks != 255
        bits = torch.stack([masks >> k & 1 for k in range(4)], 1).float()
        each = functional.binary_cross_entropy_with_logits(logits, bits, reduction="none")
        expected = (each.sum(1) * labeled).sum() / (4 * labeled.sum())
        assert loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("alignment", ["half-pixel", "align-corners"])
def test_multilabel_late_labels_are_those_of_the_upsampled_scores(alignment: str) -> None:
    contract = replace(
        Contract("n", PLANES, ((0, 0, 0),) * 4, 255, (40, 56)),
        **{"head": "multilabel", "threshold": THRESHOLDS, "output": "labels"},
        upsampling=alignment,
    )
    scores = np.random.default_rng(0).normal(0, 2, (4, 10, 14)).astype(np.float32)
    wide = functional.interpolate(
        torch.from_numpy(scores)[None],
        (40, 56),
        mode="bilinear",
        align_corners=alignment == "align-corners",
    )[0]
    limits = torch.tensor(contract.threshold_scores)[:, None, None]
    expected = packed(list((wide > limits).numpy()))
    assert np.mean(late_labels(scores, (40, 56), contract) == expected) > 0.999
    session = onnxruntime.InferenceSession(labels_graph(contract).SerializeToString())
    (served,) = session.run(None, {"scores": wide[None].numpy()})
    assert np.array_equal(served[0], expected)


class Several(nn.Module):
    """Three channels, each with a sigmoid of its own."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 3, 3, padding=2, dilation=2)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.body(x))


def of_logits() -> nn.Module:
    return Several(nn.Identity())


def of_probabilities() -> nn.Module:
    return Several(nn.Sigmoid())


def test_multilabel_of_a_users_network(run: Callable[..., Ran], tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    found = []
    for name in ("of_logits", "of_probabilities"):
        out = tmp_path / f"{name}.onnx"
        words = ("export", f"tests.test_multilabel:{name}", "--size", "32x48")
        ran = run(*words, "--head", "multilabel", "--threshold", 0.4, "-o", out)
        assert ran.code == 0, ran.err
        contract = segdeploy.inspect(out).contract
        assert (contract.head, len(contract.classes)) == ("multilabel", 3)
        with segdeploy.load(out) as loaded:
            found.append(loaded.predict(image))
    assert "ends in a sigmoid" in ran.err
    assert np.mean(found[0] == found[1]) > 0.999
    stated = Statement(
        num_classes=3,
        preprocessing={
            **{"head": "multilabel", "threshold": 0.4},
            **{"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        },
    )
    bare = load_onnx(tmp_path / "of_logits.onnx")
    contract = segdeploy.inspect(tmp_path / "of_logits.onnx").contract
    set_contract(bare, contract)
    del bare.metadata_props[:]
    (tmp_path / "bare.onnx").write_bytes(bare.SerializeToString())
    adopted = segdeploy.adopt(tmp_path / "bare.onnx", stated, out=tmp_path / "a.onnx")
    with segdeploy.load(adopted) as loaded:
        assert np.array_equal(loaded.predict(image), found[0])


def of_softmax() -> nn.Module:
    return Several(nn.Softmax(1))


def of_labels() -> nn.Module:
    class Best(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argmax(1)

    return Several(Best())


def test_multilabel_an_end_of_another_kind_is_told(run: Callable[..., Ran], tmp_path: Path) -> None:
    def exported(name: str, *more: object) -> Ran:
        words = ("export", f"tests.test_multilabel:{name}", "--size", "32x48")
        return run(*words, "-o", tmp_path / "m.onnx", *more)

    for name, options, reason in (
        ("of_softmax", ("--head", "multilabel"), "ends in a softmax, so that a pixel is of one"),
        ("of_labels", (), "return the logits, before the argmax"),
        ("of_logits", ("--channels", "gray"), "takes 3 channels, and --channels names 1 (gray)"),
        ("of_logits", ("--num-classes", 1), "it is no binary network: leave --head, --foreground"),
    ):
        ran = exported(name, *options)
        assert ran.code == 2
        assert reason in ran.err.splitlines()[-1]
    ran = exported("of_probabilities")
    assert ran.code == 0
    assert "state --head multilabel if a pixel can be of several classes" in ran.err


def test_multilabel_one_class_of_several_is_a_binary_network(
    run: Callable[..., Ran], planes: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(planes)
    whole, vehicles = dataset.frames("val")[0], dataset.against_rest("vehicle").frames("val")[0]
    assert np.array_equal(vehicles.read_mask(), plane(whole.read_mask(), 2))
    out = tmp_path / "vehicle.onnx"
    ran = run("export", "deeplabv3", "--width", 4, "--size", "48x64", "--data", planes,
              "--foreground", "vehicle", "-o", out)  # fmt: skip
    assert ran.code == 0, ran.err
    assert segdeploy.inspect(out).contract.head == "binary"
    assert run("evaluate", out, "--data", planes).code == 0


def test_multilabel_colors_are_mixed() -> None:
    colors = label_colors([(200, 0, 0), (0, 100, 50)], bit_planes=True)
    assert colors[0, 3] == colors[255, 3] == colors[4, 3] == 0
    assert colors[1:4].tolist() == [[200, 0, 0, 255], [0, 100, 50, 255], [100, 50, 25, 255]]


def test_multilabel_what_cannot_be_is_refused(
    run: Callable[..., Ran], network: Path, planes: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.onnx"
    words = ("export", "tests.test_multilabel:of_logits", "--size", "32x48", "-o", out)

    def refused(*more: object, reason: str) -> None:
        ran = run(*words, *more)
        assert ran.code == 2
        assert reason in ran.err.splitlines()[-1]

    refused("--head", "multilabel", "--threshold", "0.5,0.5", reason="2 values for 3 classes")
    refused("--threshold", "0.5", reason="goes with a binary network")
    refused("--threshold", "1.5", reason="'1.5' is not a probability above 0")
    refused("--head", "multilabel", "--label-ids", "1,2,3", reason="not multilabel")
    refused("--head", "multilabel", "--min-confidence", "0.5", reason="not multilabel")
    refused("--head", "multilabel", "--num-classes", "1", reason="is a binary network")
    refused("--head", "multilabel", "--num-classes", "8", reason="of at most 7 classes")
    refused("--data", dataset, "--head", "multilabel", reason="8")
    ran = run("evaluate", network, "--data", dataset)
    check_one_line(ran, "was trained for the classes ground, object, vehicle, person")
    ran = run("train", "deeplabv3", "--data", planes, "--size", "48x64", "--class-weights",
              "inverse-log", "-o", tmp_path / "m.safetensors")  # fmt: skip
    check_one_line(ran, "--class-weights inverse-log", "bit planes")
    described = json.loads((planes / "dataset.json").read_text())
    for change, reason in (
        ({"masks": "planes"}, "'masks' must be one of class-ids, bit-planes"),
        ({"ignore_index": 200}, "'ignore_index' must be 255 for bit planes"),
    ):
        (tmp_path / "dataset.json").write_text(json.dumps(described | change))
        with pytest.raises(ModelInputError, match=reason):
            open_dataset(tmp_path)
    described["masks"] = "class-ids"
    (tmp_path / "val").symlink_to(planes / "val")
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    with pytest.raises((InputError, ModelInputError), match="masks are class ids, and .* multilab"):
        segdeploy.evaluate(network, tmp_path)
