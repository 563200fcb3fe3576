"""What a bench has found so far, on disk, so that an interrupted one goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from segdeploy.files import check_input, write_atomically

NAME = "bench.journal"
_LARGEST = 1 << 30  # bytes


class Journal:
    """Values by their place, a JSON line each; `key` says what they depend on.

    Every line holds the hash of its run's key, and its own. Lines of another key, of a run beside
    this one say, and lines that were torn or changed are dropped. Without a path, values are held
    for this run alone.
    """

    def __init__(self, path: Path | None, key: str):
        self._path = path
        self._identity = hashlib.sha256(key.encode()).hexdigest()[:32]
        self._values: dict[str, Any] = {}
        if path is None:
            return
        if path.exists() or path.is_symlink():
            self._values = dict(self._lines(check_input(path)))
        path.parent.mkdir(exist_ok=True)
        kept = (self._line(*item) for item in self._values.items())
        write_atomically(path, "".join(kept).encode())

    @property
    def resumed(self) -> int:
        """How many values it holds."""
        return len(self._values)

    def get(self, place: str) -> Any:
        """The value at a place, or None."""
        return self._values.get(place)

    def put(self, place: str, value: Any) -> None:
        """Keep a value of plain JSON types."""
        self._values[place] = value
        if self._path is not None:
            with check_input(self._path).open("a", encoding="utf-8") as file:
                file.write(self._line(place, value))

    def _line(self, place: str, value: Any) -> str:
        return json.dumps([self._identity, place, value, self._digest(place, value)]) + "\n"

    def _digest(self, place: str, value: Any) -> str:
        told = json.dumps([self._identity, place, value])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def _lines(self, path: Path) -> list[tuple[str, Any]]:
        if path.stat().st_size > _LARGEST:
            return []
        found: list[tuple[str, Any]] = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                _, place, value, digest = json.loads(line)
                is_ours = digest == self._digest(place, value)
            except (ValueError, TypeError, RecursionError):
                continue
            if is_ours and isinstance(place, str):
                found.append((place, value))
        return found
