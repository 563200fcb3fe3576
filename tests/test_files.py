"""Atomic writing: after any failure there is the old file or none, and no rubbish beside it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from segdeploy.errors import InputError
from segdeploy.files import check_input, check_output, write_atomically


def test_files_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_files_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from segdeploy.files import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "write_atomically(Path(sys.argv[1]), bytes(100_000))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert "File too large" in ran.stderr
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_files_outputs_are_checked_before_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; make it first"):
        check_output(tmp_path / "no" / "f.onnx")
    with pytest.raises(InputError, match="is a folder; give a file name"):
        check_output(tmp_path)
    with pytest.raises(InputError, match=r"must end in \.png or \.jpg"):
        check_output(tmp_path / "f.gif", (".png", ".jpg"))


def test_files_inputs_must_be_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        check_input(tmp_path / "f")
    with pytest.raises(InputError, match="is a folder, not a file"):
        check_input(tmp_path)
