"""Trust under attack: two runs at once, work that is stale, devices as outputs, empty promises."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segdeploy
from segdeploy.benchmark.verdict import Limits
from segdeploy.content_keys import key_of_dataset, key_of_model, key_of_network, same_images
from segdeploy.engine.manifest import read_manifest
from segdeploy.errors import InputError
from segdeploy.files import check_folder, check_input, check_output, write_atomically
from segdeploy.model_spec import ModelSpec
from segdeploy.models.checkpoint import read_metadata
from segdeploy.models.dataset import open_dataset
from segdeploy.network_loading import load_network
from segdeploy.onnx_graph.model_file import contract_of, load_onnx, save_onnx, set_contract
from segdeploy.output_lock import output_lock
from segdeploy.proof.golden_vectors import read_golden

from . import forked_program
from .conftest import check_one_line

# --- outputs


def special_files(folder: Path) -> dict[str, Path]:
    """A FIFO, a socket, a device's stand-in, and links to them; nothing real is touched."""
    import socket

    fifo = folder / "fifo.onnx"
    os.mkfifo(fifo)
    bound = folder / "socket.onnx"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(bound))
    link = folder / "link.onnx"
    link.symlink_to(fifo)
    loop = folder / "loop.onnx"
    loop.symlink_to(loop)
    nowhere = folder / "nowhere.onnx"
    nowhere.symlink_to(folder / "no" / "such.onnx")
    return {"a FIFO": fifo, "a socket": bound, "a FIFO, which": link, "cannot be written": loop,
            "does not exist": nowhere}  # fmt: skip


def test_trust_an_output_that_is_no_regular_file_is_refused_and_stays(tmp_path: Path) -> None:
    for words, path in special_files(tmp_path).items():
        before = os.lstat(path)
        with pytest.raises(InputError, match=words):
            check_output(path, ".onnx")
        if words != "does not exist":
            with pytest.raises(InputError, match=words):
                write_atomically(path, b"content")
        after = os.lstat(path)
        assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    with pytest.raises(InputError, match="a device, which is never replaced"):
        check_output(Path("/dev/null"))
    with pytest.raises(InputError, match="its name holds a control character"):
        check_output(tmp_path / "a\x1bb.onnx")


def test_trust_names_may_be_as_long_as_a_file_system_takes(tmp_path: Path) -> None:
    for name in ("x" * 255, "\u00e4\u6f22" * 51):
        assert len(name.encode()) == 255
        with output_lock(tmp_path / name):
            write_atomically(tmp_path / name, b"content")
    assert len(list(tmp_path.iterdir())) == 2


