"""The ledger: completed work in a file, so that an interrupted command resumes.

`bench`, the mixed-precision search of `calibrate`, and `deploy` keep one each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from segdeploy.files import check_input, write_atomically

BENCH = "bench.ledger"
STEPS = "steps.ledger"
_LARGEST = 1 << 30  # bytes

Value = TypeVar("Value")


class Ledger:
    """Values by name, one JSON line each, that depend on everything in `key`.

    A line holds the hash of its run's key and a hash of its own. Truncated or changed lines and
    lines of another key are not read, and the first `put` removes them. Without a path, values are
    held in memory.

    Raises:
        InputError: if `path` exists and is no regular file.
    """

    def __init__(self, path: Path | None, key: str):
        self._path = path
        self._identity = hashlib.sha256(key.encode()).hexdigest()[:32]
        self._values: dict[str, Any] = {}
        self._is_clean = False
        if path is not None and (path.exists() or path.is_symlink()):
            self._values = dict(self._lines(check_input(path)))

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: str) -> Any:
        """Return the value of a name, or None."""
        return self._values.get(name)

    def put(self, name: str, value: Any) -> None:
        """Record a value of plain JSON types."""
        self._values[name] = value
        if self._path is None:
            return
        if self._is_clean:
            with check_input(self._path).open("a", encoding="utf-8") as file:
                file.write(self._line(name, value))
            return
        self._path.parent.mkdir(exist_ok=True)
        lines = (self._line(*item) for item in self._values.items())
        write_atomically(self._path, "".join(lines).encode())
        self._is_clean = True

    def once(self, name: str, compute: Callable[[], Value]) -> Value:
        """Return the recorded value of a name, or compute and record it."""
        if name not in self._values:
            self.put(name, compute())
        value: Value = self._values[name]
        return value

    def _line(self, name: str, value: Any) -> str:
        return json.dumps([self._identity, name, value, self._digest(name, value)]) + "\n"

    def _digest(self, name: str, value: Any) -> str:
        content = json.dumps([self._identity, name, value])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _lines(self, path: Path) -> list[tuple[str, Any]]:
        if path.stat().st_size > _LARGEST:
            return []
        found: list[tuple[str, Any]] = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                _, name, value, digest = json.loads(line)
                is_ours = digest == self._digest(name, value)
            except (ValueError, TypeError, RecursionError):
                continue
            if is_ours and isinstance(name, str):
                found.append((name, value))
        return found
