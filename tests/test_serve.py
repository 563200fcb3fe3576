"""Triton model repositories: parsed by Triton's protobuf, and the chain run as it would be.

No server runs here; that one loads these folders is untested.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from PIL import Image

import segdeploy
from segdeploy.adoption.statement import Statement
from segdeploy.engine.manifest import manifest_path
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.onnx_graph.model_file import contract_of, load_onnx
from segdeploy.preprocessing.preprocess import preprocess
from segdeploy.serve.config import _messages, validate
from segdeploy.serve.pre_post_processing import preprocessing_graph

from .conftest import check_one_line, skip


@pytest.fixture(scope="module")
def messages() -> object:
    if importlib.util.find_spec("tritonclient") is None:
        skip("tritonclient is not installed; `make test` installs it")
    return _messages()


def parsed(path: Path, messages):
    return text_format.Parse((path / "config.pbtxt").read_text(), messages.ModelConfig())


def run_chain(repository: Path, name: str, array: np.ndarray, messages) -> np.ndarray:
    """What the server does with an ensemble: each step's model, through the maps of tensors."""
    config = parsed(repository / name, messages)
    if not config.ensemble_scheduling.step:
        session = onnxruntime.InferenceSession(repository / name / "1" / "model.onnx")
        return session.run(None, {config.input[0].name: array})[0]
    held = {config.input[0].name: array}
    for step in config.ensemble_scheduling.step:
        session = onnxruntime.InferenceSession(repository / step.model_name / "1" / "model.onnx")
        given = {theirs: held[ours] for theirs, ours in step.input_map.items()}
        outputs = session.run(list(step.output_map), given)
        held.update(zip(step.output_map.values(), outputs, strict=True))
    return held[config.output[0].name]


@pytest.mark.parametrize("kind", ["static", "dynamic", "bytes", "labels", "bytes to labels", "BGR"])
def test_serve_the_chain_gives_what_predict_gives(
    kind: str, checkpoint: Path, dataset: Path, tmp_path: Path, messages: object
) -> None:
    options = {
        "static": {},
        "dynamic": {"dynamic": True},
        "bytes": {"preprocess": "RGB"},
        "labels": {"output": "labels"},
        "bytes to labels": {"preprocess": "RGB", "output": "labels"},
        "BGR": {"preprocess": "BGR", "dynamic": True},
    }[kind]
    model = tmp_path / "road.onnx"
    segdeploy.export(checkpoint, model, **options)
    written = segdeploy.serve_repo(model, tmp_path / "repo")
    assert written.validated
    assert (written.model, written.version) == ("road", 1)
    frame = open_dataset(dataset).frames("val")[0].read()[0]
    contract = contract_of(load_onnx(model), model)
    asbytes = preprocess(frame, replace(contract, layout="NHWC"))
    labels = run_chain(tmp_path / "repo", "road", asbytes, messages)
    with segdeploy.load(model) as network:
        resized = preprocess(frame, replace(contract, layout="NHWC", channels=("R", "G", "B")))[0]
        expected = network.predict(resized)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels[0], expected)
    for folder in written.models:
        assert (tmp_path / "repo" / folder / "1").is_dir()
        names = (tmp_path / "repo" / folder / "labels.txt").read_text().splitlines()
        assert tuple(names) == contract.classes


def test_serve_batches_instances_and_warm_up(
    dynamic_graph: Path, tmp_path: Path, messages: object
) -> None:
    written = segdeploy.serve_repo(
        dynamic_graph, tmp_path, name="road", instances=2, batch=3, delay_us=500, on_gpu=True
    )
    config = parsed(tmp_path / "road_network", messages)
    assert config.max_batch_size == written.batch == 3
    assert list(config.input[0].dims) == [3, 48, 64]
    assert config.instance_group[0].count == 2
    assert config.instance_group[0].kind == messages.ModelInstanceGroup.KIND_GPU
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.model_warmup[0].batch_size == 1
    assert list(config.model_warmup[0].inputs["image"].dims) == [3, 48, 64]
    assert parsed(tmp_path / "road", messages).max_batch_size == 3
    with pytest.raises(InputError, match=r"--batch 999: .* at most; export it with --dynamic"):
        segdeploy.serve_repo(dynamic_graph, tmp_path, name="other", batch=999)


def test_serve_preprocessing_on_the_server_is_ours_bit_for_bit(graph: Path) -> None:
    contract = contract_of(load_onnx(graph), graph)
    image = np.random.default_rng(0).integers(0, 256, (*contract.size, 3), dtype=np.uint8)
    for color in ("RGB", "BGR"):
        ours = replace(contract, channels=tuple(color))
        session = onnxruntime.InferenceSession(preprocessing_graph(ours).SerializeToString())
        found = session.run(None, {"bytes": image[None]})[0]
        assert np.array_equal(found, preprocess(image, ours))


