"""The command line: exit codes, one-line errors, JSON, and that help loads nothing heavy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeploy.cli import main

from .conftest import Ran, check_one_line


@pytest.mark.parametrize("command", ["", "train", "bench", "build-engine", "data scenes"])
def test_cli_help_loads_nothing_heavy(command: str) -> None:
    program = (
        "import sys\n"
        "from segdeploy.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as exited:\n    assert not exited.code\n"
        "heavy = {'torch', 'torchvision', 'onnx', 'onnx_ir', 'onnxruntime', 'openvino',\n"
        "         'tensorrt_rtx', 'numpy', 'PIL', 'rich', 'jinja2'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: segdeploy" in ran.stdout
    assert ran.stdout.endswith("HEAVY []\n")


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (("export", "deeplabv3", "-o", ""), "an argument is empty after -o; give a value"),
        (("export", "deeplabv3", "--out="), "an argument is empty in --out=; give a value"),
        (("inspect", ""), "an argument is empty; give a value, or check the shell variable"),
    ],
)
def test_cli_empty_arguments_are_named(
    run: Callable[..., Ran], arguments: tuple[str, ...], where: str
) -> None:
    check_one_line(run(*arguments), where)


def test_cli_models_are_listed(run: Callable[..., Ran]) -> None:
    listed = {row["name"]: row for row in json.loads(run("models", "--json").out)}
    assert listed["deeplabv3"]["parameters"] == 3_423_957
    assert listed["semantic_segmentation_model"]["options"] == ["width", "stride"]
    assert "deeplabv3_mobilenet_v3_large" in run("models").out


def test_cli_the_whole_path_in_json(run: Callable[..., Ran], tmp_path: Path, dataset: Path) -> None:
    model, onnx, int8 = (tmp_path / name for name in ("m.safetensors", "m.onnx", "m.int8.onnx"))
    train = run(
        *("train", "deeplabv3", "--data", dataset, "--size", "32x48", "--width", 4, "--stride", 4),
        *("--epochs", 1, "--workers", 0, "-o", model, "--json"),
    )
    assert json.loads(train.out)["images"] == 16
    evaluated = json.loads(run("evaluate", model, "--data", dataset, "--limit", 2, "--json").out)
    assert evaluated["frames"] == 2
    assert 0 <= evaluated["miou"] <= 1
    exported = json.loads(run("export", model, "-o", onnx, "--json").out)
    assert all(proof["holds"] for proof in exported["convolutions"] + exported["parity"])
    calibrated = run("calibrate", onnx, "--data", dataset, "--limit", 3, "-o", int8, "--json")
    assert json.loads(calibrated.out)["frames"] == 3
    same = json.loads(run("evaluate", onnx, "--data", dataset, "--limit", 2, "--json").out)
    assert same["miou"] == pytest.approx(evaluated["miou"], abs=1e-3)
    image = tmp_path / "overlay.png"
    ids = tmp_path / "ids.png"
    frame = dataset / "val" / "images" / "val_0000.jpg"
    predicted = run("predict", onnx, frame, "-o", image, "--labels", ids, "--json")
    assert sum(json.loads(predicted.out)["shares"].values()) == pytest.approx(1)
    assert Image.open(image).size == Image.open(ids).size == (128, 96)
    assert np.asarray(Image.open(ids)).max() < 8


def test_cli_the_printed_tables(
    run: Callable[..., Ran], graph: Path, int8_graph: Path, checkpoint: Path, dataset: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    exported = run("export", checkpoint, "-v", "-o", tmp_path / "m.onnx")
    assert "16 of 16 convolutions keep dilation, padding, stride and groups" in exported.out
    assert "aspp.conv4" in exported.out
    assert "18x18" in exported.out
    assert "conv_combine folded in" in exported.out
    bench = run(
        *("bench", graph, int8_graph, "--reference", checkpoint, "--data", dataset),
        *("--limit", 1, "--seconds", 0.2, "--report", tmp_path / "report"),
    )
    assert bench.code == 0
    assert "reference Q/DQ execution" in bench.out
    assert f"report: {tmp_path / 'report' / 'index.html'}" in bench.out
    assert "mean IoU" in run("evaluate", checkpoint, "--data", dataset, "--limit", 1).out


def test_cli_a_failed_check_exits_with_1(run: Callable[..., Ran], tmp_path: Path) -> None:
    """A network that is traced with another dilation than it runs with."""
    network = ("tests.test_recording:changed_dilation", "--num-classes", 3, "--size", "24x32")
    ran = run("export", *network, "-o", tmp_path / "m.onnx")
    assert ran.code == 1
    assert [": assumed how its images" in line for line in ran.err.splitlines()] == [True, False]
    assert "not written; convolution two " in ran.err


def test_cli_usage_errors_are_one_line(run: Callable[..., Ran], tmp_path: Path) -> None:
    check_one_line(run("train", "deeplabv3"), "Missing option '--data'", "see segdeploy train")
    check_one_line(run("frobnicate"), "No such command 'frobnicate'")
    for size in ("0x64", "64", "64x", "axb", "-3x4"):
        ran = run("export", "deeplabv3", "--size", size, "-o", tmp_path / "m.onnx")
        check_one_line(ran, "is not a size such as 360x480 (height x width)")
    check_one_line(
        run("build-engine", tmp_path / "m.onnx", "--target", "sm86", "--min", "1x8x8", "-o", "e"),
        "--min, --opt and --max go together",
    )
    check_one_line(
        run("build-engine", "m", "--target", "sm86", "--min", "8x8", "-o", "e"),
        "is not a shape such as 1x360x480",
    )


def test_cli_missing_files_name_themselves(
    run: Callable[..., Ran], dataset: Path, checkpoint: Path, graph: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.onnx"
    gone = tmp_path / "gone.safetensors"
    check_one_line(run("export", gone, "-o", out), f"{gone}: no such file")
    check_one_line(run("evaluate", gone, "--data", dataset), f"{gone}: no such file")
    check_one_line(run("evaluate", checkpoint, "--data", tmp_path), "dataset.json: no such file")
    absent = tmp_path / "absent.onnx"
    check_one_line(run("calibrate", absent, "--data", dataset, "-o", out), "absent.onnx: no such")
    check_one_line(
        run("build-engine", absent, "--target", "sm86", "-o", tmp_path / "e.engine"),
        "absent.onnx: no such file",
    )
    check_one_line(
        run("bench", absent, "--reference", checkpoint, "--data", dataset), "absent.onnx: no such"
    )
    check_one_line(
        run("predict", graph, tmp_path / "photo.jpg", "-o", tmp_path / "o.png"),
        "photo.jpg: no such file",
    )
    assert list(tmp_path.iterdir()) == []


def test_cli_an_output_in_a_missing_folder_is_refused_first(
    run: Callable[..., Ran], dataset: Path, checkpoint: Path, graph: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "no" / "such"
    message = f"the folder {folder} does not exist; make it first"
    check_one_line(
        run("train", "deeplabv3", "--data", dataset, "-o", folder / "m.safetensors"), message
    )
    check_one_line(run("export", checkpoint, "-o", folder / "m.onnx"), message)
    check_one_line(run("calibrate", graph, "--data", dataset, "-o", folder / "m.onnx"), message)
    check_one_line(
        run("build-engine", graph, "--target", "sm86", "-o", folder / "m.engine"), message
    )
    bench = ("bench", graph, "--reference", checkpoint, "--data", dataset)
    check_one_line(run(*bench, "--report", folder / "report"), message)
    frame = dataset / "val" / "images" / "val_0000.jpg"
    check_one_line(run("predict", graph, frame, "-o", folder / "o.png"), message)
    check_one_line(run("data", "scenes", folder / "set"), f"{folder}: no such folder")
    assert list(tmp_path.iterdir()) == []


def spoil(kind: str, root: Path) -> str:
    """Spoil a data set in one way; returns what the message must hold."""
    image = root / "val" / "images" / "val_0001.jpg"
    mask = root / "val" / "masks" / "val_0001.png"
    if kind == "unreadable image":
        image.write_bytes(b"\xff\xd8\xff rubbish")
        return "val_0001.jpg: "
    if kind == "mislabeled image":
        Image.open(mask).convert("RGB").save(image, "PNG")
        return "holds PNG data although its name says JPEG"
    if kind == "mask of another size":
        Image.new("L", (20, 10)).save(mask)
        return "the mask is 10x20 (HxW), its image 96x128"
    if kind == "strange id":
        Image.new("L", (128, 96), 77).save(mask)
        return "holds the ids [77]"
    if kind == "mask missing":
        mask.unlink()
        return "val_0001.png: no such mask"
    for path in (root / "val" / "images").iterdir():
        path.unlink()
    return "the split is empty"


@pytest.mark.parametrize(
    "kind",
    [
        "unreadable image",
        "mislabeled image",
        "mask of another size",
        "strange id",
        "mask missing",
        "empty split",
    ],
)
def test_cli_a_spoilt_data_set_in_every_command(
    run: Callable[..., Ran], kind: str, dataset: Path, checkpoint: Path, graph: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    root = Path(shutil.copytree(dataset, tmp_path / "set"))
    said = spoil(kind, root)
    on_val = ("--data", root, "--split", "val")
    check_one_line(run("evaluate", checkpoint, *on_val), said)
    check_one_line(run("calibrate", graph, *on_val, "-o", tmp_path / "m.onnx"), said)
    check_one_line(run("bench", graph, "--reference", checkpoint, *on_val), said)
    for workers in (0, 1):
        train = ("train", checkpoint, *on_val, "--workers", workers)
        check_one_line(run(*train, "-o", tmp_path / "m.safetensors"), said)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_cli_a_checkpoint_of_another_architecture(
    run: Callable[..., Ran], checkpoint: Path, tmp_path: Path
) -> None:
    ran = run(
        *("export", "semantic_segmentation_model", "--num-classes", 8, "--size", "48x64"),
        *("--weights", checkpoint, "-o", tmp_path / "m.onnx"),
    )
    check_one_line(ran, "is a checkpoint of deeplabv3, not of semantic_segmentation_model")


FACTORY = """
from torch import nn

