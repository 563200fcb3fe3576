"""PASCAL VOC and Cityscapes in their own folders, and the check of a whole data set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeploy.models.dataset import open_dataset
from segdeploy.models.errors import ModelInputError

from .conftest import Ran, check_one_line

COLORS = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:, 5:] = 15
    mask[:2] = 255
    painted = Image.fromarray(mask)
    painted.putpalette([value % 256 for value in range(768)])
    for name in ("2007_000032", "2007_000033"):
        Image.fromarray(COLORS).save(base / "JPEGImages" / f"{name}.jpg")
        painted.save(base / "SegmentationClass" / f"{name}.png")
    (base / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000033\n2007_000032\n")
    return tmp_path


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    mask = np.full((20, 30), 7, np.uint8)  # road
    mask[10:] = 26  # car
    mask[:2] = 4  # static: not among the 19
    for kind, suffix, pixels in (
        ("leftImg8bit", "leftImg8bit", COLORS),
        ("gtFine", "gtFine_labelIds", mask),
    ):
        folder = tmp_path / kind / "val" / "bonn"
        folder.mkdir(parents=True)
        Image.fromarray(pixels).save(folder / f"bonn_000000_000019_{suffix}.png")
    return tmp_path


def test_public_datasets_voc_is_read_with_its_ids_and_colors(voc: Path) -> None:
    dataset = open_dataset(Path(f"voc:{voc}"))
    assert len(dataset.classes) == 21
    assert dataset.classes[15] == "person"
    assert dataset.palette[15] == (192, 128, 128)  # the published color of a person
    frames = dataset.frames("val")
    assert [frame.name for frame in frames] == ["2007_000032", "2007_000033"]
    image, mask = frames[0].read()
    assert image.shape == (20, 30, 3)
    assert set(np.unique(mask)) == {0, 15, 255}


def test_public_datasets_cityscapes_label_ids_become_train_ids(cityscapes: Path) -> None:
    dataset = open_dataset(Path(f"cityscapes:{cityscapes}"))
    assert len(dataset.classes) == 19
    assert (dataset.classes[0], dataset.palette[0]) == ("road", (128, 64, 128))
    _, mask = dataset.frames("val")[0].read()
    assert set(np.unique(mask)) == {0, dataset.classes.index("car"), 255}


def test_public_datasets_cityscapes_keeps_all_label_ids(cityscapes: Path) -> None:
    dataset = open_dataset(Path(f"cityscapes:{cityscapes},all"))
    assert len(dataset.classes) == 34
    _, mask = dataset.frames("val")[0].read()
    assert set(np.unique(mask)) == {4, 7, 26}
    assert [dataset.classes[at] for at in (4, 7, 26)] == ["static", "road", "car"]


def written(folder: Path, name: str, mask: np.ndarray | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLORS if mask is None else mask).save(folder / name)


MASK = np.full((20, 30), 1, np.uint8)
MASK[10:], MASK[15:] = 3, 0


@pytest.fixture
def mapillary(tmp_path: Path) -> Path:
    labels = [
        {"name": f"class--{at}", "color": [at, at, 9], "evaluate": at != 3} for at in range(5)
    ]
    for version in ("v1.2", "v2.0"):
        config = json.dumps({"labels": labels[: 5 if version == "v2.0" else 4]})
        (tmp_path / f"config_{version}.json").write_text(config)
        written(tmp_path / "validation" / version / "labels", "a.png", MASK)
    written(tmp_path / "validation" / "images", "a.jpg")
    return tmp_path


def test_public_datasets_mapillary_ignores_what_it_does_not_evaluate(mapillary: Path) -> None:
    with pytest.raises(ModelInputError, match=r"two versions; name one: mapillary:.*,v1\.2 or"):
        open_dataset(Path(f"mapillary:{mapillary}"))
    dataset = open_dataset(Path(f"mapillary:{mapillary},v2.0"))
    assert dataset.classes == ("class--0", "class--1", "class--2", "class--4")
    assert dataset.palette[3] == (4, 4, 9)
    _, mask = dataset.frames("val")[0].read()
    assert set(np.unique(mask)) == {0, 1, 255}
    (mapillary / "config_v2.0.json").unlink()
    assert len(open_dataset(Path(f"mapillary:{mapillary}")).classes) == 3
    (mapillary / "config_v1.2.json").write_text('{"labels": [{"name": "x"}]}')
    with pytest.raises(ModelInputError, match="has no 'labels' with a name and a color each"):
        open_dataset(Path(f"mapillary:{mapillary}"))


@pytest.mark.parametrize("masks", ["annotations", "stuffthingmaps"])
def test_public_datasets_coco_stuff_closes_the_gaps_of_its_ids(masks: str, tmp_path: Path) -> None:
    mask = np.full((20, 30), 181, np.uint8)
    mask[:5], mask[5:8], mask[8:9] = 0, 12, 255
    written(tmp_path / "images" / "val2017", "000000000139.jpg")
    written(tmp_path / masks / "val2017", "000000000139.png", mask)
    dataset = open_dataset(Path(f"coco-stuff:{tmp_path}"))
    assert len(dataset.classes) == 171
    _, found = dataset.frames("val")[0].read()
    assert set(np.unique(found)) == {0, 11, 170, 255}
    named = [dataset.classes[at] for at in (0, 11, 170)]
    assert named == ["person", "stop sign", "wood"]  # ids 1, 13 and 182 of labels.txt


def test_public_datasets_pascal_context_with_and_without_background(tmp_path: Path) -> None:
    devkit = tmp_path / "VOCdevkit" / "VOC2010"
    written(devkit / "JPEGImages", "2008_000002.jpg")
    written(devkit / "SegmentationClassContext", "2008_000002.png", MASK)
    lists = devkit / "ImageSets" / "SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2008_000002\n")
    dataset = open_dataset(Path(f"pascal-context:{tmp_path}"))
    assert len(dataset.classes) == 60
    assert set(np.unique(dataset.frames("val")[0].read()[1])) == {0, 1, 3}
    fewer = open_dataset(Path(f"pascal-context:{tmp_path},59"))
    assert fewer.classes == dataset.classes[1:]
    assert set(np.unique(fewer.frames("val")[0].read()[1])) == {255, 0, 2}


def test_public_datasets_ids_that_the_data_set_does_not_have_are_refused(
    cityscapes: Path, mapillary: Path
) -> None:
    path = next(cityscapes.rglob("*labelIds.png"))
    mask = np.asarray(Image.open(path)).copy()
    mask[0, :6] = 200
    Image.fromarray(mask).save(path)
    told = r"holds the ids \[200\], which the data set does not have; its pixels: id 26 50.0 %"
    with pytest.raises(ModelInputError, match=told):
        open_dataset(Path(f"cityscapes:{cityscapes}")).frames("val")[0].read()
    mask = MASK.copy()
    mask[0] = 5
    written(mapillary / "validation" / "v2.0" / "labels", "a.png", mask)
    with pytest.raises(ModelInputError, match=r"holds the ids \[5\], which the data set does not"):
        open_dataset(Path(f"mapillary:{mapillary},v2.0")).frames("val")[0].read()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("mapillary", "give the folder of Mapillary Vistas"),
        ("coco-stuff", "unpack COCO-Stuff's stuffthingmaps_trainval2017.zip there"),
        ("pascal-context", "the masks SegmentationClassContext of 60 classes"),
    ],
)
def test_public_datasets_a_folder_of_another_kind_is_one_line(
    kind: str, told: str, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    check_one_line(run("data", "check", f"{kind}:{tmp_path}"), told)


@pytest.mark.parametrize("kind", ["voc", "cityscapes"])
def test_public_datasets_another_folder_is_told(kind: str, tmp_path: Path) -> None:
    said = {"voc": "give the folder that holds VOCdevkit", "cityscapes": "is not the folder that"}
    with pytest.raises(ModelInputError, match=said[kind]):
        open_dataset(Path(f"{kind}:{tmp_path}")).frames("val")


def test_public_datasets_every_frame_is_checked_and_what_has_no_partner_named(
    run,
    dataset: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(dataset, root := tmp_path / "data")
    (root / "val" / "masks" / "val_0001.png").unlink()
    (root / "val" / "images" / "val_0002.jpg").unlink()
    ran: Ran = run("data", "check", root, "--json")
    assert ran.code == 1
    _, val = json.loads(ran.out)
    assert val["frames"] == 2
    first, second = sorted(val["problems"])
    assert "val_0001.png: no such mask, but there is an image val_0001.jpg" in first
    assert "val_0002.png: there is no image for this mask" in second


def test_public_datasets_a_whole_data_set_is_checked(run, dataset: Path) -> None:
    ran: Ran = run("data", "check", dataset, "--json")
    assert ran.code == 0
    train, val = json.loads(ran.out)
    assert (train["split"], train["frames"], train["sizes"]) == ("train", 16, {"96x128": 16})
    assert sum(train["pixels"].values()) + train["ignored"] == 16 * 96 * 128
    assert val["problems"] == []
    assert "road" in run("data", "check", dataset).out


def test_public_datasets_every_problem_is_listed_and_the_code_is_1(
    run, dataset: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(dataset, tmp_path / "set"))
    Image.new("L", (128, 96), 77).save(root / "train" / "masks" / "train_0001.png")
    (root / "train" / "images" / "train_0003.jpg").write_text("no image")
    shutil.rmtree(root / "val" / "images")
    ran: Ran = run("data", "check", root)
    assert ran.code == 1
    problems = ran.err.splitlines()
    assert len(problems) == 3
    for part, line in zip(
        ("ids [77]", "is neither a PNG nor a JPEG image", "no such folder"), problems, strict=True
    ):
        assert part in line
    assert "14 of 96x128" in ran.out
    assert "absent" in ran.out


def test_public_datasets_one_network_is_shown_layer_by_layer(run, tmp_path: Path) -> None:
    image = tmp_path / "p.png"
    small = ("--width", 2, "--stride", 2, "--size", "64x64")
    ran: Ran = run("models", "show", "deeplabv3", *small, "--image", image)
    assert "receptive field 129 and image pooling" in ran.out
    assert "aspp.conv4" in ran.out
    assert Image.open(image).size[1] > 64
    shown = json.loads(run("models", "show", "deeplabv3", *small, "--json").out)
    layer = next(la for la in shown["layers"] if la["layer"] == "backbone.2.conv2")
    assert (layer["dilation"], layer["effective_stride"], layer["receptive_field"]) == (4, 2, 55)


def test_public_datasets_constructor_options_come_from_the_command_line(run) -> None:
    options = ("--arg", "context=basic", "--arg", "hidden=8", "--width", 2, "--size", "64x64")
    shown = json.loads(run("models", "show", "dilated_vgg16", *options, "--json").out)
    assert any(la["layer"].startswith("context") for la in shown["layers"])
    ran: Ran = run("models", "show", "deeplabv3", "--arg", "nonsense")
    assert ran.code == 2
    assert "is not of the form KEY=VALUE" in ran.err


def saved(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_public_datasets_ade20k_ids_become_classes(tmp_path: Path) -> None:
    names = ("wall", "building, edifice", "sky", "screen", "screen")
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    lines += [f"{at + 1}\t0.1\t1\t1\t1\t{name}" for at, name in enumerate(names)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    ids = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    for folder in ("training", "validation"):
        saved(tmp_path / "images" / folder / "a.jpg", np.zeros((2, 3, 3), np.uint8))
        saved(tmp_path / "annotations" / folder / "a.png", ids)
    dataset = open_dataset(Path(f"ade20k:{tmp_path}"))
    assert dataset.classes == ("wall", "building", "sky", "screen 1", "screen 2")
    assert dataset.splits == ("train", "val")
    (frame,) = dataset.frames("val")
    assert frame.read_mask().tolist() == [[255, 0, 1], [2, 3, 4]]
    with pytest.raises(ModelInputError, match=r"objectInfo150\.txt: no such file"):
        open_dataset(Path(f"ade20k:{tmp_path / 'images'}"))


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    """Images, masks of ids and masks of colors, with a map for each."""
    for name in ("a", "b"):
        saved(tmp_path / "images" / f"{name}.png", np.zeros((2, 3, 3), np.uint8))
        saved(tmp_path / "ids" / f"{name}.png", np.array([[7, 26, 0], [7, 7, 200]], np.uint8))
        colors = np.array([[[128, 64, 128], [0, 0, 142], [1, 1, 1]]] * 2, np.uint8)
        saved(tmp_path / "colors" / f"{name}.png", colors)
    classes = ["road", "car"]
    ids = {"classes": classes, "ids": {"7": "road", "26": "car", "27": "car"}}
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    colors_ = {"classes": classes, "colors": {"128,64,128": "road", "0,0,142": "car"}}
    (tmp_path / "colors.json").write_text(json.dumps(colors_))
    return tmp_path


def test_public_datasets_masks_of_any_ids_and_colors_are_mapped(mapped: Path) -> None:
    of_ids = open_dataset(Path(f"masks:{mapped / 'images'},{mapped / 'ids'},{mapped / 'ids.json'}"))
    assert of_ids.classes == ("road", "car")
    first, second = of_ids.frames("all")
    assert first.read_mask().tolist() == [[0, 1, 255], [0, 0, 255]]
    source = f"masks:{mapped / 'images'},{mapped / 'colors'},{mapped / 'colors.json'}"
    of_colors = open_dataset(Path(source))
    assert of_colors.palette == ((128, 64, 128), (0, 0, 142))
    assert of_colors.frames("all")[1].read()[1].tolist() == [[0, 1, 255]] * 2
    binary = of_colors.against_rest("car").frames("all")[0]
    assert binary.read_mask().tolist() == [[0, 1, 255]] * 2
    plain = open_dataset(Path(f"masks:{mapped / 'images'},{mapped / 'ids'}"))
    assert len(plain.classes) == 201
    assert second.name == "b"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"classes": ["a", "a"], "ids": {"1": "a"}}, "'classes' must be a list of different"),
        ({"classes": ["a"], "ids": {"1": "b"}}, "1 is mapped to 'b', which is no class"),
        ({"classes": ["a"], "ids": {"x": "a"}}, "the key 'x' must be an id of 0 to 255"),
        ({"classes": ["a"], "ids": {"2": "a", "02": "a"}}, "maps 02 twice"),
        ({"classes": ["a"], "ids": {"199": "a"}}, "occurs in the first masks, which hold '"),
        ({"classes": ["a"], "colors": {"1,2,3": "a"}}, "occurs in the first masks, which hold '"),
        ({"classes": ["a"], "colors": {"1,2": "a"}}, "the key '1,2' must be a color of three"),
        ({"classes": ["a"]}, "a map has either 'ids' or 'colors'"),
        ({"classes": ["a"], "ids": {"1": "a"}, "colours": {}}, "'colours' is unknown"),
        (
            {"classes": ["a"], "ids": {"1": "a"}, "palette": []},
            "'palette' must hold one [red, green, blue]",
        ),
    ],
)
def test_public_datasets_a_map_that_is_wrong_is_refused(
    mapped: Path, content: dict[str, object], told: str
) -> None:
    (mapped / "ids.json").write_text(json.dumps(content))
    with pytest.raises(ModelInputError) as caught:
        open_dataset(Path(f"masks:{mapped / 'images'},{mapped / 'ids'},{mapped / 'ids.json'}"))
    assert told in str(caught.value)


def test_public_datasets_ids_beyond_the_classes_are_refused_with_their_shares(
    mapped: Path, graph: Path, run: Callable[..., Ran]
) -> None:
    folder = mapped / "set"
    shutil.copytree(mapped / "images", folder / "val" / "images")
    shutil.copytree(mapped / "ids", folder / "val" / "masks")
    described = {"classes": ["a", "b"], "palette": [[0, 0, 0]] * 2, "ignore_index": 255}
    (folder / "dataset.json").write_text(json.dumps({**described, "splits": ["val"]}))
    with pytest.raises(ModelInputError, match=r"its pixels: id 7 50\.0 %, id 200 16\.7 %"):
        open_dataset(folder).frames("val")[0].read()
    check_one_line(run("evaluate", graph, "--data", "masks:a"), "give masks:IMAGES,MASKS")
    source = f"masks:{mapped / 'images'},{mapped / 'absent'}"
    check_one_line(run("evaluate", graph, "--data", source), "give the folder of the masks")
