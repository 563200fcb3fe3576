"""The rules of the house: who may import whom, and which folders are packaged."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import segdeploy

from .conftest import ROOT

PACKAGES = {"models": "segdeploy.models", "calibration": "segdeploy.calibration"}
ALLOWED = {
    # Pillow is what torchvision reads images with; tifffile is imported for a TIFF alone.
    "models": {
        *("torch", "torchvision", "numpy", "safetensors", "PIL", "tifffile", "segdeploy.models"),
    },
    "calibration": {
        "ml_dtypes",
        "numpy",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "segdeploy.calibration",
    },
}


def imported_by(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            if node.module == "segdeploy":
                names |= {f"segdeploy.{alias.name}" for alias in node.names}
    return names - {"segdeploy"} if path.is_relative_to(ROOT / "deploy") else names


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_architecture_models_and_calibration_import_what_the_table_allows(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imported_by(path):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names:
                continue
            allowed = ALLOWED[folder]
            assert top in allowed or ".".join(name.split(".")[:2]) in allowed, f"{path}: {name}"


def test_architecture_the_packaged_folders_are_those_on_disk() -> None:
    found = set()
    for folder, package in {"deploy": "segdeploy", **PACKAGES}.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *parts)))
    text = (ROOT / "pyproject.toml").read_text()
    listed = text.partition("packages = [")[2].partition("]")[0]
    assert {name.strip(' ",\n') for name in listed.split(",") if name.strip()} == found
    bare = {
        path.parent
        for folder in ("deploy", "models", "calibration")
        for path in (ROOT / folder).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    }
    assert bare == set()


def test_architecture_the_wheel_holds_every_module_and_the_page_template(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "deploy", "models", "calibration"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run([sys.executable, *build], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in {"deploy": "segdeploy", **PACKAGES}.items():
        for path in (ROOT / folder).rglob("*.py"):
            name = f"{inside.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
            assert name in held
    assert {"segdeploy/py.typed", "segdeploy/templates/bench.html.j2"} <= held


def test_architecture_no_public_function_has_a_submodules_name() -> None:
    # An import of the submodule would silently put it in the function's place.
    submodules = {path.stem for path in (ROOT / "deploy").glob("*.py")}
    submodules |= {path.parent.name for path in (ROOT / "deploy").glob("*/__init__.py")}
    assert not submodules & set(segdeploy.__all__)


def test_architecture_every_public_function_is_there() -> None:
    for name in segdeploy.__all__:
        assert callable(getattr(segdeploy, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = segdeploy.nothing


def test_architecture_the_version_stands_in_two_places_alike() -> None:
    assert f'version = "{segdeploy.__version__}"' in (ROOT / "pyproject.toml").read_text()
