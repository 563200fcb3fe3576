"""One rule for image files: Python, and the client of a served model, on every kind of file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import segdeploy
from segdeploy.errors import InputError
from segdeploy.models.images import read_image, read_mask

from .image_cases import ImageCase, exif, png, write_image_cases


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[ImageCase]:
    return write_image_cases(tmp_path_factory.mktemp("images"))


def test_image_files_python_reads_every_kind_by_the_rule(images: list[ImageCase]) -> None:
    assert len(images) > 100
    for file in images:
        if file.refused:
            with pytest.raises(InputError) as caught:
                read_image(file.path)
            assert str(caught.value).startswith(f"{file.path}: {file.refused}")
        else:
            assert np.array_equal(read_image(file.path), file.pixels), file.path.name


def client_of(graph: Path, folder: Path) -> ModuleType:
    segdeploy.serve_repo(graph, folder / "repo", name="road")
    spec = importlib.util.spec_from_file_location("road_client", folder / "repo/road_client.py")
    assert spec
    assert spec.loader
    client = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = client
    spec.loader.exec_module(client)
    return client


def test_image_files_the_client_of_a_served_model_reads_by_the_same_rule(
    images: list[ImageCase], graph: Path, tmp_path: Path
) -> None:
    client = client_of(graph, tmp_path)
    for file in images:
        if file.refused:
            with pytest.raises(client.ImageFileError) as caught:
                client.decode_image(file.path)
            assert str(caught.value).startswith(f"{file.path}: {file.refused}")
        else:
            assert np.array_equal(client.decode_image(file.path), file.pixels), file.path.name


class Answering:
    """Triton's client library, as far as the generated client uses it, with one answer."""

    def __init__(self, label: int):
        self.label = label

    def InferenceServerClient(self, server: str) -> Answering:  # noqa: N802 - Triton's name
        return self

    def get_model_metadata(self, name: str, version: str) -> SimpleNamespace:
        ends = [SimpleNamespace(name="end")]
        return SimpleNamespace(inputs=ends, outputs=ends)

    def InferInput(self, *given: object) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(set_data_from_numpy=lambda array: None)

    def InferRequestedOutput(self, name: str) -> str:  # noqa: N802
        return name

    def infer(self, name: str, inputs: object, outputs: object) -> Answering:
        return self

    def as_numpy(self, name: str) -> np.ndarray:
        return np.full((1, 48, 64), self.label, np.uint8)


def test_image_files_the_client_refuses_labels_beyond_the_classes(
    images: list[ImageCase], graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(graph, tmp_path)
    image = next(file.path for file in images if file.pixels is not None)
    for label in (7, 8):  # of eight classes
        package = ModuleType("tritonclient")
        package.grpc = Answering(label)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tritonclient", package)
        monkeypatch.setitem(sys.modules, "tritonclient.grpc", package.grpc)  # type: ignore[attr-defined]
        if label < 8:
            client.main(str(image), str(tmp_path / "l.png"))
            assert (np.asarray(Image.open(tmp_path / "l.png")) == label).all()
            (tmp_path / "l.png").unlink()
            continue
        with pytest.raises(client.ImageFileError, match="returned label 8, but has 8 classes"):
            client.main(str(image), str(tmp_path / "l.png"))
        assert not (tmp_path / "l.png").exists()


def test_image_files_an_image_of_pillow_is_read_by_the_same_rule(images: list[ImageCase]) -> None:
    from segdeploy.models.images import of_pillow

    for file in images:
        if file.pixels is None or file.path.name == "half_animated.png":  # Pillow opens none
            continue
        with Image.open(file.path) as image:
            image.load()
            assert np.array_equal(of_pillow(image, "the image"), file.pixels), file.path.name
    with pytest.raises(InputError, match=r"the image: has 16 bits a channel, and 8 are read"):
        of_pillow(Image.fromarray(np.zeros((2, 2), np.uint16)), "the image")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_image_files_ids_of_a_gray_mask_are_read_as_they_stand(bits: int, tmp_path: Path) -> None:
    classes = min(2**bits, 12)
    ids = (np.arange(48).reshape(6, 8) % classes).astype(np.uint8)
    (tmp_path / "m.png").write_bytes(png(ids, bits=bits, color=0))
    assert np.array_equal(read_mask(tmp_path / "m.png", classes, 255), ids)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_image_files_ids_of_a_palette_mask_are_its_indices(bits: int, tmp_path: Path) -> None:
    ids = (np.arange(48).reshape(6, 8) % 2).astype(np.uint8)
    colors = (b"PLTE", bytes([200, 100, 50, 9, 8, 7]))
    (tmp_path / "m.png").write_bytes(
        png(ids, bits=bits, color=3, chunks=(colors, (b"tRNS", b"\x00")))
    )
    assert np.array_equal(read_mask(tmp_path / "m.png", 2, 255), ids)


def test_image_files_a_mask_is_turned_as_its_image_is(
    images: list[ImageCase], tmp_path: Path
) -> None:
    for file in images:
        if not file.path.name.startswith("turn_") or not file.path.name.endswith("_gray.png"):
            continue
        assert file.pixels is not None
        mask = read_mask(file.path, 255, 255)
        assert np.array_equal(mask, file.pixels[..., 0]), file.path.name
        assert mask.shape == read_image(file.path).shape[:2]
    ids = np.zeros((4, 6), np.uint8)
    (tmp_path / "m.png").write_bytes(png(ids, bits=4, color=3, chunks=(
        (b"PLTE", bytes(3)), (b"eXIf", exif(6)))))  # fmt: skip
    assert read_mask(tmp_path / "m.png", 2, 255).shape == (6, 4)


def test_image_files_masks_of_several_values_a_pixel_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(png(np.zeros((4, 6, 3), np.uint8)))
    with pytest.raises(InputError, match=r"is a color image; a mask holds one class id a pixel"):
        read_mask(tmp_path / "m.png", 2, 255)
    (tmp_path / "m.png").write_bytes(png(np.zeros((4, 6), np.uint16), bits=16, color=0))
    with pytest.raises(InputError, match=r"has 16 bits a channel, and 8 are read"):
        read_mask(tmp_path / "m.png", 2, 255)


def test_image_files_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "f.png")
    with pytest.raises(InputError, match=r"is a FIFO, not a regular file"):
        read_image(tmp_path / "f.png")
