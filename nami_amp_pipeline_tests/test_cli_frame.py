"""What all commands have in common: help for people, one line for errors, one object for --json."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import orjson
import pytest

import nami_amp_pipeline
from nami_amp_pipeline.cli import cli
from nami_amp_pipeline.state import Store
from nami_amp_pipeline_tests.support.command_line import event, invoke, load_events, one_line

COMMANDS = ["apps", "dead-letters", "demo", "integrations", "load", "run", "sandbox", "status", "trace"]


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += every_command(command, (*path, name))
    return found


def test_the_commands_of_the_contract_are_there() -> None:
    assert set(cli.commands) >= set(COMMANDS)
    assert set(every_command(cli)) >= {
        *(("integrations", name) for name in ("add", "list", "show", "enable", "disable", "remove", "test")),
        *(("dead-letters", name) for name in ("list", "show", "retry")),
    }


@pytest.mark.parametrize("path", every_command(cli), ids=" ".join)
def test_every_command_explains_itself_whatever_the_settings(tmp_path: Path, path: tuple[str, ...]) -> None:
    done = invoke(tmp_path, *path, "--help", settings={"NAMI_AMP_BATCH_EVENTS": "nonsense"})
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) > 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [(), ("integrations",), ("dead-letters",), ("apps",)])
def test_without_a_command_there_is_help(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = invoke(tmp_path, *arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Usage: nami-amp" in done.stdout


def test_version(tmp_path: Path) -> None:
    assert invoke(tmp_path, "--version").stdout == f"nami-amp {nami_amp_pipeline.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("bogus",),
        ("--bogus",),
        ("status", "--bogus"),
        ("load",),
        ("load", "x.ndjson"),
        ("load", "no-such-file", "--app", "radio"),
        ("load", ".", "--app", "radio"),
        ("sandbox", "--port", "99999"),
        ("trace",),
        ("integrations", "bogus"),
        ("dead-letters", "list", "--limit", "0"),
    ],
)
@pytest.mark.contract("6.3")
def test_wrong_arguments_are_one_line_and_status_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = invoke(tmp_path, *arguments)
    assert done.exit_code == 2
    one_line(done.stderr)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("run", "--json", "--bogus"), 2),
        (("run", "--integration", "radio/none", "--json"), 2),
        (("status", "--json"), 0),
        (("integrations", "list", "--json"), 0),
        (("integrations", "show", "radio/none", "--json"), 2),
        (("integrations", "test", "--json"), 0),
        (("apps", "list", "--json"), 0),
        (("dead-letters", "list", "--json"), 0),
        (("dead-letters", "show", "7", "--json"), 2),
        (("dead-letters", "retry", "--json"), 2),
        (("dead-letters", "retry", "--all", "--json"), 0),
        (("dead-letters", "dismiss", "--json"), 2),
        (("dead-letters", "dismiss", "--all", "--json"), 0),
        (("trace", "x", "--json"), 1),
        (("load", "none", "--app", "radio", "--json"), 2),
    ],
)
@pytest.mark.contract("6.4")
def test_json_is_one_object_also_when_it_fails(tmp_path: Path, arguments: tuple[str, ...], status: int) -> None:
    done = invoke(tmp_path, *arguments)
    assert done.exit_code == status, done.output
    answer = orjson.loads(done.stdout)
    assert isinstance(answer, dict)
    if status:
        one_line(done.stderr)
    else:
        assert done.stderr == ""
    if status == 2:
        assert answer["error"] in done.stderr


def test_run_and_status_have_their_keys_also_when_they_fail(tmp_path: Path) -> None:
    for command in ("run", "status"):
        done = invoke(tmp_path, command, "--json", settings={"NAMI_AMP_TICK_MINUTES": "0"})
        assert orjson.loads(done.stdout) == {
            "run_id": None,
            "integrations": [],
            "error": "NAMI_AMP_TICK_MINUTES must be a whole number of minutes from 1 to 59",
        }


def test_a_bug_is_one_line_and_its_traceback_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "a-key-that-must-not-show"

    def broken(_store: Store) -> None:
        raise ValueError(f"{key} postgresql://user:pass-word@host/db\nand more")

    monkeypatch.setattr(Store, "schema_version", broken)
    settings = {"NAMI_AMP_ENCRYPTION_KEY": key}
    done = invoke(tmp_path, "status", settings=settings)
    assert done.exit_code == 1
    assert "this is a bug: ValueError: … postgresql://user:…@host/db" in one_line(done.stderr)
    for arguments, more in ((("--debug", "status"), {}), (("status",), {"NAMI_AMP_DEBUG": "1"})):
        traced = invoke(tmp_path, *arguments, settings={**settings, **more})
        assert traced.exit_code == 1
        assert "Traceback" in traced.stderr
        assert key not in traced.output
        assert "pass-word" not in traced.output


class TestLoad:
    def test_bad_lines_are_named_and_the_status_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(event(1) + b"\nnonsense\n{}\n")
        done = invoke(tmp_path, "load", "a", "--app", "radio")
        assert done.exit_code == 1
        assert done.stderr == "nami-amp: a:2: not JSON\nnami-amp: a:3: no id\n"
        assert done.stdout.startswith("1 events loaded for radio")
        assert done.stdout.endswith("2 bad lines left out.\n")

    def test_many_are_counted(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"x\n" * 50)
        done = invoke(tmp_path, "load", "a", "--app", "radio", "--json")
        assert done.exit_code == 1
        assert len(done.stderr.splitlines()) == 21
        assert done.stderr.endswith("and 30 more\n")
        assert orjson.loads(done.stdout)["bad_lines"] == 50

    def test_several_files(self, tmp_path: Path) -> None:
        load_events(tmp_path, event(1))
        (tmp_path / "more").write_bytes(event(2))
        done = invoke(tmp_path, "load", "events.ndjson", "more", "--app", "radio", "--json")
        assert (done.exit_code, orjson.loads(done.stdout)["rows"]) == (0, 2)


def test_importing_the_package_imports_nothing_large() -> None:
    program = "import sys, nami_amp_pipeline; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "nami_amp_pipeline" in done.stdout.split()
    large = {"dagster", "duckdb", "numpy", "pandas", "pyarrow", "requests", "sqlalchemy"}
    assert not large & set(done.stdout.split())