def test_serve_another_version_is_added_and_another_model_refused(
    run, graph: Path, checkpoint: Path, tmp_path: Path
) -> None:  # fmt: skip
    repository = tmp_path / "repo"
    for version in (1, 2):
        ran = run("serve-repo", graph, "--name", "road", "-o", repository, "--json")
        assert json.loads(ran.out)["version"] == version
    versions = [p.name for p in (repository / "road_network").iterdir() if p.is_dir()]
    assert sorted(versions) == ["1", "2"]
    other = segdeploy.export(checkpoint, tmp_path / "o.onnx", dynamic=True).path
    check_one_line(
        run("serve-repo", other, "--name", "road", "-o", repository), "belongs to another model"
    )
    check_one_line(run("serve-repo", graph, "--name", "../x", "-o", repository), "--name ../x")


def test_serve_an_rtx_engine_is_refused_and_a_tensorrt_engine_taken(
    graph: Path, tmp_path: Path, tensorrt_rtx: object, messages: object
) -> None:
    engine = tmp_path / "m.engine"
    segdeploy.build_engine(graph, engine, targets=["sm86"])
    with pytest.raises(InputError, match="Triton loads TensorRT engines; serve the .onnx"):
        segdeploy.serve_repo(engine, tmp_path / "repo")
    values = json.loads(manifest_path(engine).read_text())
    manifest_path(engine).write_text(json.dumps({**values, "backend": "tensorrt"}))
    written = segdeploy.serve_repo(engine, tmp_path / "repo")
    config = parsed(written.path / "m_network", messages)
    assert config.platform == "tensorrt_plan"
    assert config.instance_group[0].kind == messages.ModelInstanceGroup.KIND_GPU
    assert (written.path / "m_network" / "1" / "model.plan").read_bytes() == engine.read_bytes()
    assert (config.input[0].name, config.output[0].name) == ("image", "logits")
    manifest_path(engine).unlink()
    segdeploy.adopt(
        engine, Statement(like=graph), backend="tensorrt", version="11.4", targets=["sm86"]
    )
    with pytest.raises(InputError, match="was adopted, so the names of its tensors are unknown"):
        segdeploy.serve_repo(engine, tmp_path / "other")


