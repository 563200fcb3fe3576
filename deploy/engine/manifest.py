"""The manifest beside an engine: what it is, what it was made from, and where it may run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segdeploy.engine.bindings import BACKENDS
from segdeploy.engine.options import Profile
from segdeploy.errors import InputError
from segdeploy.files import check_input, sha256_of_file
from segdeploy.spec import PRECISIONS, Contract, read_contract

SCHEMA = 2
_LARGEST = 64 << 20  # bytes; ours are a few kilobytes


@dataclass(frozen=True)
class Manifest:
    """`NAME.engine.json`; the engine file itself stays a pure TensorRT plan.

    `compute_capabilities` are the GPUs that the plan was built for. `parent` is the ONNX file, and
    the contract's provenance goes on to the checkpoint. `golden` names the file of golden vectors
    beside the engine. An `adopted` engine was built elsewhere: what is said of it is what its user
    stated.
    """

    engine: str
    sha256: str
    bytes: int
    backend: str
    backend_version: str
    platform: str
    compute_capabilities: tuple[str, ...]
    precision: str
    input_shape: tuple[int | str, ...]
    output_shape: tuple[int | str, ...]
    profiles: tuple[Profile, ...]
    options: Mapping[str, Any]
    parent: str | None
    parent_sha256: str | None
    convolutions: tuple[Mapping[str, Any], ...]
    contract: Contract
    built_at: str
    seconds: float
    golden: str | None = None
    golden_sha256: str | None = None
    adopted: bool = False

    def to_json(self) -> str:
        """Serialise, schema's version first."""
        values = {**asdict(self), "contract": json.loads(self.contract.to_json())}
        return json.dumps({"schema": SCHEMA, **values}, indent=2) + "\n"

    def rebuild(self, target: str | None = None) -> str:
        """The command that builds the engine again, for another GPU if one is named."""
        parent = self.parent or "MODEL.onnx"
        options = f"--backend {self.backend}"
        if self.backend == "tensorrt-rtx":
            targets = (target,) if target else self.compute_capabilities
            options += "".join(f" --target {one}" for one in targets)
        return f"segdeploy build-engine {parent} {options} -o {self.engine}"


def manifest_path(engine: Path) -> Path:
    """Path of the manifest that belongs to an engine: `NAME.engine.json`."""
    return engine.with_name(f"{engine.name}.json")


def read_manifest(engine: Path) -> Manifest:
    """Read and check the manifest of an engine, and that the engine's bytes are those it tells of.

    Raises:
        InputError: if there is none, it is damaged, of another schema, or of another file.
    """
    check_input(engine)
    path = manifest_path(engine)
    if not path.is_file():
        raise InputError(
            f"{engine}: has no manifest {path.name}, and nobody can tell what it is for; copy the "
            "manifest with it, build it again with `segdeploy build-engine`, or say what it is "
            "with `segdeploy adopt`"
        )
    manifest = parse_manifest(path)
    if manifest.engine != engine.name:
        raise InputError(
            f"{path}: is the manifest of {manifest.engine}; keep an engine's name, or rename both "
            "and its entry 'engine'"
        )
    size = engine.stat().st_size
    if size != manifest.bytes:
        raise InputError(
            f"{engine}: has {size:,} bytes, and its manifest tells of {manifest.bytes:,}: it was "
            f"cut off or replaced; copy it again, or build it: {manifest.rebuild()}"
        )
    if sha256_of_file(engine) != manifest.sha256:
        raise InputError(
            f"{engine}: its bytes are not those that its manifest tells of: it was changed or "
            f"replaced; copy both again, or build it: {manifest.rebuild()}"
        )
    return manifest


def parse_manifest(path: Path) -> Manifest:
    """Read a manifest alone.

    Raises:
        InputError: if it is no JSON, of another schema, or an entry has another type.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is larger than any manifest")
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no manifest ({error}); build the engine again") from error
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
    given = {name: values[name] for name in _CHECKS if name not in ("contract", "profiles")}
    for name in ("compute_capabilities", "input_shape", "output_shape", "convolutions"):
        given[name] = tuple(given[name])
    profiles = tuple(
        Profile(*(tuple(one[end]) for end in ("minimum", "optimum", "maximum")))
        for one in values["profiles"]
    )
    return Manifest(contract=contract, profiles=profiles, **given)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) < 1 << 16


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text_or_none(value: object) -> bool:
    return value is None or _is_text(value)


def _is_file_name(value: object) -> bool:
    """A name in the manifest's own folder, and no way out of it."""
    return isinstance(value, str) and Path(value).name == value and value not in ("", ".", "..")


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(_is_count(d) or _is_text(d) for d in value)


def _is_profile(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(end), list)
        and len(value[end]) == 3
        and all(_is_count(side) for side in value[end])
        for end in ("minimum", "optimum", "maximum")
    )


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "engine": _is_file_name,
    "sha256": _is_text,
    "bytes": _is_count,
    "backend": lambda value: value in BACKENDS,
    "backend_version": _is_text,
    "platform": _is_text,
    "compute_capabilities": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "precision": lambda value: value in PRECISIONS,
    "input_shape": _is_shape,
    "output_shape": _is_shape,
    "profiles": lambda value: isinstance(value, list) and all(map(_is_profile, value)),
    "options": lambda value: isinstance(value, dict),
    "parent": _is_text_or_none,
    "parent_sha256": _is_text_or_none,
    "convolutions": lambda value: (
        isinstance(value, list) and all(isinstance(one, dict) for one in value)
    ),
    "contract": lambda value: isinstance(value, dict),
    "built_at": _is_text,
    "seconds": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "golden": lambda value: value is None or _is_file_name(value),
    "golden_sha256": _is_text_or_none,
    "adopted": lambda value: isinstance(value, bool),
}