def test_trust_a_link_to_a_regular_file_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_trust_every_command_refuses_a_device_as_its_output(
    run, checkpoint: Path, graph: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    """A link to a FIFO of our own, as one to the null device would be: it must stay."""
    image = open_dataset(dataset).frames("val")[0].image
    os.mkfifo(tmp_path / "fifo")
    links = [tmp_path / f"link{suffix}" for suffix in
             (".onnx", ".engine", ".png", ".safetensors", ".json", ".html")]  # fmt: skip
    for link in links:
        link.symlink_to(tmp_path / "fifo")
    null = tmp_path / "link"
    commands: list[tuple[object, ...]] = [
        ("export", checkpoint, "-o", f"{null}.onnx"),
        ("optimize", graph, "-o", f"{null}.onnx"),
        ("calibrate", graph, "--data", dataset, "-o", f"{null}.onnx"),
        ("calibrate", graph, "--data", dataset, "-o", tmp_path / "m.onnx", "--cache",
         f"{null}.json"),
        ("calibrate", graph, "--data", dataset, "-o", tmp_path / "m.onnx", "--report",
         f"{null}.html"),
        ("build-engine", graph, "-o", f"{null}.engine", "--target", "sm86"),
        ("adopt", graph, "--like", graph, "-o", f"{null}.onnx"),
        ("predict", graph, image, "-o", f"{null}.png"),
        ("predict", graph, image, "-o", tmp_path / "o.png", "--labels", f"{null}.png"),
        ("train", "deeplabv3", "--data", dataset, "-o", f"{null}.safetensors"),
    ]  # fmt: skip
    for command in commands:
        check_one_line(run(*command), "is a FIFO, which is never replaced")
    assert all(link.readlink() == tmp_path / "fifo" for link in links)
    assert (tmp_path / "fifo").is_fifo()


def test_trust_a_fifo_as_an_input_is_refused_at_once(
    run, graph: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    for name in ("f.onnx", "f.json", "f.safetensors", "f.pth", "f.engine", "f.png"):
        os.mkfifo(tmp_path / name)
    shutil.copytree(dataset, tmp_path / "set")
    (tmp_path / "set" / "dataset.json").unlink()
    os.mkfifo(tmp_path / "set" / "dataset.json")
    image = open_dataset(dataset).frames("val")[0].image
    out = ("-o", tmp_path / "o.png")
    for command in (
        ("predict", tmp_path / "f.onnx", image, *out),
        ("predict", graph, tmp_path / "f.png", *out),
        ("predict", tmp_path / "f.engine", image, *out),
        ("predict", tmp_path / "f.safetensors", image, *out),
        ("export", "deeplabv3", "--weights", tmp_path / "f.pth", "-o", tmp_path / "m.onnx"),
        ("inspect", tmp_path / "f.onnx"),
        ("evaluate", graph, "--data", tmp_path / "set"),
        ("bench", tmp_path / "f.json", "--reference", graph, "--data", dataset),
        ("bench", "--compare", tmp_path / "f.json", tmp_path / "f.json"),
        ("calibrate", graph, "--data", dataset, "-o", tmp_path / "m.onnx", "--cache",
         tmp_path / "f.json"),
    ):  # fmt: skip
        check_one_line(run(*command), "FIFO")


# --- two runs at once


def test_trust_an_output_is_held_by_one_run(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    who = rf"m.onnx: is being written by process {os.getpid()}"
    with output_lock(out):
        with pytest.raises(InputError, match=who), output_lock(out):
            pass
        link = tmp_path / "other.onnx"
        link.symlink_to(out)
        with pytest.raises(InputError, match="wait for its end, or give"), output_lock(link):
            pass
        with output_lock(tmp_path / "another.onnx"):
            pass
    with output_lock(out):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["other.onnx"]


def test_trust_the_lock_of_a_run_that_was_killed_is_free(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from segdeploy.output_lock import output_lock\n"
        "with output_lock(Path(sys.argv[1])):\n    os.kill(os.getpid(), 9)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, tmp_path / "dist"], check=False)
    assert ran.returncode == -9
    with output_lock(tmp_path / "dist"):
        pass


def test_trust_hundreds_of_runs_never_hold_one_output_together(tmp_path: Path) -> None:
    holding, overlaps = [0], [0]

    def hold() -> None:
        held = 0
        while held < 20:
            try:
                with output_lock(tmp_path / "f"):
                    holding[0] += 1
                    overlaps[0] += holding[0] > 1
                    held += 1
                    time.sleep(0.0005)
                    holding[0] -= 1
            except InputError:
                time.sleep(0.0005)

    threads = [threading.Thread(target=hold) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(timeout=60)
        assert not one.is_alive()
    assert overlaps == [0]
    assert list(tmp_path.iterdir()) == []


def whole_graph(path: Path) -> None:
    contract_of(load_onnx(path), path)


WHOLE: dict[str, Callable[[Path], object]] = {
    ".onnx": whole_graph,
    ".engine": lambda path: (
        read_manifest(path), read_golden(path.with_name(f"{path.name}.golden.safetensors"))
    ),
    ".safetensors": read_metadata,
    ".png": lambda path: Image.open(path).load(),
}  # fmt: skip


def test_trust_every_pair_of_writing_commands_on_one_output(
    checkpoint: Path, graph: Path, dataset: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    """Both are started at once: at least one ends well, the other too or is told who was first."""
    image = open_dataset(dataset).frames("val")[0].image
    small = ("--width", "4", "--stride", "4", "--size", "32x48", "--epochs", "1", "-q")
    writers: dict[str, tuple[str, list[tuple[object, ...]]]] = {
        "m.onnx": (
            ".onnx",
            [
                ("export", checkpoint),
                ("optimize", graph),
                ("calibrate", graph, "--data", dataset, "--precision", "fp16", "-q"),
                ("adopt", graph, "--like", graph),
            ],
        ),
        "m.engine": (
            ".engine",
            [
                ("build-engine", graph, "--target", "sm86", "-q"),
                ("build-engine", graph, "--target", "sm89", "-q"),
            ],
        ),
        "m.safetensors": (
            ".safetensors",
            [
                ("train", "deeplabv3", "--data", dataset, *small),
                ("train", "deeplabv3", "--data", dataset, *small, "--seed", "3"),
            ],
        ),
        "o.png": (
            ".png",
            [("predict", graph, image), ("predict", graph, image, "--tile")],
        ),
    }
    message = 0
    for name, (suffix, commands) in writers.items():
        for pair in itertools.combinations_with_replacement(commands, 2):
            folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            out = folder / name
            started = [forked_program.start(*words, "-o", out, folder=folder) for words in pair]
            both = [one.ended() for one in started]
            assert 0 in [ran.code for ran in both], both
            for ran in both:
                if ran.code:
                    message += 1
                    assert ran.code == 2, ran.err
                    assert "is being written by" in ran.err
            WHOLE[suffix](out)
            assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]
    assert message  # else nothing of this was tested


def test_trust_two_folders_of_one_name(
    checkpoint: Path, dataset: Path, graph: Path, run, tmp_path: Path, tensorrt_rtx: object
) -> None:
    dist, report = tmp_path / "dist", tmp_path / "r"
    with output_lock(dist), pytest.raises(InputError, match="dist: is being written by process"):
        segdeploy.deploy(checkpoint, dataset, dist, targets=["sm86"])
    with output_lock(report):
        check_one_line(
            run("bench", graph, "--reference", graph, "--data", dataset, "--report", report),
            "r: is being written by process",
        )
    with output_lock(tmp_path / "repo"), pytest.raises(InputError, match="is being written by"):
        segdeploy.serve_repo(graph, tmp_path / "repo")
    assert list(tmp_path.iterdir()) == []


# --- keys


NETWORK = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=2, dilation=2)
        self.last = nn.Conv2d(4, num_classes, 1)
    def forward(self, x):
        return self.last(self.conv(x).relu())

def build(num_classes=8):
    torch.manual_seed(SEED)
    return Small(num_classes)
"""


def steps_of(folder: Path, *words: object) -> list[str]:
    """What `deploy --dry-run` says of each step, in a process of its own."""
    ran = forked_program.run("deploy", *words, folder=folder)
    assert ran.code in (0, 1), ran.err
    return [line for line in ran.out.splitlines() if ": is done" in line or ": would" in line]


def test_trust_deploy_knows_what_a_step_was_made_of(
    dataset: Path, tmp_path: Path, tensorrt_rtx: object
) -> None:
    shutil.copytree(dataset, tmp_path / "set")
    source = tmp_path / "mynet.py"
    source.write_text(NETWORK.replace("SEED", "0"))
    common = ("mynet:build", "--data", "set", "--target", "sm86", "-o", "dist", "--size", "48x64",
              "--max-miou-drop", "90", "--seconds", "0.1")  # fmt: skip
    steps_of(tmp_path, *common)

    def undone() -> list[str]:
        return [line for line in steps_of(tmp_path, *common, "--dry-run") if ": would" in line]

    assert undone() == []
    described = json.loads((tmp_path / "set" / "dataset.json").read_text())
    changes: dict[str, Callable[[], None]] = {
        "weights": lambda: source.write_text(NETWORK.replace("SEED", "1")),
        "code": lambda: source.write_text(
            NETWORK.replace("SEED", "0").replace("padding=2, dilation=2", "padding=1")
        ),
        "function": lambda: source.write_text(
            NETWORK.replace("SEED", "0").replace(".relu()", ".sigmoid()")
        ),
        "class names": lambda: write_described(
            tmp_path, {**described, "classes": [f"{c} 2" for c in described["classes"]]}
        ),
        "ignore index": lambda: renumber_ignored(tmp_path, described),
        "split": lambda: move_frame(tmp_path / "set"),
        "mask": lambda: change_mask(tmp_path / "set"),
    }
    for change in changes.values():
        change()
        assert undone()
        source.write_text(NETWORK.replace("SEED", "0"))
        shutil.rmtree(tmp_path / "set")
        shutil.copytree(dataset, tmp_path / "set")
        assert undone() == []


def write_described(folder: Path, described: dict) -> None:
    (folder / "set" / "dataset.json").write_text(json.dumps(described))


def renumber_ignored(folder: Path, described: dict) -> None:
    write_described(folder, {**described, "ignore_index": 254})
    for path in (folder / "set").rglob("masks/*.png"):
        ids = np.array(Image.open(path))
        Image.fromarray(np.where(ids == 255, 254, ids).astype(np.uint8)).save(path)


def move_frame(data: Path) -> None:
    frame = sorted((data / "train" / "images").iterdir())[0]
    frame.rename(data / "val" / "images" / frame.name)
    mask = data / "train" / "masks" / f"{frame.stem}.png"
    mask.rename(data / "val" / "masks" / mask.name)


def change_mask(data: Path) -> None:
    """Another mask of the same size in bytes and time, as another disk's clock may leave it."""
    path = sorted((data / "train" / "masks").iterdir())[0]
    mask = np.array(Image.open(path))
    before = path.stat()
    mask[0, 0] = (mask[0, 0] + 1) % 8
    Image.fromarray(mask).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_trust_a_network_is_known_by_its_weights_and_its_code(tmp_path: Path) -> None:
    spec = ModelSpec("deeplabv3", 8, {"width": 4, "stride": 4}, size=(32, 48))
    loaded = load_network(spec)
    key = key_of_network(loaded)
    assert key == key_of_network(loaded)
    parameter = next(iter(loaded.network.module.parameters()))
    parameter.data[0] += 1
    assert key_of_network(loaded) != key
    parameter.data[0] -= 1
    dilated = next(m for m in loaded.network.module.modules() if getattr(m, "padding", 0) == (2, 2))
    dilated.dilation = dilated.padding = (3, 3)
    assert key_of_network(loaded) != key
    key = key_of_network(loaded)
    loaded.network.module.register_buffer("hidden", torch.zeros(3), persistent=False)
    assert (hidden := key_of_network(loaded)) != key
    loaded.network.module.plain = torch.ones(2)
    assert key_of_network(loaded) != hidden
    key = key_of_network(loaded)
    loaded.network.module.mode = "another"  # as a factory that reads a file may set it
    assert key_of_network(loaded) != key
    other = replace(loaded, contract=replace(loaded.contract, mean=(0.0, 0.0, 0.0)))
    assert key_of_network(other) != key_of_network(loaded)


def test_trust_weights_beside_a_graph_are_part_of_its_key(graph: Path, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "m.onnx"
    model = onnx.load(graph)
    onnx.save(model, path, save_as_external_data=True, location="m.weights", size_threshold=0)
    key = key_of_model(path)
    content = bytearray((tmp_path / "m.weights").read_bytes())
    content[9] ^= 1
    (tmp_path / "m.weights").write_bytes(content)
    assert key_of_model(path) != key
    (tmp_path / "m.weights").unlink()
    with pytest.raises(InputError, match="no such file"):
        key_of_model(path)


def test_trust_a_data_set_is_known_by_its_content(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "set")
    key = key_of_dataset(open_dataset(tmp_path / "set"))
    assert key == key_of_dataset(open_dataset(dataset))
    move_frame(tmp_path / "set")
    assert key_of_dataset(open_dataset(tmp_path / "set")) != key


def test_trust_a_cache_of_ranges_of_other_frames_is_not_used(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(dataset, tmp_path / "set")
    common = {"method": "min-max", "cache": tmp_path / "c.json"}
    segdeploy.calibrate(graph, tmp_path / "set", tmp_path / "a.onnx", **common)
    held = (tmp_path / "c.json").read_bytes()
    segdeploy.calibrate(graph, tmp_path / "set", tmp_path / "b.onnx", **common)
    assert (tmp_path / "c.json").read_bytes() == held
    for path in (tmp_path / "set" / "train" / "images").iterdir():
        before = path.stat()
        image = np.asarray(Image.open(path))[:, ::-1]
        Image.fromarray(image).save(path, quality=92, subsampling=0)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    segdeploy.calibrate(graph, tmp_path / "set", tmp_path / "c.onnx", **common)
    assert (tmp_path / "c.json").read_bytes() != held


# --- labels and promises


def test_trust_labels_beyond_the_classes_are_never_counted(
    run, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    path = tmp_path / "labels.onnx"
    segdeploy.export(checkpoint, path, output="labels")
    model = load_onnx(path)
    whole = contract_of(model, path)
    few = replace(whole, classes=whole.classes[:2], palette=whole.palette[:2], ignore_index=255)
    set_contract(model, few)
    save_onnx(model, path)
    shutil.copytree(dataset, tmp_path / "set")
    described = json.loads((dataset / "dataset.json").read_text())
    described |= {"classes": list(few.classes), "palette": [list(c) for c in few.palette]}
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(described))
    for mask in (tmp_path / "set").rglob("*.png"):
        ids = np.array(Image.open(mask))
        Image.fromarray(np.where(ids < 2, ids, 255).astype(np.uint8)).save(mask)
    image = open_dataset(dataset).frames("val")[0].image
    words = "the network gives the label"
    check_one_line(run("evaluate", path, "--data", tmp_path / "set"), words)
    check_one_line(run("predict", path, image, "-o", tmp_path / "o.png"), words)
    check_one_line(
        run("bench", path, "--reference", path, "--data", tmp_path / "set", "--report",
            tmp_path / "r"),
        words,
    )  # fmt: skip
    assert not (tmp_path / "o.png").exists()


def ignored(dataset: Path, folder: Path) -> Path:
    """The data set with every pixel of every mask ignored."""
    shutil.copytree(dataset, folder)
    for mask in folder.rglob("masks/*.png"):
        Image.fromarray(np.full(np.array(Image.open(mask)).shape, 255, np.uint8)).save(mask)
    return folder


def test_trust_a_promise_that_nothing_can_judge_is_refused(
    run, graph: Path, checkpoint: Path, dataset: Path, tmp_path: Path,
    tensorrt_rtx: object,
) -> None:  # fmt: skip
    data = ignored(dataset, tmp_path / "set")
    budget = ("--max-miou-drop", 0)
    words = "--max-miou-drop: no pixel of"
    out = tmp_path / "m.onnx"
    check_one_line(run("calibrate", graph, "--data", data, *budget, "-o", out, "-q"), words)
    check_one_line(run("bench", graph, "--reference", graph, "--data", data, *budget), words)
    ran = run("deploy", checkpoint, "--data", data, *budget, "--target", "sm86", "-o",
              tmp_path / "dist")  # fmt: skip
    check_one_line(ran._replace(out=""), words)
    images = data / "val" / "images"
    check_one_line(
        run("bench", graph, "--reference", graph, "--data", images, *budget),
        "--max-miou-drop: the frames have no masks",
    )
    assert not out.exists()
    ran = run("calibrate", graph, "--data", data, "-o", out, "-q", "--method", "min-max")
    assert ran.code == 0
    assert "no mIoU, because every pixel of the masks is ignored" in ran.out
    assert "nan" not in ran.out


@pytest.mark.parametrize("value", ["-1", "100.5", "1e9", "nan", "inf", "1e400", "x"])
def test_trust_limits_are_checked_before_the_first_step(
    value: str, run, graph: Path, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    out = tmp_path / "dist"
    limit = ("--max-miou-drop", value)
    for command in (
        ("deploy", checkpoint, "--data", dataset, "--target", "sm86", "-o", out, *limit),
        ("bench", graph, "--reference", graph, "--data", dataset, *limit),
        ("calibrate", graph, "--data", dataset, "-o", tmp_path / "m.onnx", *limit),
    ):
        check_one_line(run(*command), "--max-miou-drop")
    assert list(tmp_path.iterdir()) == []


def test_trust_paces_that_never_end_are_refused(run, graph: Path, dataset: Path) -> None:
    common = ("bench", graph, "--reference", graph, "--data", dataset)
    for pace in ("1e-9", "nan", "-3", "0"):
        check_one_line(run(*common, "--fps", pace), "--fps")
    for limits in ({"max_miou_drop": float("nan")}, {"max_latency_ms": -1.0}):
        with pytest.raises(InputError):
            Limits(**limits).check()


def test_trust_validation_frames_that_are_training_frames_are_told(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(dataset, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "val")
    shutil.copytree(tmp_path / "set" / "train", tmp_path / "set" / "val")
    for path in (tmp_path / "set" / "val").rglob("*.*"):  # other names, the same content
        path.rename(path.with_name(f"other_{path.name}"))
    opened = open_dataset(tmp_path / "set")
    assert len(same_images(opened.frames("train"), opened.frames("val"))) == len(
        opened.frames("train")
    )
    report = segdeploy.calibrate(graph, tmp_path / "set", tmp_path / "m.onnx", method="min-max")
    assert any("every frame of 'train' is one of 'val', too" in note for note in report.notes)


def test_trust_two_images_of_one_name_are_refused(
    graph: Path, dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(dataset, tmp_path / "set")
    image = sorted((tmp_path / "set" / "val" / "images").iterdir())[0]
    Image.open(image).save(image.with_suffix(".png"))
    with pytest.raises(InputError, match="two images of the same name; rename or remove one"):
        segdeploy.evaluate(graph, tmp_path / "set")


def test_trust_a_folder_that_cannot_be_listed_is_not_empty(tmp_path: Path, dataset: Path) -> None:
    shutil.copytree(dataset, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "val" / "images")
    (tmp_path / "set" / "val" / "images").write_text("a file")
    with pytest.raises(InputError, match=r"val/images: cannot be read \(Not a directory\)"):
        open_dataset(tmp_path / "set").frames("val")


def test_trust_generated_scenes_on_a_full_disk_leave_nothing(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))\n"
        "from segdeploy.cli import main\n"
        "main(['data', 'scenes', sys.argv[2], '--train', '2', '--val', '1', '-q'])\n"
    )
    for limit in (100, 5_000, 20_000):
        ran = subprocess.run(
            [sys.executable, "-c", program, str(limit), str(tmp_path / "set")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 2, ran
        assert ran.stderr.count("\n") == 1
        assert "File too large" in ran.stderr
        assert list(tmp_path.iterdir()) == []


def test_trust_a_network_that_cannot_be_held_is_refused_before_it_is_made(
    run, checkpoint: Path, tmp_path: Path
) -> None:  # fmt: skip
    from safetensors.torch import load_file, save_file

    from segdeploy.contract import METADATA_KEY
    from segdeploy.contract_json import read_contract

    contract = read_contract(read_metadata(checkpoint)[METADATA_KEY], "checkpoint")
    large = replace(contract, arguments={**contract.arguments, "width": 1 << 16})
    path = tmp_path / "m.safetensors"
    save_file(load_file(checkpoint), path, {METADATA_KEY: large.to_json()})
    check_one_line(run("inspect", path), "its weights take", "GB of memory are free")


def test_trust_siblings_of_an_output_are_looked_at_before_the_work(
    run, graph: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    (tmp_path / "r").mkdir()
    os.mkfifo(tmp_path / "r" / "index.html")
    check_one_line(
        run("bench", graph, "--reference", graph, "--data", dataset, "--report", tmp_path / "r"),
        "index.html: is a FIFO, which is never replaced",
    )
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["index.html"]
    os.mkfifo(tmp_path / "m.resume.pt")
    check_one_line(
        run("train", "deeplabv3", "--data", dataset, "-o", tmp_path / "m.safetensors"),
        "m.resume.pt: is a FIFO, which is never replaced",
    )
    assert not (tmp_path / "m.safetensors").exists()


def test_trust_weights_beside_a_graph_are_served_with_it(graph: Path, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "m.onnx"
    model = onnx.load(graph)
    onnx.save(model, path, save_as_external_data=True, location="m.weights", size_threshold=0)
    written = segdeploy.serve_repo(path, tmp_path / "repo", name="road")
    served = next((tmp_path / "repo").rglob("m.weights")).with_name("model.onnx")
    assert written.models
    assert {t.name for t in load_onnx(served).graph.initializer} == {
        tensor.name for tensor in model.graph.initializer
    }


def test_trust_scenes_that_nothing_could_hold_are_refused(run, tmp_path: Path) -> None:
    words = ("data", "scenes", tmp_path / "set")
    check_one_line(run(*words, "--size", "99999x99999"), "more than 100000000 pixels")
    check_one_line(run(*words, "--train", "99999999999999999999"), "is not in the range")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("damage", ["passes", "twice"])
def test_trust_a_damaged_verdict_is_bad_input(
    damage: str, run, graph: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    run("bench", graph, "--reference", graph, "--data", dataset, "--limit", 1, "--seconds", 0.1,
        "--report", tmp_path / "r")  # fmt: skip
    path = tmp_path / "r" / "bench.json"
    values = json.loads(path.read_text())
    if damage == "passes":
        values["rows"][0]["passes"] = "<x>"
    else:
        values["rows"].append(values["rows"][0])
    path.write_text(json.dumps(values))
    check_one_line(run("bench", "--compare", path, path), "is not a verdict of segdeploy bench")


# --- names


def test_trust_names_are_shown_as_escapes(
    run, graph: Path, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    from xml.etree import ElementTree

    name = "a\x1b[31m\n|<img src=x>\u202e_b*.onnx"
    path = tmp_path / name
    shutil.copy(graph, path)
    ran = run("bench", path, "--reference", graph, "--data", dataset, "--limit", 1, "--seconds",
              0.1, "--report", tmp_path / "r")  # fmt: skip
    assert ran.code == 0, ran
    for text in (ran.out, ran.err):
        assert not {"\x1b", "\u202e"} & set(text)
    markdown = (tmp_path / "r" / "bench.md").read_text()
    (row,) = [line for line in markdown.splitlines() if "img src" in line and line.startswith("|")]
    assert r"a\\x1b\[31m\\n\|&lt;img src=x&gt;\\u202e\_b\*.onnx" in row
    suite = ElementTree.parse(tmp_path / "r" / "junit.xml").getroot()
    assert suite[0].get("name") == r"a\x1b[31m\n|<img src=x>\u202e_b*.onnx"
    page = (tmp_path / "r" / "index.html").read_text()
    assert "<img src=x>" not in page
    assert not {"\x1b", "\u202e"} & set(page)
    json.loads((tmp_path / "r" / "bench.json").read_text())
    ran = run("inspect", tmp_path / "no\x1b[2J\nfile.onnx")
    check_one_line(ran, r"no\x1b[2J file.onnx")


def test_trust_contracts_are_checked_as_data_sets_are(graph: Path, tmp_path: Path) -> None:
    for names in (["a", "b\nc"], ["a", "\x1b[2J"], ["a", "\u2066b"], ["a", "a"], ["a", " "]):
        model = load_onnx(graph)
        contract = contract_of(model, graph)
        changed = replace(contract, classes=tuple(names), palette=contract.palette[:2])
        set_contract(model, changed)
        save_onnx(model, tmp_path / "m.onnx")
        with pytest.raises(InputError, match="the contract's 'classes' is wrong, or of a kind"):
            segdeploy.load(tmp_path / "m.onnx")


def test_trust_inputs_and_folders_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a device, not a regular file"):
        check_input(Path("/dev/zero"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a broken link"):
        check_folder(tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="is a file; give a folder"):
        check_folder(tmp_path / "fifo")
