"""The graph of rooms: a folder or a file below `deploy` is one; imports go downwards alone."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from .conftest import ROOT

# From the ground up: a room may import those before it. What is not listed is a single file, which
# may import other files and the rooms that `FILES_ABOVE` names.
ORDER = (
    *("models", "templates", "resize_kernels", "preprocessing", "contract_inference"),
    *("frameworks", "calibration", "onnx_graph", "engine", "runtime", "proof", "optimizer"),
    *("exporter", "precision", "benchmark", "serve", "adoption", "commands", "cli"),
)
FILES_ABOVE = {
    "content_keys": {"onnx_graph"},
    "artifact": {"onnx_graph", "engine"},
    "model_spec": {"frameworks"},
    "network_loading": {"frameworks"},
    "program": {"cli"},
    "__main__": {"program"},
}
BASES = {
    "deploy": "segdeploy",
    "models": "segdeploy.models",
    "calibration": "segdeploy.calibration",
}


def modules() -> dict[str, ast.Module]:
    found = {}
    for folder, name in BASES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([name, *parts])] = ast.parse(path.read_text())
    return found


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("segdeploy.")}


def test_rooms_imports_name_their_room() -> None:
    """A bare `import segdeploy` or a relative import would hide an arrow from this test.

    The command line is above all rooms, and `models` and `calibration` are packages of their own.
    """
    for name, tree in modules().items():
        if room(name) in ("cli", "__init__"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert "segdeploy" not in {alias.name for alias in node.names}, name
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, name
                assert node.module != "segdeploy" or name.endswith("__main__"), name


def room(module: str) -> str:
    return module.split(".")[1]


def arrows() -> dict[str, set[str]]:
    """What each room imports; the public API, which is lazy, is none."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, tree in modules().items():
        if name == "segdeploy.__init__":
            continue
        targets = {room(one) for one in imported(tree)} - {room(name)}
        known = {*ORDER, *(path.stem for path in (ROOT / "deploy").glob("*.py"))}
        found[room(name)] |= targets & known
    return found


def test_rooms_imports_go_downwards() -> None:
    found = arrows()
    assert set(ORDER) <= set(found)
    for one, targets in found.items():
        for target in targets & set(ORDER):
            if one in ORDER:
                assert ORDER.index(target) < ORDER.index(one), f"{one} imports {target}"
            else:
                allowed = {"models", "calibration", *FILES_ABOVE.get(one, ())}
                assert target in allowed, f"{one}.py imports {target}"


def test_rooms_no_circle_of_rooms() -> None:
    found = arrows()
    done: set[str] = set()

    def visit(one: str, path: tuple[str, ...]) -> None:
        assert one not in path, f"a circle: {' > '.join([*path[path.index(one) :], one])}"
        if one in done:
            return
        for target in found.get(one, ()):
            visit(target, (*path, one))
        done.add(one)

    for one in list(found):
        visit(one, ())


def test_rooms_every_command_is_one_file_of_the_same_name_in_two_rooms() -> None:
    """`cli` has the words, `commands` the work; three have words alone."""
    words = {path.stem for path in (ROOT / "deploy" / "cli").glob("*.py")}
    work = {path.stem for path in (ROOT / "deploy" / "commands").glob("*.py")}
    assert work <= words
    assert words - work == {"console", "data", "headings", "models", "options"}


def test_rooms_every_folder_is_a_room_with_a_docstring() -> None:
    for path in (ROOT / "deploy").iterdir():
        if path.is_dir() and (path / "__init__.py").is_file():
            assert path.name in ORDER
            assert ast.get_docstring(ast.parse(Path(path / "__init__.py").read_text()))
