"""A candidate that runs in C++: what `segdeploy-bench --out FILE.json` wrote of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from segdeploy.benchmark.process import Candidate
from segdeploy.errors import InputError
from segdeploy.files import check_input, sha256_of_file
from segdeploy.network import ModelSpec

_SCHEMA = 1
_FIELDS = {
    "program": str,
    "arguments": list,
    "environment": dict,
    "model": str,
    "model_sha256": str,
}


def read_cpp_candidate(path: Path) -> Candidate:
    """The model of such a file, timed by the program that wrote it, in turns with the others.

    Its labels are judged by Python's run of the same model, which gives the same ones.

    Raises:
        InputError: for a file of another kind, a program that is not here, or another model.
    """
    check_input(path)
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    if not isinstance(values, dict) or values.get("schema") != _SCHEMA:
        raise InputError(f"{path}: was not written by segdeploy-bench --out; give its file")
    for name, kind in _FIELDS.items():
        if not isinstance(values.get(name), kind):
            raise InputError(f"{path}: its '{name}' is missing or wrong; run segdeploy-bench again")
    program, model = Path(values["program"]), Path(values["model"])
    if not (program.is_file() and os.access(program, os.X_OK)):
        raise InputError(f"{path}: its program {program} is not here; run segdeploy-bench here")
    if not model.is_file() or sha256_of_file(model) != values["model_sha256"]:
        raise InputError(f"{path}: {model} is not the model that it was written for; run it again")
    return Candidate(
        path.name,
        ModelSpec(str(model)),
        "onnxruntime" if model.suffix == ".onnx" else "",
        program=(
            "env",
            *(f"{name}={value}" for name, value in values["environment"].items()),
            *(str(program), "--model", str(model), "--serve"),
            *map(str, values["arguments"]),
        ),
        build=f" by {sha256_of_file(program)} {values['arguments']} {values['environment']}",
    )
