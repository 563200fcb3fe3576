"""Images of other channels and depths: gray, multispectral, 16 bits, floats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import segdeploy
from segdeploy.adoption.statement import Statement
from segdeploy.contract import Contract
from segdeploy.contract_statement import with_stated
from segdeploy.engine.manifest import read_manifest
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import ModelInputError
from segdeploy.models.images import read_pixels
from segdeploy.models.registry import build
from segdeploy.models.scenes import write_scenes
from segdeploy.models.training import Training
from segdeploy.network_loading import matched
from segdeploy.onnx_graph.model_file import load_onnx
from segdeploy.preprocessing.preprocess import preprocess
from segdeploy.proof.golden_vectors import golden_images, golden_path
from segdeploy.serve.pre_post_processing import preprocessing_graph

from .conftest import CONTRACT, Ran, check_one_line

tifffile = pytest.importorskip("tifffile")
NOISE = np.random.default_rng(0)


def generated(root: Path, channels: tuple[str, ...], dtype: str) -> Path:
    list(write_scenes(root, {"train": 6, "val": 3}, (48, 64), channels=channels, dtype=dtype))
    return root


@pytest.fixture(scope="module")
def gray16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated(tmp_path_factory.mktemp("gray") / "d", ("gray",), "uint16")


@pytest.fixture(scope="module")
def multispectral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated(tmp_path_factory.mktemp("ms") / "d", ("nir", "R", "G", "B"), "float32")


@pytest.fixture(scope="module")
def gray_checkpoint(gray16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gray") / "m.safetensors"
    spec = ModelSpec("deeplabv3", arguments={"width": 4, "stride": 2}, size=(48, 64))
    segdeploy.train(spec, gray16, out, epochs=1, batch_size=2, augmentation={"color": 0.3})
    return out


def test_channels_a_gray_network_of_16_bits_goes_the_whole_way(
    run: Callable[..., Ran], gray16: Path, gray_checkpoint: Path, tmp_path: Path, tensorrt_rtx
) -> None:
    contract = segdeploy.inspect(gray_checkpoint).contract
    assert (contract.channels, contract.dtype, contract.scale) == (("gray",), "uint16", 1 / 65535)
    assert contract.assumed == ()
    plain = segdeploy.export(gray_checkpoint, tmp_path / "m.onnx").path
    labels = segdeploy.export(
        gray_checkpoint, tmp_path / "l.onnx", preprocess=("gray",), output="labels"
    ).path
    image = open_dataset(gray16).frames("val")[0].read_image()
    assert (image.shape, image.dtype) == ((48, 64, 1), np.uint16)
    with segdeploy.load(gray_checkpoint) as network:
        expected = network.predict(image)
    for path in (plain, labels):
        with segdeploy.load(path) as network:
            assert np.mean(network.predict(image) == expected) > 0.999
            assert np.array_equal(network.predict(image[:, :, 0]), network.predict(image))
            found = network.predict(open_dataset(gray16).frames("val")[0].image)
            assert np.array_equal(found, network.predict(image))
    assert load_onnx(labels).graph.input[0].type.tensor_type.elem_type == 1  # FLOAT, not UINT16
    int8 = segdeploy.calibrate(plain, gray16, tmp_path / "int8.onnx").path
    engine = segdeploy.build_engine(int8, tmp_path / "m.engine", targets=["sm86"]).path
    assert segdeploy.inspect(engine).contract.dtype == "uint16"
    # A dynamic graph of gray images has its one channel last.
    moving = segdeploy.export(
        gray_checkpoint, tmp_path / "d.onnx", preprocess=("gray",), dynamic=True
    ).path
    built = segdeploy.build_engine(moving, tmp_path / "d.engine", targets=["sm86"]).path
    assert read_manifest(built).input.shape == ("batch", "height", "width", 1)
    assert run("self-test", int8, "--golden", golden_path(engine)).code == 0
    words = ("bench", plain, int8, "--reference", gray_checkpoint, "--data", gray16)
    ran = run(*words, "--seconds", 0.1, "--limit", 2, "--report", tmp_path / "r", "--json")
    assert ran.code == 0, ran
    found = run("evaluate", labels, "--data", gray16, "--json")
    assert json.loads(found.out)["miou"] == pytest.approx(
        json.loads(run("evaluate", gray_checkpoint, "--data", gray16, "--json").out)["miou"],
        abs=1e-3,
    )
    overlay = tmp_path / "o.png"
    picture = open_dataset(gray16).frames("val")[0].image
    assert run("predict", labels, picture, "-o", overlay).code == 0
    assert Image.open(overlay).mode == "RGB"


def test_channels_in_the_order_of_the_network(
    run: Callable[..., Ran], multispectral: Path, tmp_path: Path
) -> None:
    """The data set has nir, R, G, B; the network takes red, near infrared and green."""
    order = ("R", "nir", "G")
    spec = ModelSpec(
        "deeplabv3",
        arguments={"width": 4, "stride": 2},
        size=(48, 64),
        stated={"channels": order, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
    )
    out = tmp_path / "m.safetensors"
    segdeploy.train(spec, multispectral, out, epochs=1, batch_size=2)
    path = segdeploy.export(out, tmp_path / "m.onnx", preprocess="nir,G,R").path
    plain = segdeploy.export(out, tmp_path / "p.onnx").path
    contract = segdeploy.inspect(path).contract
    assert (contract.channels, contract.mean) == (("nir", "G", "R"), (0.2, 0.3, 0.1))
    assert contract.image_channels == order
    frame = open_dataset(multispectral).frames("val")[0]
    whole = frame.read_image()
    with segdeploy.load(plain) as network, segdeploy.load(path) as of_images:
        own = np.ascontiguousarray(whole[:, :, [1, 0, 2]])
        values = (own - np.float32([0.1, 0.2, 0.3])) / np.float32([0.4, 0.5, 0.6])
        np.testing.assert_allclose(network.prepare(own)[0].transpose(1, 2, 0), values, atol=1e-6)
        assert of_images.prepare(own).shape == (1, 48, 64, 3)
        assert np.mean(network.predict(own) == of_images.predict(own)) > 0.999
    both = [
        json.loads(run("evaluate", one, "--data", multispectral, "--json").out)["miou"]
        for one in (plain, path)
    ]
    assert both[0] == pytest.approx(both[1], abs=1e-3)
    ran = run("bench", path, "--reference", out, "--data", multispectral, "--seconds", 0.1)
    assert ran.code == 0, ran


def test_channels_every_registered_network_takes_any_number() -> None:
    for name in ("deeplabv3", "dilated_vgg16", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"):
        network = build(name, 3, {}, channels=5).eval()
        with torch.no_grad():
            network(torch.zeros(1, 5, 64, 64))


class Own(torch.nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def one_channel() -> torch.nn.Module:
    return Own(1)


def four_channels() -> torch.nn.Module:
    return Own(4)


def test_channels_of_a_users_network(run: Callable[..., Ran], gray16: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    ran = run("export", "tests.test_channels:one_channel", "--size", "16x16", "-o", out)
    assert ran.code == 0, ran
    assert "channels gray" in ran.err
    contract = segdeploy.inspect(out).contract
    assert contract.channels == ("gray",)
    assert "channels" in contract.assumed
    words = ("export", "tests.test_channels:four_channels", "--size", "16x16", "-o", out)
    check_one_line(run(*words), "takes 4 channels; name them", "--channels NAME,NAME,NAME,NAME")
    assert run(*words, "--channels", "nir,red,green,blue").code == 0
    assert segdeploy.inspect(out).contract.channels == ("nir", "red", "green", "blue")
    # A file of others
    graph = load_onnx(out)
    del graph.metadata_props[:]
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(graph.SerializeToString())
    adopted = tmp_path / "adopted.onnx"
    words = ("adopt", foreign, "--num-classes", 2, "-o", adopted)
    check_one_line(run(*words), "takes 4 channels; name them")
    assert run(*words, "--channels", "a,b,c,d", "--normalization", "none").code == 0
    with segdeploy.load(adopted) as network:
        image = NOISE.integers(0, 256, (16, 16, 4)).astype(np.uint8)
        assert np.array_equal(
            network.prepare(image)[0], image.transpose(2, 0, 1).astype(np.float32)
        )


def test_channels_nothing_is_converted_in_silence(
    run: Callable[..., Ran], gray16: Path, gray_checkpoint: Path, graph: Path, dataset: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = segdeploy.export(gray_checkpoint, tmp_path / "m.onnx").path
    photo = dataset / "val" / "images" / "val_0000.jpg"
    deep = gray16 / "val" / "images" / "val_0000.png"
    out = tmp_path / "o.png"
    check_one_line(run("predict", path, photo, "-o", out), "has 8 bits a channel, not 16")
    check_one_line(run("predict", graph, deep, "-o", out), "has 16 bits a channel")
    check_one_line(run("evaluate", path, "--data", dataset), "its images are uint8", "takes uint16")
    check_one_line(run("evaluate", graph, "--data", gray16), "its images are uint16")
    gray = segdeploy.adopt(
        path,
        Statement(like=path, preprocessing={"dtype": "uint8"}),
        out=tmp_path / "gray.onnx",
    )
    check_one_line(run("evaluate", gray, "--data", dataset), "its images are RGB", "--gray pillow")
    check_one_line(run("predict", gray, photo, "-o", out), "is a color image, not a gray one")
    color = NOISE.integers(0, 256, (48, 64, 3)).astype(np.uint8)
    with segdeploy.load(gray) as network:
        with pytest.raises(InputError, match=r"shape \(48, 64, 3\).*state a conversion of RGB"):
            network.predict(color)
        with pytest.raises(InputError, match="dtype float32"):
            network.predict(color[:, :, 0].astype(np.float32))
    assert not out.exists()
    stated = Statement(like=gray, preprocessing={"gray": "pillow"})
    converting = segdeploy.adopt(gray, stated, out=tmp_path / "c.onnx")
    assert run("evaluate", converting, "--data", dataset).code == 0
    assert run("predict", converting, photo, "-o", out).code == 0
    with segdeploy.load(converting) as network:
        levels = np.asarray(Image.fromarray(color).convert("L"))
        assert np.array_equal(network.prepare(color), network.prepare(levels[:, :, None]))


def test_channels_nan_is_refused(multispectral: Path, tmp_path: Path) -> None:
    image = open_dataset(multispectral).frames("val")[0].read_image()
    image[3, 4, 1] = np.nan
    np.save(tmp_path / "x.npy", image)
    with pytest.raises(ModelInputError, match="holds NaN or infinity"):
        read_pixels(tmp_path / "x.npy", ("nir", "R", "G", "B"), "float32")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_channels_files_of_arrays(tmp_path: Path, dtype: str) -> None:
    """NPY and TIFF, with the channels interleaved, in planes, and on pages."""
    values = (NOISE.random((7, 9, 5)) * 200).astype(dtype)
    names = tuple("abcde")
    np.save(tmp_path / "x.npy", values)
    tifffile.imwrite(tmp_path / "x.tif", values, planarconfig="contig", photometric="minisblack")
    planes = np.ascontiguousarray(values.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "y.tif", planes, planarconfig="separate", photometric="minisblack")
    tifffile.imwrite(tmp_path / "z.tiff", planes, photometric="minisblack")
    for name in ("x.npy", "x.tif", "y.tif", "z.tiff"):
        assert np.array_equal(read_pixels(tmp_path / name, names, dtype), values), name
    with pytest.raises(ModelInputError, match=f"has 5 channels of {dtype}; an image of {dtype} a"):
        read_pixels(tmp_path / "x.tif", ("a",), dtype)
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "bad.tif").write_bytes(b"II*\0\x08")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "deep.npy", np.zeros((2, 2, 2, 2), dtype))
    np.save(tmp_path / "empty.npy", np.zeros((0, 2, 2), dtype))
    for name in ("bad.npy", "bad.tif", "object.npy", "deep.npy", "empty.npy"):
        with pytest.raises(ModelInputError, match=name):
            read_pixels(tmp_path / name, names, dtype)


def test_channels_a_header_that_claims_too_much_allocates_nothing(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 3), }"
    content = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ModelInputError, match=r"x.npy"):
        read_pixels(tmp_path / "x.npy", ("R", "G", "B"), "float32")


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<u2', 'fortran_order': False, 'shape': (9999999999999999999999, 2), }",
        b"{'descr': ['x'], 'fortran_order': False, 'shape': (2, 2), }",
        b"{'descr': '<u2', 'fortran_order': False, 'shape': (2, 2)",
        b"{'descr': '<u2', 'fortran_order': False, 'shape': (-1, 2), }",
        b"'''",
    ],
)
def test_channels_damaged_npy_headers(tmp_path: Path, header: bytes) -> None:
    content = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ModelInputError, match=r"x.npy: is no NPY image \(.*\)$"):
        read_pixels(tmp_path / "x.npy", ("gray",), "uint16")


def test_channels_the_byte_order_of_a_file_does_not_matter(tmp_path: Path) -> None:
    values = np.arange(12, dtype=">u2").reshape(3, 4) * 1000
    np.save(tmp_path / "x.npy", values)
    tifffile.imwrite(tmp_path / "x.tif", values, byteorder=">")
    for name in ("x.npy", "x.tif"):
        assert np.array_equal(read_pixels(tmp_path / name, ("gray",), "uint16")[:, :, 0], values)


def test_channels_gray_png_of_16_bits_keeps_its_levels(tmp_path: Path) -> None:
    levels = NOISE.integers(0, 65536, (5, 6)).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "x.png")
    assert np.array_equal(read_pixels(tmp_path / "x.png", ("gray",), "uint16")[:, :, 0], levels)
    with pytest.raises(ModelInputError, match="a PNG or JPEG file holds no image of uint16 R,G,B"):
        read_pixels(tmp_path / "x.png", ("R", "G", "B"), "uint16")


def test_channels_the_server_normalizes_like_we_do(tmp_path: Path) -> None:
    import onnxruntime

    contract = replace(
        CONTRACT,
        channels=("B", "nir", "R"),
        dtype="uint16",
        scale=1 / 65535,
        size=(8, 12),
    )
    image = NOISE.integers(0, 65536, (8, 12, 3)).astype(np.uint16)
    session = onnxruntime.InferenceSession(preprocessing_graph(contract).SerializeToString())
    (found,) = session.run(None, {"bytes": image[None]})
    assert np.array_equal(found, preprocess(image, contract))


def test_channels_golden_images_are_of_the_contract() -> None:
    for channels, dtype in ((("gray",), "uint16"), (("x", "y", "nir", "R"), "float32")):
        contract: Contract = with_stated(CONTRACT, {"channels": channels, "dtype": dtype})
        images = golden_images(contract)
        assert len(images) == 3
        for image in images:
            assert (image.shape[2], image.dtype) == (len(channels), dtype)


def test_channels_of_generated_scenes(run: Callable[..., Ran], tmp_path: Path) -> None:
    words = ("--train", 1, "--val", 1, "--size", "16x24", "-q")
    for channels, dtype, suffix in (
        *(("gray", "uint8", "png"), ("gray", "uint16", "png"), ("gray", "float32", "npy")),
        *(("nir,red,green", "uint8", "npy"), ("nir,red,green,blue", "uint16", "npy")),
    ):
        folder = tmp_path / f"{channels}-{dtype}"
        ran = run("data", "scenes", folder, *words, "--channels", channels, "--dtype", dtype)
        assert ran.code == 0, ran
        names = tuple(channels.split(","))
        dataset = open_dataset(folder)
        assert (dataset.channels, dataset.dtype) == (names, dtype)
        (frame,) = dataset.frames("val")
        assert frame.image.suffix == f".{suffix}"
        image = frame.read_image()
        assert (image.shape, image.dtype) == ((16, 24, len(names)), dtype)
        assert run("data", "check", folder).code == 0


def test_channels_are_picked_by_name_in_any_order() -> None:
    image = np.broadcast_to(np.array([10, 20, 30, 40], np.uint8), (4, 6, 4))
    raw = {"normalization": "none", "source_channels": ("nir", "G", "R", "B")}
    for channels, values in (
        (("B", "G", "R"), [40, 20, 30]),
        (("R", "G", "B"), [30, 20, 40]),
        (("G", "nir"), [20, 10]),
    ):
        contract = with_stated(CONTRACT.stretched_to((4, 6)), {**raw, "channels": channels})
        assert preprocess(image, contract)[0, :, 0, 0].tolist() == values


@pytest.mark.parametrize(
    "stated",
    [
        {"channels": ("B", "G", "R")},
        {"channels": ("R", "G", "B"), "source_channels": ("nir", "R", "G", "B")},
        {"channels": ("G", "nir"), "source_channels": ("nir", "R", "G", "B")},
    ],
)
def test_channels_in_training_are_those_of_inference(
    stated: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network sees the same picture in training as the finished file sees at inference."""
    of_images = stated.get("source_channels", ("R", "G", "B"))
    data = generated(tmp_path / "d", of_images, "uint8")
    seen: list[torch.Tensor] = []
    train = Training._logits

    def watched(self: Training, images: torch.Tensor, batch: Any) -> torch.Tensor:
        seen.append(images.mean((0, 2, 3)))
        return train(self, images, batch)

    monkeypatch.setattr(Training, "_logits", watched)
    neutral = {"mean": (0.0,), "std": (1.0,)}
    spec = ModelSpec(
        "deeplabv3", arguments={"width": 4, "stride": 2}, size=(48, 64), stated=stated | neutral
    )
    out = tmp_path / "m.safetensors"
    segdeploy.train(
        spec, data, out, epochs=1, batch_size=6, workers=0, augmentation={"scale": (1.0, 1.0)}
    )
    contract = segdeploy.inspect(out).contract
    assert contract.channels == stated["channels"]
    dataset = matched(contract, open_dataset(data), "m")
    inputs = [preprocess(frame.read_image(), contract) for frame in dataset.frames("train")]
    expected = np.concatenate(inputs).mean((0, 2, 3))
    assert np.abs(expected[0] - expected[-1]) > 0.01  # so that another order shows
    np.testing.assert_allclose(seen[0].numpy(), expected, atol=2e-3)


def test_channels_of_a_data_set_in_another_order_are_converted_to_the_same_gray(
    dataset: Path, tmp_path: Path
) -> None:
    rgb = open_dataset(dataset)
    swapped = tmp_path / "bgr"
    shutil.copytree(dataset, swapped)
    described = json.loads((swapped / "dataset.json").read_text())
    (swapped / "dataset.json").write_text(json.dumps(described | {"channels": ["B", "G", "R"]}))
    for frame in rgb.frames("val"):
        place = swapped / "val" / "images" / frame.image.name
        np.save(place.with_suffix(".npy"), frame.read_image()[:, :, ::-1])
        place.unlink()
    contract = with_stated(CONTRACT, {"channels": ("gray",), "gray": "opencv"})
    contract = replace(contract, classes=rgb.classes, palette=rgb.palette)
    for one, other in zip(
        *(matched(contract, found, "m").frames("val") for found in (rgb, open_dataset(swapped))),
        strict=True,
    ):
        assert np.array_equal(
            preprocess(one.read_image(), contract), preprocess(other.read_image(), contract)
        )
