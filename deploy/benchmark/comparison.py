"""`segdeploy bench --compare OLD NEW`: find regressions between two verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.benchmark.serialization import SCHEMA
from segdeploy.errors import InputError
from segdeploy.models.strict_json import read_json

# Noise limits between two runs: mIoU (0.002 is 0.2 points), share of equal labels, and relative
# change of the speed-up.
_MIOU, _AGREEMENT, _LATENCY = 0.002, 0.001, 0.05
_LARGEST = 256 << 20


@dataclass(frozen=True)
class Change:
    """One figure of one candidate in two verdicts; `worse` marks a regression."""

    candidate: str
    figure: str
    before: float | str | None
    after: float | str | None
    worse: bool


def compare_verdicts(old: Path, new: Path) -> list[Change]:
    """Return the figures that changed by more than noise, candidate by candidate.

    Latency is compared by its ratio to the reference, which depends less on the machine's speed.

    Raises:
        InputError: if a file is not a verdict, or the verdicts are of different frames or classes.
    """
    before, after = _read(old), _read(new)
    for values in (before, after):
        values["data set"] = Path(str(values["dataset"])).name
    for what in ("data set", "split", "frames", "size", "classes"):
        if before[what] != after[what]:
            raise InputError(
                f"{new}: its {what} is {after[what]}, but in {old} it is {before[what]}; compare "
                "verdicts of the same frames"
            )
    olds, news = ({row["name"]: row for row in _rows(values)} for values in (before, after))
    changes = []
    for name in dict.fromkeys([*olds, *news]):
        if name not in olds or name not in news:
            there = ("absent", "present") if name not in olds else ("present", "absent")
            changes.append(Change(name, "candidate", *there, worse=name not in news))
            continue
        changes += _changes(name, olds[name], news[name])
    return changes


def _rows(values: dict[str, Any]) -> list[dict[str, Any]]:
    augmented = values["test_time_augmentation"] or {"rows": []}
    return [*values["rows"], *augmented["rows"]]


def _changes(name: str, old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    found = []
    if old["passes"] != new["passes"]:
        before, after = ("passes" if row["passes"] else "fails" for row in (old, new))
        found.append(Change(name, "verdict", before, after, worse=not new["passes"]))
    for figure, path, noise in (
        ("mIoU", ("accuracy", "miou"), _MIOU),
        ("labels equal", ("agreement", "labels"), _AGREEMENT),
        ("speed-up", ("latency", "ratio", "speedup"), _LATENCY),
    ):
        a, b = _at(old, path), _at(new, path)
        if a is None and b is None:
            continue
        if a is None or b is None:
            found.append(Change(name, figure, a, b, worse=b is None))
            continue
        moved = (b - a) / (a if figure == "speed-up" and a else 1)
        if abs(moved) > noise:
            found.append(Change(name, figure, a, b, worse=moved < 0))
    return found


def _at(row: dict[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) else None


def _read(path: Path) -> dict[str, Any]:
    mend = "give the bench.json of a report"
    values = read_json(path, expected="a verdict of segdeploy bench", mend=mend, max_bytes=_LARGEST)
    try:
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise ValueError(f"not a verdict of schema {SCHEMA}")
        augmented = values["test_time_augmentation"]
        if augmented is not None and not (
            isinstance(augmented, dict) and isinstance(augmented.get("rows"), list)
        ):
            raise ValueError("its test-time augmentation is damaged")
        rows = _rows(values) if isinstance(values["rows"], list) else None
        if rows is None or not all(
            isinstance(row, dict)
            and isinstance(row.get("name"), str)
            and isinstance(row.get("passes"), bool)
            for row in rows
        ):
            raise ValueError("its rows are damaged")
        for kind in (values["rows"], augmented["rows"] if augmented else []):
            if len({row["name"] for row in kind}) < len(kind):
                raise ValueError("two of its rows have the same name")
        for what in ("dataset", "split", "frames", "size", "classes"):
            values[what]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{path}: is not a verdict of segdeploy bench ({error}); {mend}"
        ) from error
    return values
