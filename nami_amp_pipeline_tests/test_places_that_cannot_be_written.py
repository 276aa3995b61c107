"""Folders and files that cannot be used: one line that names them, from every command, and no traceback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from nami_amp_pipeline_tests.support.command_line import invoke


def _a_file(home: Path) -> Path:
    home.write_text("")
    return home / "state.db"


def _below_a_file(home: Path) -> Path:
    home.parent.joinpath("file").write_text("")
    return home.parent / "file" / "home" / "state.db"


def _a_folder(home: Path) -> Path:
    (home / "state.db").mkdir(parents=True)
    return home / "state.db"


def _something_else(home: Path) -> Path:
    home.mkdir()
    (home / "state.db").write_bytes(b"this is no database, it is a letter to somebody" * 100)
    return home / "state.db"


def _read_only(home: Path) -> Path:
    home.mkdir()
    home.chmod(0o500)
    return home / "state.db"


WRONG = (_a_file, _below_a_file, _a_folder, _something_else, _read_only)


@pytest.mark.parametrize("make", WRONG)
@pytest.mark.parametrize("command", [("status",), ("run",), ("integrations", "list"), ("trace", "x")], ids=" ".join)
def test_a_store_that_cannot_be_opened_is_named(
    tmp_path: Path, make: Callable[[Path], Path], command: tuple[str, ...]
) -> None:
    if make is _read_only and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    home = tmp_path / "home"
    file = make(home)
    done = invoke(tmp_path, *command, settings={"NAMI_AMP_HOME": str(file.parent)})
    lines = done.stderr.splitlines()
    assert done.exit_code == 1
    assert len(lines) == 1
    assert str(file.parent) in lines[0]
    assert lines[0].startswith("nami-amp: ")
    assert "this is a bug" not in lines[0]
    done = invoke(tmp_path, *command, "--json", settings={"NAMI_AMP_HOME": str(file.parent)})
    assert str(file.parent) in orjson.loads(done.stdout)["error"]


def test_a_home_that_is_not_there_is_made(tmp_path: Path) -> None:
    done = invoke(tmp_path, "status", settings={"NAMI_AMP_HOME": str(tmp_path / "new" / "home")})
    assert (done.exit_code, done.stderr) == (0, "")


def test_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", home], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        done = invoke(tmp_path, "status", settings={"NAMI_AMP_HOME": str(home)})
    finally:
        subprocess.run(["umount", home], check=True)
    assert done.exit_code == 1
    assert done.stderr == (
        f"nami-amp: state store {home}/state.db: it cannot be opened: let this user write the file and its folder\n"
    )
