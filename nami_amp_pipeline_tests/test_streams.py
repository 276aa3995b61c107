"""Standard output and error that are closed, full or of another encoding: no traceback, and delivery goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from nami_amp_pipeline.sandbox import Sandbox, SandboxServer
from nami_amp_pipeline_tests.support.command_line import PROGRAM, add, environment, event, invoke, load_events

POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox()) as server:
        yield server


def shell(folder: Path, command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs ``$NAMI …`` as a shell would."""
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=environment(folder, NAMI=str(PROGRAM), NAMI_AMP_RUN_RETRY_SECONDS="0", **settings),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def delivered(folder: Path) -> int:
    (one,) = orjson.loads(invoke(folder, "status", "--json").stdout)["integrations"]
    return int(one["delivered"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("streams", "settings"),
    [
        (">&-", {}),
        ("2>&-", {}),
        (">&- 2>&- <&-", {}),
        (">/dev/full", {}),
        ("2>/dev/full", {}),
        (">/dev/full 2>/dev/full", {}),
        ("", POSIX),
    ],
    ids=str,
)
def test_a_run_delivers_whoever_can_read_of_it(
    tmp_path: Path, server: SandboxServer, streams: str, settings: dict[str, str]
) -> None:
    add(tmp_path, server.endpoint)
    load_events(tmp_path, event(1), event(2, external="ünïcode"))
    done = shell(tmp_path, f"$NAMI run {streams}", **settings)
    assert "Traceback" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) <= 1
    assert delivered(tmp_path) == 2
    assert server.sandbox.audit.accepted == 2


STREAMS = (">&-", "2>&-", ">&- 2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full")


@pytest.mark.parametrize(
    ("command", "streams"),
    [
        *((command, streams) for command in ("bogus", "--help") for streams in STREAMS),
        *(
            pytest.param(command, streams, marks=pytest.mark.slow)
            # What each says goes to standard output; what is done about standard error is the same for all.
            for command in ("status", "status --json", "integrations list", "doctor")
            for streams in (STREAMS if command == "status" else (">&-", ">/dev/full"))
        ),
    ],
)
def test_no_command_breaks(tmp_path: Path, command: str, streams: str) -> None:
    done = shell(tmp_path, f"$NAMI {command} {streams}")
    assert "Traceback" not in done.stdout + done.stderr
    if streams == ">/dev/full" and command not in ("bogus",):
        assert done.returncode == 1
        assert done.stderr == "nami-amp: cannot write to standard output: No space left on device\n"


@pytest.mark.slow
def test_a_closed_output_is_not_taken_for_a_file_of_ours(tmp_path: Path, server: SandboxServer) -> None:
    add(tmp_path, server.endpoint)
    load_events(tmp_path, event(1))
    assert shell(tmp_path, "$NAMI integrations show radio/none >&- 2>&-").returncode == 2
    assert (tmp_path / ".nami-amp" / "state.db").read_bytes().startswith(b"SQLite format 3\0")
    assert delivered(tmp_path) == 0


@pytest.mark.slow
@pytest.mark.slow_cases
@pytest.mark.parametrize("settings", [POSIX, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}], ids=str)
def test_characters_that_an_output_lacks_are_escaped(tmp_path: Path, settings: dict[str, str]) -> None:
    renamed = ("--rename", "device.impression=Gesehen 🎉 ü")
    done = invoke(
        tmp_path, "integrations", "add", "radio", "prod", "--endpoint", "us", "--api-key-env", "KEY", *renamed
    )
    assert done.exit_code == 0, done.output
    shown = shell(tmp_path, "$NAMI integrations show radio/prod --json", **settings)
    assert shown.returncode == 0, shown.stderr
    assert orjson.loads(shown.stdout)["rename"] == {"device.impression": "Gesehen 🎉 ü"}
    table = shell(tmp_path, "$NAMI integrations show radio/prod", **settings)
    assert (table.returncode, table.stderr) == (0, "")
    assert "Gesehen" in table.stdout
