"""Output: whole rows with tabs in a pipe; on a terminal no broken ids, fewer columns where it is narrow, colours."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from nami_amp_pipeline.commands import output
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.named_fields import named_fields
from nami_amp_pipeline.operations.times import parse_time
from nami_amp_pipeline_tests.support.command_line import PROGRAM, add, environment, event, load_events, tick

LONG = "an-id-of-forty-characters-0123456789abcd"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return monkeypatch


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def show() -> None:
    output.table(
        ("Event", "Integration", "Why"),
        [(LONG, "radio/main", "words " * 20), ("2", "fit/main", None)],
        texts=("Why",),
        optional=("Integration",),
        colours=["red", None],
    )


def test_in_a_pipe_a_row_is_a_line_and_nothing_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    show()
    output.facts({"Body": "{" + "x" * 500 + "}", "Two": "a\nb\tc", "None": None})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Event\tIntegration\tWhy"
    assert lines[1] == f"{LONG}\tradio/main\t{'words ' * 20}"
    assert lines[2] == "2\tfit/main\t"
    assert lines[3] == "Body\t{" + "x" * 500 + "}"
    assert lines[4] == "Two\ta, b c"
    assert len(lines) == 5


@pytest.mark.parametrize(("columns", "has_integration"), [(100, True), (70, False)])
def test_on_a_terminal_ids_are_whole_and_a_narrow_one_has_fewer_columns(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, has_integration: bool
) -> None:
    terminal.setenv("COLUMNS", str(columns))
    show()
    text = plain(capsys.readouterr().out)
    assert max(map(len, text.splitlines())) <= columns
    assert LONG in text
    assert ("radio/main" in text) is has_integration


def test_a_terminal_too_narrow_for_a_table_has_a_list(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.setenv("COLUMNS", "30")
    show()
    text = plain(capsys.readouterr().out)
    assert f"Event        {LONG}" in text
    assert "Integration  radio/main" in text


def test_colours_are_for_terminals_that_want_them(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "\x1b[31m" in output.coloured("x", "red")
    assert output.coloured("x", None) == "x"
    terminal.setenv("NO_COLOR", "1")
    assert output.coloured("x", "red", bold=True) == "x"
    terminal.delenv("NO_COLOR")
    terminal.setenv("TERM", "dumb")
    assert output.coloured("x", "red") == "x"


def test_wide_characters_take_two_columns(terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("User", "Events"), [("日本", "1"), ("abcd", "2"), ("é", "3")])
    lines = plain(capsys.readouterr().out).splitlines()
    assert lines[1:3] == ["日本  1", "abcd  2"]


def on_a_terminal(folder: Path, *arguments: str, columns: int, **settings: str) -> str:
    """What a command prints on a real terminal of a width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with subprocess.Popen(
        [PROGRAM, *arguments],
        cwd=folder,
        env=environment(folder, TERM="xterm", **settings),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ):
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # how Linux says that nobody holds the other end any more
                break
            if not part:
                break
            said += part
    os.close(ours)
    return said.decode().replace("\r\n", "\n")


@pytest.mark.slow
def test_a_real_terminal(tmp_path: Path) -> None:
    load_events(tmp_path, event(1, external="null"))
    add(tmp_path, "http://127.0.0.1:9/2/httpapi", name="an-integration-with-a-long-name")
    tick(tmp_path, "first")
    wide = on_a_terminal(tmp_path, "status", columns=160)
    assert "\x1b[" in wide
    assert "Captured" in wide
    narrow = on_a_terminal(tmp_path, "status", columns=70, NO_COLOR="1")
    assert "\x1b[" not in narrow
    assert "radio/an-integration-with-a-long-name" in narrow
    assert "Captured" not in narrow


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1h", "2026-09-01T11:30:00+00:00"),
        ("90 s", "2026-09-01T12:28:30+00:00"),
        ("30min", "2026-09-01T12:00:00+00:00"),
        ("2d", "2026-08-30T12:30:00+00:00"),
        ("1W", "2026-08-25T12:30:00+00:00"),
        ("now", "2026-09-01T12:30:00+00:00"),
        ("today", "2026-09-01T00:00:00+00:00"),
        ("Yesterday", "2026-08-31T00:00:00+00:00"),
        ("2026-08-01", "2026-08-01T00:00:00+00:00"),
        ("2026-08-01T02:00:00+02:00", "2026-08-01T00:00:00+00:00"),
    ],
)
def test_times_as_people_write_them(text: str, at: str) -> None:
    from datetime import datetime

    now = datetime.fromisoformat("2026-09-01T12:30:00+00:00").timestamp()
    assert parse_time(text, "--since", now) == int(datetime.fromisoformat(at).timestamp() * 1e6)


@pytest.mark.parametrize("text", ["1 fortnight", "", "h", "-1h", "9999999h", "2026-13-01"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(Misconfigured, match="is not a time"):
        parse_time(text, "--since")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"events_with_invalid_fields":["time"]}', ["time is invalid: 5"]),
        ('{"events_with_missing_fields":["event_type"]}', ["event_type is missing"]),
        ('{"events_with_invalid_id_lengths":["user_id"]}', ["user_id has a length that Amplitude does not take"]),
        ('{"events_with_invalid_fields":{"time":[3]}}', ["time is invalid: 5"]),  # of an older version, of one event
        ('{"events_with_invalid_fields":{"time":[3,4],"price":[4]}}', []),  # of several: nobody knows which
        ('{"missing_field":"time"}', ["time is missing: 5"]),
        ("<html>", []),
        (None, []),
    ],
)
def test_the_fields_that_amplitude_named(answer: str | None, said: list[str]) -> None:
    assert [str(field) for field in named_fields(answer, ',{"time":5}')] == said


@pytest.mark.slow
def test_watch_looks_again_until_ctrl_c(tmp_path: Path) -> None:
    add(tmp_path, "http://127.0.0.1:9/2/httpapi")
    with subprocess.Popen(
        [PROGRAM, "status", "--watch", "--every", "1"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        verdicts = 0
        while verdicts < 2:
            line = watching.stdout.readline()
            assert line, "it ended by itself"
            verdicts += line.startswith("Integration\t")
        watching.send_signal(signal.SIGINT)
        _, complaint = watching.communicate(timeout=60)
    assert (watching.returncode, complaint) == (130, "")
