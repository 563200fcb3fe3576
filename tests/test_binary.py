"""Networks of one output channel: a pixel is of the foreground where its score is high enough."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

import segdeploy
from segdeploy.adoption.statement import Statement
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import ModelInputError
from segdeploy.models.losses import LOSSES
from segdeploy.onnx_graph.model_file import load_onnx
from segdeploy.proof.golden_vectors import golden_path
from segdeploy.runtime.inference_options import InferenceOptions
from segdeploy.serve.pre_post_processing import labels_graph

from .conftest import Ran, check_one_line


@pytest.fixture(scope="module")
def road(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that finds the road, with a threshold of 0.3."""
    out = tmp_path_factory.mktemp("road") / "m.safetensors"
    spec = ModelSpec(
        "deeplabv3",
        arguments={"width": 8, "stride": 2},
        size=(48, 64),
        foreground="road",
        stated={"threshold": 0.3},
    )
    segdeploy.train(spec, dataset, out, epochs=6, loss={"cross-entropy": 1.0, "dice": 1.0})
    return out


def evaluated(run: Callable[..., Ran], path: Path, dataset: Path) -> dict[str, float]:
    ran = run("evaluate", path, "--data", dataset, "--json")
    assert ran.code == 0, ran
    return json.loads(ran.out)


def test_binary_every_kind_of_graph_gives_the_same_labels(
    run: Callable[..., Ran], road: Path, dataset: Path, tmp_path: Path
) -> None:
    contract = segdeploy.inspect(road).contract
    assert (contract.head, contract.threshold, contract.classes) == (
        *("binary", 0.3, ("background", "road")),
    )
    assert contract.threshold_scores[0] == pytest.approx(math.log(0.3 / 0.7))
    image, mask = open_dataset(dataset).against_rest("road").frames("val")[0].read()
    assert set(np.unique(mask)) <= {0, 1, 255}
    with segdeploy.load(road) as network:
        raw = network.session.run(network.prepare(image))
        assert raw.shape == (1, 1, 48, 64)
        logits = functional.interpolate(torch.from_numpy(raw), image.shape[:2], mode="bilinear")
        expected = (logits.sigmoid() > 0.3)[0, 0].numpy().astype(np.uint8)
        assert 0 < expected.mean() < 1
        assert np.mean(network.predict(image) == expected) > 0.9999
        found = network.probabilities(image)
        np.testing.assert_allclose(found[1], logits.sigmoid()[0, 0], atol=1e-5)
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)
        tiled = network.predict(image, InferenceOptions(tile=True))
        assert set(np.unique(tiled)) <= {0, 1}
        several = network.predict(image, InferenceOptions(scales=(0.5, 1.0), flip=True))
        assert np.mean(several == expected) > 0.7
    reference = evaluated(run, road, dataset)
    assert list(reference["iou"]) == ["background", "road"]
    for name, options in {
        "plain": {},
        "probabilities": {"output": "probabilities"},
        "labels": {"output": "labels", "preprocess": "RGB"},
        "late": {"output": "labels", "late_upsampling": True},
        "dynamic": {"dynamic": True},
    }.items():
        path = segdeploy.export(road, tmp_path / f"{name}.onnx", **options).path
        assert evaluated(run, path, dataset)["miou"] == pytest.approx(reference["miou"], abs=0.02)
        with segdeploy.load(path) as network:
            at_size = np.ascontiguousarray(image[:48, :64])
            with segdeploy.load(road) as own:
                assert np.mean(network.predict(at_size) == own.predict(at_size)) > 0.999, name
    # The threshold is folded into a comparison of logits.
    operators = {node.op_type for node in load_onnx(tmp_path / "labels.onnx").graph.node}
    assert "Greater" in operators
    assert not {"Sigmoid", "ArgMax"} & operators


def test_binary_goes_the_whole_way(
    run: Callable[..., Ran], road: Path, dataset: Path, tmp_path: Path, tensorrt_rtx
) -> None:
    plain = segdeploy.export(road, tmp_path / "m.onnx").path
    int8 = segdeploy.calibrate(plain, dataset, tmp_path / "int8.onnx").path
    engine = segdeploy.build_engine(int8, tmp_path / "m.engine", targets=["sm86"]).path
    assert segdeploy.inspect(engine).contract.threshold == 0.3
    assert run("self-test", int8, "--golden", golden_path(engine)).code == 0
    words = ("bench", plain, int8, "--reference", road, "--data", dataset, "--seconds", 0.1)
    ran = run(*words, "--ece", "--json", "--report", tmp_path / "r")
    assert ran.code in (0, 1), ran
    rows = json.loads(ran.out)["rows"]
    assert rows[1]["agreement"]["labels"] == 1
    assert 0.9 < rows[2]["agreement"]["labels"] <= 1
    assert list(rows[1]["accuracy"]["iou"]) == ["background", "road"]
    written = segdeploy.serve_repo(plain, tmp_path / "repo")
    assert written.models[-1] == "m"
    scores = np.random.default_rng(0).normal(0, 3, (2, 1, 48, 64)).astype(np.float32)
    contract = segdeploy.inspect(plain).contract
    session = onnxruntime.InferenceSession(labels_graph(contract).SerializeToString())
    (labels,) = session.run(None, {"scores": scores})
    assert np.array_equal(labels, (scores[:, 0] > contract.threshold_scores[0]).astype(np.uint8))


