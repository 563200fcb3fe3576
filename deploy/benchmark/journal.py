"""What a bench has found so far, on disk, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segdeploy.files import write_atomically

NAME = "bench.journal"


class Journal:
    """Values by their place, a JSON line each; `key` says what they depend on.

    A journal of another key is begun anew, and a torn last line is dropped. Without a path, values
    are held for this run alone.
    """

    def __init__(self, path: Path | None, key: str):
        self._path = path
        self._values: dict[str, Any] = {}
        if path is None:
            return
        lines = _whole_lines(path) if path.is_file() else []
        if lines and lines[0] == ("key", key):
            self._values = dict(lines[1:])
        path.parent.mkdir(exist_ok=True)
        kept = (_line(*item) for item in (("key", key), *self._values.items()))
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
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(place, value))


def _line(place: str, value: Any) -> str:
    return json.dumps([place, value]) + "\n"


def _whole_lines(path: Path) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            place, value = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            break
        if not isinstance(place, str):
            break
        found.append((place, value))
    return found
