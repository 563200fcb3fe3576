"""The files that MMDeploy writes beside a graph of mmsegmentation (`--dump-info`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segdeploy.errors import InputError
from segdeploy.frameworks.foreign_network import ForeignNetwork
from segdeploy.frameworks.mmsegmentation import class_count, preprocessing_of, scores_of
from segdeploy.models.strict_json import read_json

_PIPELINE = "pipeline.json"


def read(folder: Path) -> ForeignNetwork:
    """Read the preprocessing and the number of classes in `pipeline.json`.

    The graph is the file of `deploy.json`. The names of the classes are in none of the files.

    Raises:
        InputError: for a folder of another kind, or a preprocessing that no contract states.
    """
    path = folder / _PIPELINE
    if not path.is_file():
        raise InputError(
            f"mmdeploy:{folder}: has no {_PIPELINE}, which MMDeploy writes with --dump-info"
        )
    tasks = _tasks(path)
    steps = [_step(one) for one in tasks["Transform"].get("transforms") or ()]
    head = tasks["mmseg"].get("params") or {}
    return ForeignNetwork(
        architecture="",
        stated={**preprocessing_of(steps, path), **scores_of(head)},
        num_classes=class_count(head),
        align_corners=bool(head.get("align_corners")),
        graph=_graph(folder),
        notes=(f"{path}: names no classes; name them with --data, or with a file for --contract",),
    )


def _tasks(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the tasks of the pipeline by their module: `Transform`, `Net`, `mmseg`."""
    values = read_json(path)
    pipeline = values.get("pipeline") if isinstance(values, dict) else None
    tasks = pipeline.get("tasks") if isinstance(pipeline, dict) else None
    found: dict[str, Mapping[str, Any]] = {
        str(one.get("module")): one
        for one in (tasks if isinstance(tasks, list) else ())
        if isinstance(one, dict)
    }
    missing = [name for name in ("Transform", "mmseg") if name not in found]
    if missing:
        raise InputError(
            f"{path}: has no task of the module {missing[0]}, so it is no pipeline of a network of "
            "mmsegmentation"
        )
    return found


def _step(step: Any) -> Any:
    """Return a step with the names of mmsegmentation: MMDeploy writes `scale` as `size`."""
    if isinstance(step, dict) and step.get("type") == "Resize" and "size" in step:
        renamed = {("scale" if key == "size" else key): value for key, value in step.items()}
        return {"keep_ratio": False, **renamed}
    return step


def _is_onnx(name: str) -> bool:
    return Path(name).name == name and name.endswith(".onnx")


def _graph(folder: Path) -> Path | None:
    """Return the graph that `deploy.json` names."""
    path = folder / "deploy.json"
    if not path.is_file():
        return None
    values = read_json(path)
    models = values.get("models") if isinstance(values, dict) else None
    first = models[0] if isinstance(models, list) and models else None
    name = first.get("net") if isinstance(first, dict) else None
    return folder / name if isinstance(name, str) and _is_onnx(name) else None
