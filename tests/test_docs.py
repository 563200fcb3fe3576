"""The commands of README and docs, run as they stand, and the links between the pages.

A how-to or explanation starts from the files of the tutorial, whose commands run once.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from . import forked_program
from .conftest import ROOT

DOCS = ROOT / "docs"
TUTORIAL = "docs/tutorial.md"
STATES = "The commands of this page use the files of the [tutorial](../tutorial.md)."
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
# ```console blocks install packages or run `make`; CI does those itself.
BLOCK = re.compile(r"^( *)```(bash|python)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks_of(page: str) -> list[tuple[str, str]]:
    found = BLOCK.findall((ROOT / page).read_text())
    return [
        (language, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE))
        for indent, language, code in found
    ]


def run_blocks(page: str, folder: Path) -> None:
    """Run the blocks of a page in `folder`.

    A block of plain commands runs in forks, any other block and all of the README in a shell.
    """
    for language, code in blocks_of(page):
        lines = code.replace("\\\n", " ").splitlines()
        plain = all(re.fullmatch(r"segdeploy [^|&;<>$*`]+", line) for line in lines)
        if language == "bash" and plain and page != "README.md":
            for line in lines:
                ran = forked_program.run(*shlex.split(line, comments=True)[1:], folder=folder)
                assert ran.code == 0, f"{line}\n{ran.out}\n{ran.err}"
            continue
        command = ["bash", "-e", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ended = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"{code}\n{ended.stdout}\n{ended.stderr}"


@pytest.fixture(scope="session")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the tutorial's commands leave."""
    folder = tmp_path_factory.mktemp("tutorial")
    run_blocks(TUTORIAL, folder)
    return folder


def test_docs_tutorial_leaves_what_its_commands_name(tutorial: Path) -> None:
    named = re.findall(r"(?:-o|--report) (\S+)", "".join(code for _, code in blocks_of(TUTORIAL)))
    assert len(named) > 8
    for name in named:
        assert (tutorial / name).exists(), name


@pytest.mark.parametrize(
    "page", [p for p in ["README.md", *PAGES] if p != TUTORIAL and blocks_of(p)]
)
def test_docs_commands_run_as_they_stand(page: str, request, tmp_path: Path) -> None:
    if STATES in (ROOT / page).read_text():
        tutorial = request.getfixturevalue("tutorial")
        shutil.copytree(tutorial, tmp_path, dirs_exist_ok=True)
    run_blocks(page, tmp_path)
    outputs = re.findall(r"(?: -o| --report) (\S+)", "".join(code for _, code in blocks_of(page)))
    for name in outputs:
        assert (tmp_path / name).exists() or "|| true" in (ROOT / page).read_text(), name


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_docs_links_and_images_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
        name, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / name if name else ROOT / page
        if name.startswith("http"):
            continue
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = {
                re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings
            }
            assert anchor in slugs, f"{target}: no such heading"


def test_docs_site_lists_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert page.removeprefix("docs/") in text, page