def make(num_classes):
    return nn.Sequential(nn.Conv2d(3, num_classes, 33))
"""


def test_cli_a_size_that_the_network_cannot_take(
    run: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "valid_only.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    ran = run(
        *("export", "valid_only:make", "--num-classes", 2, "--size", "16x16"),
        *("-o", tmp_path / "m.onnx"),
    )
    check_one_line(
        ran, "valid_only:make: the network cannot take a 16x16 RGB image", "another --size"
    )


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("onnxruntime", "cpu", ("predict", "{graph}", "{frame}", "-o", "{tmp}/o.png")),
        ("torch", "torch", ("evaluate", "{checkpoint}", "--data", "{data}")),
        ("torchvision", "torch", ("models",)),
        (
            "openvino",
            "openvino",
            ("predict", "{graph}", "{frame}", "--backend", "openvino", "-o", "{tmp}/o.png"),
        ),
        (
            "tensorrt_rtx",
            "rtx",
            ("build-engine", "{graph}", "--target", "sm86", "-o", "{tmp}/m.engine"),
        ),
    ],
)
def test_cli_a_missing_package_says_how_to_install_it(
    run: Callable[..., Ran], package: str, extra: str, command: tuple[str, ...], graph: Path,
    checkpoint: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, package, None)
    places = {
        "graph": graph,
        "checkpoint": checkpoint,
        "data": dataset,
        "frame": dataset / "val" / "images" / "val_0000.jpg",
        "tmp": tmp_path,
    }
    ran = run(*(part.format(**places) for part in command))
    check_one_line(ran, f"the package {package}", f"pip install 'segdeploy[{extra}]'")


def test_cli_interruption_and_bugs_have_their_own_codes(
    run: Callable[..., Ran], graph: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import segdeploy

    def raising(error: BaseException) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            raise error

        return call

    command = ("evaluate", graph, "--data", dataset)
    monkeypatch.setattr(segdeploy, "evaluate", raising(KeyboardInterrupt()), raising=False)
    ran = run(*command)
    assert (ran.code, ran.err.strip()) == (130, "error: interrupted; nothing was left half-written")
    monkeypatch.setattr(segdeploy, "evaluate", raising(ZeroDivisionError("oh\nno")), raising=False)
    ran = run(*command)
    assert ran.code == 3
    assert "a bug in segdeploy (ZeroDivisionError: oh no)" in ran.err
    # A signal during an import: the module that was being imported raises its own error.
    monkeypatch.setattr("segdeploy.cli._received", [2])
    ran = run(*command)
    assert (ran.code, ran.err.strip()) == (130, "error: interrupted; nothing was left half-written")
    monkeypatch.setattr("segdeploy.cli._received", [])
    with pytest.raises(ZeroDivisionError):
        main(["--debug", *map(str, command)])


def test_cli_predicting_without_torch_loads_no_torch(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    program = (
        "import sys; sys.modules['torch'] = None; import segdeploy\n"
        "segdeploy.load(sys.argv[1]).predict(sys.argv[2])\n"
        "segdeploy.evaluate(sys.argv[1], sys.argv[3], limit=1)\n"
        "segdeploy.calibrate(sys.argv[1], sys.argv[3], sys.argv[4], limit=1)\n"
        "from segdeploy.benchmark.protocol import Protocol\n"
        "given = {"
        "    'reference': sys.argv[1], 'data': sys.argv[3], 'protocol': Protocol(seconds=0.1)}\n"
        "segdeploy.bench([sys.argv[4]], limit=1, **given)\n"
    )
    frame = dataset / "val" / "images" / "val_0000.jpg"
    out = tmp_path / "m.onnx"
    subprocess.run([sys.executable, "-c", program, graph, frame, dataset, out], check=True)
    assert out.exists()


def test_cli_random_weights_are_said_to_be_so(run: Callable[..., Ran], dataset: Path) -> None:
    options = ("--width", 2, "--stride", 4, "--size", "32x32", "--limit", 1)
    ran = run("evaluate", "deeplabv3", "--data", dataset, *options, "--json")
    assert ran.err == "note: deeplabv3 has random weights; give --weights FILE\n"
    assert json.loads(ran.out)["frames"] == 1


def test_cli_a_data_set_that_is_all_ignored_gives_null_and_not_nan(
    run: Callable[..., Ran], checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(dataset, tmp_path / "set"))
    for mask in (root / "val" / "masks").iterdir():
        Image.new("L", (128, 96), 255).save(mask)
    ran = run("evaluate", checkpoint, "--data", root, "--json")
    assert "NaN" not in ran.out
    assert json.loads(ran.out)["miou"] is None
    assert "mean IoU" in run("evaluate", checkpoint, "--data", root).out


def test_cli_the_image_itself_is_not_overwritten(
    run: Callable[..., Ran], graph: Path, dataset: Path, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.jpg"
    shutil.copy(dataset / "val" / "images" / "val_0000.jpg", photo)
    check_one_line(run("predict", graph, photo, "-o", photo), "is the input itself")
    same = tmp_path / "o.png"
    ran = run("predict", graph, photo, "-o", same, "--labels", same)
    check_one_line(ran, "is also the path of the overlay; give two files")


def test_cli_no_command_prints_the_help(run: Callable[..., Ran]) -> None:
    for command in ((), ("data",)):
        ran = run(*command)
        assert ran.code == 2
        assert "Usage: segdeploy" in ran.err
        assert ran.err.count("\n") > 3


def test_cli_a_terminated_command_cleans_up(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segdeploy", "data", "scenes", str(tmp_path / "set")]
    started = subprocess.Popen([*command, "--train", "5000"], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".set.*/train/images/*.jpg")):
        assert started.poll() is None
        time.sleep(0.05)
    started.terminate()
    _, err = started.communicate(timeout=30)
    assert started.returncode == 130
    assert err.strip() == "error: interrupted; nothing was left half-written"
    assert list(tmp_path.iterdir()) == []


def test_cli_json_has_null_for_what_is_infinite(capsys: pytest.CaptureFixture[str]) -> None:
    from segdeploy.cli.console import print_json

    print_json({"snr": (float("inf"), float("nan"), 1.5), "path": Path("a/b")})
    assert json.loads(capsys.readouterr().out) == {"snr": [None, None, 1.5], "path": "a/b"}


def test_cli_an_interruption_says_what_stays(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("it goes on from there")

    monkeypatch.setattr("segdeploy.calibrate", stop, raising=False)
    ran = run("calibrate", "m.onnx", "--data", "d", "-o", "o.onnx")
    said = "error: interrupted; nothing was left half-written; it goes on from there"
    assert (ran.code, ran.err.strip()) == (130, said)
