"""Networks that the installed mmsegmentation builds, from its own published configurations."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import segdeploy
from segdeploy.models.public_classes import COCO_STUFF, PASCAL_CONTEXT, VOC

from .conftest import skip
from .framework_networks import MMSEG, MMSEG_PACKAGES

ROOT = Path(__file__).parent.parent
POINT_HEAD = (
    "dict(_delete_=True, type='PointHead', in_channels=[256], in_index=[0], channels=256,"
    " num_fcs=3, num_classes=19)"
)
BUILD = """
import sys
from pathlib import Path
from tests.framework_networks import import_mmsegmentation, saved_by_mmsegmentation
import segdeploy
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
folder = Path(sys.argv[1])
config, weights = saved_by_mmsegmentation(sys.argv[2], folder)[0][6:].split(",")
Path(config).write_text(Path(config).read_text() + sys.argv[3])
try:
    segdeploy.export(ModelSpec(f"mmseg:{config},{weights}"), folder / "m.onnx")
except InputError as error:
    print("refused:", error)
"""


SAVE = """
import sys
from pathlib import Path
from tests.framework_networks import saved_by_mmsegmentation
print(saved_by_mmsegmentation(sys.argv[2], Path(sys.argv[1]))[0])
"""
COMMAND = """
import sys
from tests.framework_networks import add_mmsegmentation
add_mmsegmentation()
from segdeploy.program import main
main()
"""


def run(*arguments: object, folder: Path) -> str:
    """Run a program that imports mmsegmentation, in `folder`; return its last line."""
    if not MMSEG_PACKAGES.is_dir():
        skip(f"{MMSEG_PACKAGES} has no mmsegmentation; `make test` installs it")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(folder)}
    ran = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, cwd=folder, env=environment,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran.stdout.strip().rpartition("\n")[2]


def test_mmsegmentation_labels_are_those_of_its_own_prediction(tmp_path: Path) -> None:
    names = [one for one in MMSEG if one.startswith(("bisenetv1", "deeplabv3/"))]
    rows = json.loads(run("-m", "tests.mmsegmentation_labels", tmp_path, *names, folder=tmp_path))
    assert len(rows) == 2
    for row in rows:
        assert row["labels"] > 3
        assert row["pytorch"] == 1
        assert row["onnx"] > 0.9995
        assert row["classes"][:2] == ["road", "sidewalk"]
        assert row["architecture"] == "mmseg:EncoderDecoder"


def test_mmsegmentation_is_imported_by_the_command_alone(tmp_path: Path) -> None:
    """Nothing else has filled mmsegmentation's registries in that process."""
    source = run("-c", SAVE, tmp_path, MMSEG[4], folder=tmp_path)
    out = tmp_path / "m.onnx"
    run("-c", COMMAND, "export", "--from", source, "-o", out, folder=tmp_path)
    assert segdeploy.inspect(out).contract.architecture == "mmseg:EncoderDecoder"


def test_mmsegmentation_reads_no_pickle_and_imports_no_package_that_a_configuration_names(
    tmp_path: Path,
) -> None:
    """`class_weight` of a loss is a file that mmengine unpickles; `_scope_` is a package."""

    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "evilscope").mkdir()
    (tmp_path / "evilscope" / "__init__.py").write_text("open('executed', 'w')")
    line = (
        "model = dict(_scope_='evilscope', decode_head=dict(_scope_='evilscope', loss_decode="
        f"dict(type='CrossEntropyLoss', class_weight={str(tmp_path / 'evil.pkl')!r})))"
    )
    assert run("-c", BUILD, tmp_path, MMSEG[4], line, folder=tmp_path) == ""
    assert (tmp_path / "m.onnx").is_file()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("model = dict(backbone=dict(type='os.mkdir', path='made'))", "os.mkdir is none of mmseg"),
        ("model = dict(backbone=dict(type='made'))", "made is none of mmsegmentation's modules"),
        (
            "model = dict(backbone=dict(type='VPD', diffusion_cfg=dict(x='a.pkl')))",
            "names the file",
        ),
        (
            "model = dict(backbone=dict(type='TIMMBackbone', model_name='hf-hub:some/body'))",
            "names the file or address 'hf-hub:some/body'",
        ),
        ("model = dict(type='DepthEstimator')", "the model DepthEstimator is none of EncoderDeco"),
        (f"model = dict(decode_head={POINT_HEAD})", "PointHead has a `predict` of its own"),
        ("model = dict(backbone=dict(depth=17))", "cannot build the network ("),
    ],
)
def test_mmsegmentation_refuses_what_it_cannot_build(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "made.py").write_text("open('executed', 'w')")
    printed = run("-c", BUILD, tmp_path, MMSEG[4], line, folder=tmp_path)
    assert printed.startswith("refused: ")
    assert told in printed
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "m.onnx").exists()


NAMES = """
import json
from tests.framework_networks import import_mmsegmentation
import_mmsegmentation()
from mmseg.datasets import COCOStuffDataset, PascalContextDataset, PascalVOCDataset
print(json.dumps([one.METAINFO["classes"]
                  for one in (COCOStuffDataset, PascalContextDataset, PascalVOCDataset)]))
"""


def test_mmsegmentation_names_the_classes_of_public_data_sets_in_our_order(tmp_path: Path) -> None:
    coco, context, voc = json.loads(run("-c", NAMES, folder=tmp_path))
    assert tuple(coco) == COCO_STUFF
    assert tuple(context) == PASCAL_CONTEXT
    assert len(voc) == len(VOC)
    assert voc[15:18] == list(VOC[15:18])
