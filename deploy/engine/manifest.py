"""The manifest beside an engine: the engine's properties, origin, and compatible hosts."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segdeploy.contract import PRECISIONS, Contract, Precision
from segdeploy.contract_json import read_contract
from segdeploy.engine.bindings import BACKENDS
from segdeploy.errors import InputError
from segdeploy.files import check_input
from segdeploy.models.names import is_line
from segdeploy.models.strict_json import read_json
from segdeploy.onnx_graph.layers import LayerInfo
from segdeploy.profiles import Profile
from segdeploy.tensor_spec import TensorSpec

SCHEMA = 2


@dataclass(frozen=True)
class Manifest:
    """The contents of `NAME.engine.json`; the engine file itself stays a pure TensorRT plan.

    `compute_capabilities` are those of the GPUs that the plan was built for. `gpu` is the GPU on
    which TensorRT timed the plan. `parent` is the ONNX file, and the contract's provenance leads on
    to the checkpoint. `golden` names the file of golden vectors beside the engine. An `adopted`
    engine was built elsewhere, and its manifest holds what its user stated.
    """

    engine: str
    sha256: str
    bytes: int
    backend: str
    backend_version: str
    platform: str
    compute_capabilities: tuple[str, ...]
    precision: Precision
    gpu: str | None
    input: TensorSpec
    output: TensorSpec
    profiles: tuple[Profile, ...]
    options: Mapping[str, Any]
    parent: str | None
    parent_sha256: str | None
    convolutions: tuple[LayerInfo, ...]
    contract: Contract
    built_at: str
    seconds: float
    golden: str | None = None
    golden_sha256: str | None = None
    adopted: bool = False

    def to_json(self) -> str:
        """Serialize as JSON, with the schema version first."""
        values = {**asdict(self), "contract": json.loads(self.contract.to_json())}
        return json.dumps({"schema": SCHEMA, **values}, indent=2) + "\n"

    def rebuild(self, target: str | None = None) -> str:
        """Return the command that rebuilds the engine, for compute capability `target` if given."""
        words = ["segdeploy", "build-engine", self.parent or "MODEL.onnx"]
        words += ["--backend", self.backend]
        if self.backend == "tensorrt-rtx":
            for one in (target,) if target else self.compute_capabilities:
                words += ["--target", one]
        for profile in self.profiles:
            for end in ("minimum", "optimum", "maximum"):
                words += [f"--{end[:3]}", "x".join(map(str, getattr(profile, end)))]
        weights = self.options.get("weights")
        words += [f"--{weights}"] if weights in ("refittable", "stripped") else []
        for name in ("version_compatible", "hardware_compatible"):
            words += [f"--{name.replace('_', '-')}"] if self.options.get(name) is True else []
        workspace = self.options.get("workspace_mib")
        words += ["--workspace", str(workspace)] if isinstance(workspace, int) else []
        return shlex.join([*words, "-o", self.engine])


def manifest_path(engine: Path) -> Path:
    """Return the path of an engine's manifest: `NAME.engine.json`."""
    return engine.with_name(f"{engine.name}.json")


def read_manifest(engine: Path) -> Manifest:
    """Read and check an engine's manifest, and check the engine's bytes against the manifest.

    Raises:
        InputError: as in `read_engine`.
    """
    return read_engine(engine)[0]


def read_engine(engine: Path) -> tuple[Manifest, bytes]:
    """Return an engine's manifest and bytes, after a check of the bytes against the manifest.

    Raises:
        InputError: if the manifest is missing, damaged, of another schema, or of another file.
    """
    check_input(engine)
    path = manifest_path(engine)
    if not path.is_file():
        raise InputError(
            f"{engine}: has no manifest {path.name}, which describes the engine; copy the "
            "manifest with it, build it again with `segdeploy build-engine`, or say what it is "
            "with `segdeploy adopt`"
        )
    manifest = parse_manifest(path)
    if manifest.engine != engine.name:
        raise InputError(
            f"{path}: is the manifest of {manifest.engine}; keep an engine's name, or rename both "
            "and its entry 'engine'"
        )
    plan = engine.read_bytes()
    if len(plan) != manifest.bytes:
        raise InputError(
            f"{engine}: has {len(plan):,} bytes, and its manifest states {manifest.bytes:,}: it "
            f"was cut off or replaced; copy it again, or build it: {manifest.rebuild()}"
        )
    if hashlib.sha256(plan).hexdigest() != manifest.sha256:
        raise InputError(
            f"{engine}: its bytes are not those that its manifest states: it was changed or "
            f"replaced; copy both again, or build it: {manifest.rebuild()}"
        )
    return manifest, plan