def test_binary_losses_are_those_of_the_sigmoid() -> None:
    """The losses of two classes with the scores 0 and x."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 5, 7, generator=generator) * 3
    truth = torch.randint(0, 2, (2, 5, 7), generator=generator)
    truth[0, 0] = 255
    both = torch.cat([torch.zeros_like(logits), logits], dim=1)
    counted = truth != 255
    plain = functional.binary_cross_entropy_with_logits(
        logits[:, 0][counted], truth[counted].float(), reduction="none"
    )
    found = LOSSES["cross-entropy"](both, truth, 255, None)
    assert found == pytest.approx(plain.mean().item(), rel=1e-5)
    focal = 0.25 * (1 - torch.exp(-plain)) ** 2 * plain  # Lin et al. 2017, equation 5
    assert LOSSES["focal"](both, truth, 255, None) == pytest.approx(focal.mean().item(), rel=1e-5)


class OneChannel(nn.Module):
    def __init__(self, ending: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        self.ending = ending

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ending(self.conv(x))


def of_logits() -> nn.Module:
    return OneChannel(nn.Identity())


def of_probabilities() -> nn.Module:
    return OneChannel(nn.Sigmoid())


def test_binary_of_a_users_network(run: Callable[..., Ran], dataset: Path, tmp_path: Path) -> None:
    """Softmax and argmax over one channel gave class 0 everywhere, and were proven."""
    image = open_dataset(dataset).frames("val")[0].read_image()[:32, :48]
    answers = []
    for name in ("of_logits", "of_probabilities"):
        for output in ("logits", "labels"):
            out = tmp_path / f"{name}.{output}.onnx"
            ran = run("export", f"tests.test_binary:{name}", "--size", "32x48", "-o", out,
                      "--output", output)  # fmt: skip
            assert ran.code == 0, ran
            assert "has one output channel, so it is a binary network" in ran.err
            contract = segdeploy.inspect(out).contract
            assert contract.classes == ("background", "foreground")
            with segdeploy.load(out) as network:
                answers.append(network.predict(np.ascontiguousarray(image)))
    assert segdeploy.inspect(tmp_path / "of_probabilities.logits.onnx").contract.output == (
        "probabilities"
    )
    assert 0 < answers[0].mean() < 1
    for answer in answers[1:]:
        assert np.mean(answer == answers[0]) > 0.999
    out = tmp_path / "threshold.onnx"
    words = ("export", "tests.test_binary:of_logits", "--size", "32x48", "--threshold", 0.3)
    assert run(*words, "-o", out).code == 0  # the network's output tells that it is binary
    assert segdeploy.inspect(out).contract.threshold == 0.3
    ran = run(*words, "--head", "multiclass", "-o", tmp_path / "no.onnx")
    assert ran.code == 2
    out = tmp_path / "road.onnx"
    words = (
        "export",
        "tests.test_binary:of_logits",
        "--size",
        "32x48",
        "--data",
        dataset,
        "-o",
        out,
    )
    assert run(*words, "--foreground", "road").code == 0
    assert segdeploy.inspect(out).contract.classes == ("background", "road")


def test_binary_unsure_pixels_get_the_ignore_index(
    run: Callable[..., Ran], road: Path, graph: Path, dataset: Path, tmp_path: Path
) -> None:
    image = open_dataset(dataset).frames("val")[0].read_image()
    plain = segdeploy.export(road, tmp_path / "m.onnx").path
    for name, path, least in (("binary", plain, 0.6), ("multiclass", graph, 0.2)):
        stated = Statement(like=path, preprocessing={"min_confidence": least})
        sure = segdeploy.adopt(path, stated, out=tmp_path / f"{name}.onnx")
        with segdeploy.load(path) as every, segdeploy.load(sure) as network:
            labels, found = every.predict(image), network.predict(image)
            shares = every.probabilities(image)
            (other,) = network.predict_batch([image])
        confidence = np.take_along_axis(shares, labels[None].astype(np.intp), 0)[0]
        assert np.array_equal(found, np.where(confidence < least, 255, labels))
        assert np.array_equal(found, other)
        assert 0 < np.mean(found == 255) < 1
        evaluated(run, sure, dataset)
        check_one_line(run("serve-repo", sure, "-o", tmp_path / "repo"), "min_confidence")
    unsure = Statement(like=graph, preprocessing={"min_confidence": 0.999})
    none = segdeploy.adopt(graph, unsure, out=tmp_path / "none.onnx")
    found = evaluated(run, none, dataset)
    assert found["coverage"] < 0.5
    assert found["miou"] < evaluated(run, graph, dataset)["miou"]  # what got no class is a miss
    budget = ("--max-miou-drop", 100, "-o", tmp_path / "int8.onnx")
    assert run("calibrate", none, "--data", dataset, *budget).code == 0
    words = ("export", "tests.test_binary:of_logits", "--size", "32x48", "-o", tmp_path / "l.onnx")
    ran = run(*words, "--min-confidence", 0.6, "--output", "labels")
    assert ran.code == 2
    assert "--min-confidence 0.6: needs the probabilities, and the graph gives labels" in ran.err


def test_binary_published_ids(
    run: Callable[..., Ran], graph: Path, dataset: Path, tmp_path: Path
) -> None:
    """Train ids to published ids, as Cityscapes has them; classes of one group share an id."""
    ids = (23, 11, 7, 8, 21, 26, 24, 26)
    path = segdeploy.adopt(
        graph,
        Statement(like=graph, preprocessing={"label_ids": ids, "min_confidence": 0.2}),
        out=tmp_path / "m.onnx",
    )
    frame = open_dataset(dataset).frames("val")[0]
    out, labels = tmp_path / "o.png", tmp_path / "l.png"
    assert run("predict", path, frame.image, "-o", out, "--labels", labels).code == 0
    with segdeploy.load(path) as network:
        found = network.predict(frame.image)
    expected = np.array([*ids, *range(8, 256)], np.uint8)[found]
    assert 255 in expected
    assert np.array_equal(np.asarray(Image.open(labels)), expected)
    wrong = Statement(like=graph, preprocessing={"label_ids": (1, 2)})
    with pytest.raises(InputError, match="--label-ids 1,2: has 2 ids for 8 classes"):
        segdeploy.adopt(graph, wrong, out=tmp_path / "w.onnx")
    words = ("export", "tests.test_binary:of_logits", "--size", "32x48", "-o", tmp_path / "w.onnx")
    check_one_line(run(*words, "--label-ids", "1,300"), "is not a list of ids of 0 to 255")


def test_binary_of_a_foreign_file(road: Path, dataset: Path, tmp_path: Path) -> None:
    plain = segdeploy.export(road, tmp_path / "m.onnx").path
    graph = load_onnx(plain)
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "foreign.onnx")
    out = tmp_path / "adopted.onnx"
    half = {"mean": (0.5,), "std": (0.5,)}
    statement = Statement(num_classes=1, preprocessing=half | {"threshold": 0.9})
    segdeploy.adopt(tmp_path / "foreign.onnx", statement, out=out)
    contract = segdeploy.inspect(out).contract
    assert (contract.head, contract.threshold) == ("binary", 0.9)
    named = Statement(data=dataset, foreground="road", preprocessing=half)
    segdeploy.adopt(tmp_path / "foreign.onnx", named, out=out)
    assert segdeploy.inspect(out).contract.classes == ("background", "road")
    with segdeploy.load(out) as network:
        assert network.predict(np.zeros((48, 64, 3), np.uint8)).shape == (48, 64)


def test_binary_what_contradicts_itself_is_refused(
    run: Callable[..., Ran], dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.onnx"
    network = "tests.test_stated_preprocessing:network"
    words = ("export", network, "--data", dataset, "--size", "32x48", "-o", out)
    check_one_line(run(*words, "--threshold", 0.5), "--threshold 0.5: goes with a binary network")
    check_one_line(
        run(*words, "--num-classes", 1),
        "has 8 classes, but --num-classes is 1; for a binary network, name",
    )
    check_one_line(run(*words, "--foreground", "cow"), "has no class 'cow'; it has sky, building")
    check_one_line(
        run(*words, "--foreground", "road", "--threshold", 1), "a probability above 0 and below 1"
    )
    bare = ("export", network, "--size", "32x48", "-o", out)
    check_one_line(run(*bare, "--foreground", "road"), "--foreground: names a class of a data set")
    assert not out.exists()
    with pytest.raises(ModelInputError, match="has no class"):
        open_dataset(dataset).against_rest("cow")
    assert run(*bare, "--num-classes", 1).code == 0
    with segdeploy.load(out) as opened, pytest.raises(InputError, match=r"shape \(4, 4\)"):
        opened.predict(np.zeros((4, 4), np.uint8))