def test_serve_what_a_server_cannot_finish_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "late.onnx"
    segdeploy.export(checkpoint, path, output="labels", late_upsampling=True)
    with pytest.raises(
        InputError, match="ends in low-resolution logits, which Triton cannot upsample"
    ):
        segdeploy.serve_repo(path, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_serve_ends_that_cannot_be_joined_are_refused(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half.onnx"
    segdeploy.calibrate(graph, dataset, half, limit=2, method="min-max", fp16_io=True)
    with pytest.raises(InputError, match="image is float16, .*calibrate it without --fp16-io"):
        segdeploy.serve_repo(half, tmp_path / "repo")
    with pytest.raises(InputError, match="is a file; give a folder"):
        segdeploy.serve_repo(graph, half)


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", ".hidden", ""])
def test_serve_a_name_does_not_lead_out_of_the_folder(
    name: str, graph: Path, tmp_path: Path
) -> None:
    if name == "":
        name = "\n"
    with pytest.raises(InputError, match="--name "):
        segdeploy.serve_repo(graph, tmp_path / "in" / "repo", name=name)
    assert list(tmp_path.iterdir()) == []


def test_serve_a_wrong_configuration_is_found(messages: object) -> None:
    assert validate('name: "x"', "x")
    with pytest.raises(InputError, match="x/config.pbtxt: is not a Triton configuration"):
        validate('nome: "x"', "x/config.pbtxt")


def test_serve_the_client_is_python(graph: Path, tmp_path: Path) -> None:
    written = segdeploy.serve_repo(graph, tmp_path / "repo", name="road")
    ast.parse((written.path / "road_client.py").read_text())


class Answering(ModuleType):
    """tritonclient.grpc, answered by the repository's own graphs instead of a server."""

    def __init__(self, repository: Path, name: str, messages: object):
        super().__init__("tritonclient.grpc")
        config = parsed(repository / name, messages)
        ends = SimpleNamespace(inputs=config.input, outputs=config.output)
        self.sent: list[np.ndarray] = []

        def infer(model: str, tensors: list, outputs: list) -> object:
            (tensor,) = tensors
            self.sent.append(tensor.pixels)
            return SimpleNamespace(
                as_numpy=lambda _: run_chain(repository, model, tensor.pixels, messages)
            )

        self.InferenceServerClient = lambda _: SimpleNamespace(
            get_model_metadata=lambda *_: ends, infer=infer
        )
        self.InferRequestedOutput = str
        self.InferInput = Sent


class Sent:
    def __init__(self, name: str, shape: tuple[int, ...], kind: str):
        self.shape, self.kind = shape, kind

    def set_data_from_numpy(self, pixels: np.ndarray) -> None:
        assert pixels.shape == tuple(self.shape)
        assert {"UINT8": "uint8", "UINT16": "uint16", "FP32": "float32"}[self.kind] == pixels.dtype
        self.pixels = np.ascontiguousarray(pixels)


@pytest.mark.parametrize("preprocess", [None, "RGB", "BGR"])
def test_serve_the_client_sends_the_channels_that_the_server_takes(
    checkpoint: Path, dataset: Path, tmp_path: Path, messages: object,
    monkeypatch: pytest.MonkeyPatch, preprocess: str | None,
) -> None:  # fmt: skip
    path = segdeploy.export(checkpoint, tmp_path / "road.onnx", preprocess=preprocess).path
    repository = segdeploy.serve_repo(path, tmp_path / "repo").path
    frame = open_dataset(dataset).frames("val")[0]
    labels = run_client(repository, frame.image, tmp_path, messages, monkeypatch)
    with segdeploy.load(path) as network:
        small = Image.fromarray(frame.read_image()).resize((64, 48), Image.Resampling.BILINEAR)
        expected = Image.fromarray(network.predict(small))
    upright = expected.resize((128, 96), Image.Resampling.NEAREST)
    assert np.array_equal(labels, np.asarray(upright))


@pytest.mark.parametrize("preprocess", [None, "B,G,R"])
def test_serve_takes_some_channels_of_deep_images(
    tmp_path: Path, messages: object, monkeypatch: pytest.MonkeyPatch, preprocess: str | None
) -> None:
    """The images have four channels of 16 bits, the network takes three of them."""
    torch.manual_seed(0)
    stated = {
        "channels": ("R", "G", "B"),
        "source_channels": ("nir", "R", "G", "B"),
        "dtype": "uint16",
        "mean": (0.2, 0.4, 0.6),
        "std": (0.2, 0.3, 0.4),
    }
    spec = ModelSpec(
        "deeplabv3", 5, {"width": 4, "stride": 2}, size=(48, 64), stated=stated
    )  # fmt: skip
    path = segdeploy.export(spec, tmp_path / "road.onnx", preprocess=preprocess).path
    written = segdeploy.serve_repo(path, tmp_path / "repo")
    assert not written.takes_files
    image = np.random.default_rng(0).integers(0, 65536, (48, 64, 4)).astype(np.uint16)
    np.save(tmp_path / "x.npy", image)
    labels = run_client(written.path, tmp_path / "x.npy", tmp_path, messages, monkeypatch)
    with segdeploy.load(path) as network:
        assert np.array_equal(labels, network.predict(image))


@pytest.mark.parametrize("kind", ["multilabel", "gray"])
def test_serve_takes_bit_planes_and_gray_files(
    tmp_path: Path, messages: object, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Labels of several classes are bit planes, beyond the number of classes."""
    torch.manual_seed(0)
    of_kind: dict[str, dict[str, object]] = {
        "multilabel": {"head": "multilabel", "threshold": (0.4, 0.5, 0.45)},
        "gray": {"channels": ("gray",), "dtype": "uint16", "mean": (0.5,), "std": (0.2,)},
    }
    spec = ModelSpec("deeplabv3", 3, {"width": 4, "stride": 2}, size=(48, 64), stated=of_kind[kind])
    path = segdeploy.export(spec, tmp_path / "road.onnx").path
    written = segdeploy.serve_repo(path, tmp_path / "repo")
    rng = np.random.default_rng(0)
    if kind == "gray":
        image = rng.integers(0, 65536, (48, 64)).astype(np.uint16)
    else:
        image = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    labels = run_client(written.path, tmp_path / "x.png", tmp_path, messages, monkeypatch)
    with segdeploy.load(path) as network:
        assert np.array_equal(labels, network.predict(tmp_path / "x.png"))
    if kind == "multilabel":
        assert labels.max() >= 3  # several classes in one pixel
        assert "labels.txt" not in (written.path / "road" / "config.pbtxt").read_text()


def run_client(
    repository: Path, image: Path, folder: Path, messages: object, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", Answering(repository, "road", messages))
    client = runpy.run_path(str(repository / "road_client.py"))
    client["main"](str(image), str(folder / "labels.png"))
    return np.asarray(Image.open(folder / "labels.png"))