def parse_manifest(path: Path) -> Manifest:
    """Read and check a manifest, without its engine.

    Raises:
        InputError: if the file is not JSON, has another schema, or an entry is missing or invalid.
    """
    values = read_json(path, expected="a manifest", mend="build the engine again")
    if not isinstance(values, dict):
        raise InputError(f"{path}: is no manifest (no JSON object); build the engine again")
    if values.get("schema") != SCHEMA:
        raise InputError(
            f"{path}: its manifest has schema {values.get('schema')!r:.40}, this segdeploy reads "
            f"{SCHEMA}; build the engine again, or install the segdeploy that wrote it"
        )
    for name, is_valid in _CHECKS.items():
        if name not in values or not is_valid(values[name]):
            raise InputError(
                f"{path}: the manifest's '{name}' is missing or wrong; build the engine again"
            )
    contract = read_contract(json.dumps(values["contract"]), str(path))
    made = ("contract", "profiles", "convolutions", "input", "output")
    given = {name: values[name] for name in _CHECKS if name not in made}
    given["compute_capabilities"] = tuple(given["compute_capabilities"])
    profiles = tuple(
        Profile(*(tuple(one[end]) for end in ("minimum", "optimum", "maximum")))
        for one in values["profiles"]
    )
    layers = tuple(
        LayerInfo(**{n: _frozen(one[n]) for n in _LAYER}) for one in values["convolutions"]
    )
    taken, made_of = (
        TensorSpec(**{name: _frozen(values[end][name]) for name in ("name", "shape", "dtype")})
        for end in ("input", "output")
    )
    return Manifest(
        contract=contract,
        profiles=profiles,
        convolutions=layers,
        input=taken,
        output=made_of,
        **given,
    )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_line_or_none(value: object) -> bool:
    return value is None or is_line(value)


def _is_file_name(value: object) -> bool:
    """Return whether `value` is a plain file name that stays in the manifest's folder."""
    return (
        isinstance(value, str)
        and is_line(value)
        and Path(value).name == value
        and value not in ("", ".", "..")
    )


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(_is_count(d) or is_line(d) for d in value)


def _is_profile(value: object) -> bool:
    ends = ("minimum", "optimum", "maximum")
    if not isinstance(value, dict) or not all(
        isinstance(value.get(end), list)
        and len(value[end]) == 3
        and all(_is_count(side) and side for side in value[end])
        for end in ends
    ):
        return False
    return all(a <= b <= c for a, b, c in zip(*(value[end] for end in ends), strict=True))


def _is_tensor_spec(value: object) -> bool:
    return (
        isinstance(value, dict)
        and _is_line_or_none(value.get("name", 0))
        and value.get("dtype") in ("float", "float16", "bfloat16", "uint8", "int32", "int64")
        and _is_shape(value.get("shape"))
    )


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(_is_count(one) for one in value)


_LAYER: dict[str, Callable[[Any], bool]] = {
    "module": is_line,
    "kernel": _are_counts,
    "dilation": _are_counts,
    "stride": _are_counts,
    "padding": _is_shape,
    "groups": _is_count,
    "precision": is_line,
    "macs": lambda value: value is None or _is_count(value),
}


def _is_layer(value: object) -> bool:
    return isinstance(value, dict) and all(
        name in value and is_valid(value[name]) for name, is_valid in _LAYER.items()
    )


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "engine": _is_file_name,
    "sha256": is_line,
    "bytes": _is_count,
    "backend": lambda value: value in BACKENDS,
    "backend_version": is_line,
    "platform": is_line,
    "compute_capabilities": lambda value: isinstance(value, list) and all(map(is_line, value)),
    "precision": lambda value: value in PRECISIONS,
    "gpu": _is_line_or_none,
    "input": _is_tensor_spec,
    "output": _is_tensor_spec,
    "profiles": lambda value: isinstance(value, list) and all(map(_is_profile, value)),
    "options": lambda value: isinstance(value, dict),
    "parent": lambda value: value is None or _is_file_name(value),
    "parent_sha256": _is_line_or_none,
    "convolutions": lambda value: isinstance(value, list) and all(map(_is_layer, value)),
    "contract": lambda value: isinstance(value, dict),
    "built_at": is_line,
    "seconds": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "golden": lambda value: value is None or _is_file_name(value),
    "golden_sha256": _is_line_or_none,
    "adopted": lambda value: isinstance(value, bool),
}
