"""The public names of `segdeploy.models`: there, lazy, and no submodule's."""

from __future__ import annotations

import subprocess
import sys

import pytest

from segdeploy import models

from .conftest import ROOT


def test_models_api_every_public_name_is_there() -> None:
    for name in models.__all__:
        found = getattr(models, name)
        assert name == "ARCHITECTURES" or found.__module__.startswith("segdeploy.models")
    assert dir(models) == models.__all__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = models.Nothing


def test_models_api_no_public_name_is_a_submodules() -> None:
    submodules = {path.stem for path in (ROOT / "models").glob("*.py")}
    assert not submodules & set(models.__all__)


@pytest.mark.parametrize(
    ("name", "heavy"), [("open_dataset", False), ("read_image", False), ("DeepLabV3", True)]
)
def test_models_api_only_what_needs_torch_loads_it(name: str, heavy: bool) -> None:
    program = f"import sys; from segdeploy.models import {name}; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.strip() == str(heavy), ran.stderr
