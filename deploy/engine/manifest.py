"""The manifest beside an engine: what it is, what it was made from, and where it may run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segdeploy.spec import Contract

SCHEMA = 1


@dataclass(frozen=True)
class Manifest:
    """`NAME.engine.json`; the engine file itself stays a pure TensorRT plan."""

    engine: str
    sha256: str
    bytes: int
    builder: str
    builder_version: str
    compute_capabilities: tuple[str, ...]
    precision: str
    input_shape: tuple[int | str, ...]
    profile: dict[str, Any] | None
    parent: str
    parent_sha256: str
    convolutions: tuple[dict[str, Any], ...]
    contract: Contract

    def to_json(self) -> str:
        """Serialise, schema's version first."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"


def manifest_path(engine: Path) -> Path:
    """Path of the manifest that belongs to an engine: `NAME.engine.json`."""
    return engine.with_name(f"{engine.name}.json")
