"""C++ candidates, described by the JSON file of `segdeploy-bench --out FILE.json`.

The file states which model was timed, and with which settings. It is untrusted data, so it never
selects the program or library that runs. The program is named by the user or is the installed one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from segdeploy.artifact import OnnxFile, open_artifact
from segdeploy.benchmark.process import Candidate
from segdeploy.errors import InputError
from segdeploy.files import check_input, sha256_of_file
from segdeploy.model_spec import ModelSpec
from segdeploy.models.names import escaped, is_line
from segdeploy.models.strict_json import read_json

_SCHEMA = 3
_PROGRAM = "segdeploy-bench"
_MOST = {"threads": 1024, "contexts": 64}
_CHOICES = {"provider": ("cpu", "cuda", "tensorrt"), "preprocess_on": ("cpu", "gpu")}


def read_cpp_candidate(path: Path, program: Path | None = None) -> Candidate:
    """Return the candidate of such a file, timed by `program` or `segdeploy-bench` on the PATH.

    Accuracy is evaluated in Python on the same model, since C++ and Python give the same labels.

    Raises:
        InputError: if the file is not of `segdeploy-bench`, the program is missing, or the model is
            missing or changed.
    """
    values = read_json(path, expected="a file of segdeploy-bench --out")
    if not isinstance(values, dict) or values.get("schema") != _SCHEMA:
        raise InputError(
            f"{path}: was not written by this version of segdeploy-bench --out; run it again"
        )
    for name in ("model", "model_sha256"):
        if not is_line(values.get(name)):
            raise InputError(f"{path}: its '{name}' is missing or wrong; run segdeploy-bench again")
    settings = _settings(values.get("settings"), path)
    model = Path(values["model"])
    if not model.is_file() or sha256_of_file(model) != values["model_sha256"]:
        raise InputError(
            f"{path}: {model} is missing or was changed since; run segdeploy-bench again"
        )
    file = open_artifact(model)
    found = _found(program)
    return Candidate(
        escaped(path.name),
        ModelSpec(str(model)),
        "onnxruntime" if isinstance(file, OnnxFile) else "",
        file,
        program=(str(found), "--model", str(model), "--serve", *settings),
        build=f" by {sha256_of_file(found)} {settings} {_libraries()}",
    )


def _libraries() -> list[str | None]:
    """Return the runtime locations that the program reads from the environment, None if unset."""
    kinds = ("ONNXRUNTIME", "TENSORRT", "TENSORRT_RTX")
    return [os.environ.get(f"SEGDEPLOY_{kind}") for kind in kinds]


def _settings(values: Any, path: Path) -> tuple[str, ...]:
    """Return the program's options for the file's settings.

    Raises:
        InputError: for an unknown setting, or a value out of range.
    """
    words: list[str] = []
    for name, value in (values if isinstance(values, dict) else {"": None}).items():
        if not (value in _CHOICES.get(name, ()) or _is_count(value, _MOST.get(name, 0))):
            raise InputError(
                f"{path}: its setting '{name}' is unknown or out of range; run segdeploy-bench "
                "again"
            )
        words += [f"--{name.replace('_', '-')}", str(value)]
    return tuple(words)


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _found(program: Path | None) -> Path:
    if program is None:
        installed = shutil.which(_PROGRAM)
        if installed is None:
            raise InputError(
                f"{_PROGRAM}: is not on the PATH; name the program with --cpp-program PATH"
            )
        program = Path(installed)
    if not os.access(check_input(program), os.X_OK):
        raise InputError(f"{program}: is not an executable program; give {_PROGRAM}")
    return program.resolve()
