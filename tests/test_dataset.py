"""The data-set format: what is read, and what each wrong file is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeploy.models import image_file, images, scenes
from segdeploy.models.dataset import open_dataset, write_dataset
from segdeploy.models.errors import ModelInputError


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    """A data set that a test may spoil."""
    return Path(shutil.copytree(dataset, tmp_path / "set"))


def test_dataset_generated_scenes_are_read_back_like_any_data_set(dataset: Path) -> None:
    opened = open_dataset(dataset)
    assert opened.classes == scenes.CLASSES
    frames = opened.frames("train")
    assert len(frames) == 16
    assert [f.name for f in opened.frames("train", 2)] == ["train_0000", "train_0001"]
    image, mask = frames[0].read()
    assert (image.shape, image.dtype) == ((96, 128, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((96, 128), np.uint8)


def test_dataset_scenes_depend_on_seed_split_and_index_alone() -> None:
    first = list(scenes.generate("train", 3, (60, 80), 7))
    second = list(scenes.generate("train", 2, (60, 80), 7))
    for (name, image, mask), (again, image2, mask2) in zip(first, second, strict=False):
        assert name == again
        assert np.array_equal(image, image2)
        assert np.array_equal(mask, mask2)
    for split, seed in (("val", 7), ("train", 8)):
        (_, other, _) = next(scenes.generate(split, 1, (60, 80), seed))
        assert not np.array_equal(first[0][1], other)


def test_dataset_scenes_hold_every_class_and_ignored_pixels() -> None:
    masks = [mask for _, _, mask in scenes.generate("train", 12, (120, 160), 0)]
    assert set(np.unique(masks)) == {*range(len(scenes.CLASSES)), scenes.IGNORE_INDEX}


def test_dataset_the_written_folder_appears_only_when_whole(tmp_path: Path) -> None:
    def breaking():
        yield from scenes.generate("train", 2, (32, 32), 0)
        raise RuntimeError("power cut")

    arguments = {"classes": scenes.CLASSES, "palette": scenes.PALETTE, "ignore_index": 255}
    with pytest.raises(RuntimeError, match="power cut"):
        list(write_dataset(tmp_path / "set", **arguments, splits={"train": breaking()}))
    assert list(tmp_path.iterdir()) == []


def test_dataset_an_existing_folder_is_not_overwritten(dataset: Path) -> None:
    with pytest.raises(ModelInputError, match="already exists"):
        next(write_dataset(dataset, classes=["a"], palette=[(0, 0, 0)], ignore_index=9, splits={}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": []}, "'classes' must be a list of different printable names"),
        ({"classes": ["a"] * 8}, "'classes' must be a list of different printable names"),
        ({"classes": ["a", 3]}, "'classes' must be a list of different printable names"),
        ({"palette": [[1, 2, 3]]}, r"'palette' must be one \[red, green, blue\]"),
        ({"palette": [[1, 2, 300]] * 8}, r"'palette' must be one \[red, green, blue\]"),
        ({"ignore_index": 3}, "'ignore_index' must be a number from 8 to 255"),
        ({"splits": "train"}, "'splits' must be a list of different folder names"),
    ],
)
def test_dataset_a_wrong_field_is_named(copy: Path, change: dict, message: str) -> None:
    path = copy / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelInputError, match=message):
        open_dataset(copy)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[]", "must hold a JSON object")]
)
def test_dataset_a_description_that_is_no_json_object(copy: Path, text: str, message: str) -> None:
    (copy / "dataset.json").write_text(text)
    with pytest.raises(ModelInputError, match=message):
        open_dataset(copy)


def test_dataset_missing_description_split_frames_and_mask(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelInputError, match="a data set is a folder with a dataset.json"):
        open_dataset(tmp_path)
    opened = open_dataset(copy)
    with pytest.raises(ModelInputError, match="has no split 'test'; it has train, val"):
        opened.frames("test")
    (copy / "val" / "masks" / "val_0002.png").unlink()
    with pytest.raises(ModelInputError, match=r"val_0002.png: no such mask"):
        opened.frames("val")
    shutil.rmtree(copy / "val" / "images")
    with pytest.raises(ModelInputError, match="no such folder; put .jpg or .png images there"):
        opened.frames("val")


def test_dataset_a_mask_of_another_size_or_with_a_strange_id(copy: Path) -> None:
    frame = open_dataset(copy).frames("val")[0]
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(frame.mask)
    with pytest.raises(ModelInputError, match=r"the mask is 10x20 \(HxW\), its image 96x128"):
        frame.read()
    strange = np.zeros((96, 128), np.uint8)
    strange[3, 4] = 8
    Image.fromarray(strange).save(frame.mask)
    with pytest.raises(ModelInputError, match=r"holds the ids \[8\], but there are 8 classes"):
        frame.read()


def test_dataset_a_paletted_mask_gives_its_ids(copy: Path) -> None:
    frame = open_dataset(copy).frames("val")[0]
    _, mask = frame.read()
    paletted = Image.fromarray(mask).convert("L")
    colors = [value for color in scenes.PALETTE for value in color]
    paletted.putpalette(colors + [0] * (3 * 256 - len(colors)))
    paletted.save(frame.mask)
    assert Image.open(frame.mask).mode == "P"
    assert np.array_equal(frame.read()[1], mask)


def test_dataset_color_and_sixteen_bit_masks_are_refused(copy: Path) -> None:
    frame = open_dataset(copy).frames("val")[0]
    Image.fromarray(np.zeros((96, 128, 3), np.uint8)).save(frame.mask)
    with pytest.raises(ModelInputError, match=r"one class id a pixel|has 16 bits a channel"):
        frame.read()


def test_dataset_unreadable_and_mislabeled_images(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    with pytest.raises(ModelInputError, match="no such file"):
        images.read_image(path)
    path.write_text("not an image")
    with pytest.raises(ModelInputError, match="is neither a PNG nor a JPEG image"):
        images.read_image(path)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    with pytest.raises(ModelInputError, match="holds PNG data although its name says JPEG"):
        images.read_image(path)
    Image.fromarray(pixels).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ModelInputError, match="the image is damaged"):
        images.read_image(path)


def test_dataset_too_many_pixels_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (64, 64)).save(path)
    monkeypatch.setattr(image_file, "MAX_PIXELS", 64 * 63)
    with pytest.raises(ModelInputError, match="64x64 pixels are over the limit"):
        images.read_image(path)


def test_dataset_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P"):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (5, 4)).save(path)
        assert images.read_image(path).shape == (4, 5, 3)


def test_dataset_a_phones_image_is_read_upright(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    image = Image.fromarray(np.tile(np.arange(0, 160, 4, dtype=np.uint8), (20, 1)))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    image.save(path, exif=exif)
    assert images.read_image(path).shape == (40, 20, 3)
    stereo = tmp_path / "stereo.jpg"
    image.save(stereo, "MPO", save_all=True, append_images=[image])
    assert images.read_image(stereo).shape == (20, 40, 3)


def test_dataset_a_byte_order_mark_and_upper_case_suffixes_do_no_harm(copy: Path) -> None:
    description = copy / "dataset.json"
    description.write_text(description.read_text(), encoding="utf-8-sig")
    for folder, suffix in (("images", ".JPG"), ("masks", ".PNG")):
        for path in list((copy / "val" / folder).iterdir()):
            path.rename(path.with_suffix(suffix))
    assert len(open_dataset(copy).frames("val")) == 4


def test_dataset_a_deeply_nested_description_is_no_crash(copy: Path) -> None:
    (copy / "dataset.json").write_text("[" * 100_000)
    with pytest.raises(ModelInputError, match="is not JSON"):
        open_dataset(copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("classes", ["", "b", "c", "d", "e", "f", "g", "h"]),
        ("classes", ["\x1b[31m", "b", "c", "d", "e", "f", "g", "h"]),
        ("classes", ["a\u202eb", "b", "c", "d", "e", "f", "g", "h"]),
        ("splits", ["/etc"]),
        ("splits", ["../other/train"]),
        ("splits", ["tr\0ain"]),
        ("splits", [".."]),
    ],
)
def test_dataset_names_are_printable_and_splits_lie_inside(
    copy: Path, field: str, value: list
) -> None:
    described = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**described, field: value}))
    with pytest.raises(ModelInputError, match=f"'{field}' must be"):
        open_dataset(copy)
