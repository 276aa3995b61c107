"""The installed program, from the first file to the last event, and what it says when something is in the way."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import orjson
import pytest

from nami_amp_pipeline.sandbox import Fault, Sandbox, SandboxServer
from nami_amp_pipeline.warehouse import duckdb_attach
from nami_amp_pipeline_tests.support.command_line import (
    API_KEY,
    PROGRAM,
    add,
    environment,
    event,
    invoke,
    load_events,
    nami_amp,
    one_line,
)

PATIENCE = {"NAMI_AMP_RUN_RETRY_SECONDS": "1"}


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox()) as server:
        yield server


def run(folder: Path) -> tuple[int, list[dict[str, object]], str]:
    """One micro-batch in this process: exit status, integrations, standard error."""
    done = invoke(folder, "run", "--json", settings=PATIENCE)
    return done.exit_code, orjson.loads(done.stdout)["integrations"], done.stderr


@contextmanager
def started(folder: Path, *arguments: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """The installed program at work; it does not outlive the test."""
    with subprocess.Popen(
        [PROGRAM, *arguments],
        cwd=folder,
        env=environment(folder, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.contract("2.4")
@pytest.mark.slow
def test_the_whole_way_leaves_no_clear_key_anywhere(tmp_path: Path, server: SandboxServer) -> None:
    (tmp_path / "events.ndjson").write_bytes(event(1) + b"\n" + event(2, "u2", None) + b"\n")
    told = []
    for arguments in (
        ("load", "events.ndjson", "--app", "radio"),
        (
            "integrations", "add", "radio", "prod", "--endpoint", server.endpoint, "--allow-custom-endpoint",
            "--api-key-env", "KEY", "--start-from", "beginning",
        ),
        ("run",),
        ("status",),
        ("integrations", "show", "radio/prod"),
        ("integrations", "test"),
        ("trace", "event-1"),
    ):  # fmt: skip
        done = nami_amp(tmp_path, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), (arguments, done)
        told.append(done.stdout)
    assert "2 events loaded for radio" in told[0]
    assert server.sandbox.audit.accepted == 1
    status = orjson.loads(nami_amp(tmp_path, "status", "--json").stdout)
    (one,) = status["integrations"]
    assert status["run_id"] in told[2]
    assert {key: one[key] for key in ("integration", "captured", "delivered", "skipped", "pending", "error")} == {
        "integration": "radio/prod",
        "captured": 2,
        "delivered": 1,
        "skipped": {"no_external_id": 1},
        "pending": 0,
        "error": None,
    }
    assert API_KEY not in "".join(told)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert [file for file in files if API_KEY.encode() in file.read_bytes()] == []
    assert stat.S_IMODE((tmp_path / ".nami-amp" / "encryption.key").stat().st_mode) == 0o600


@pytest.mark.contract("6.3")
@pytest.mark.slow
def test_trouble_is_said_nothing_is_lost_and_the_next_run_goes_on(tmp_path: Path) -> None:
    load_events(tmp_path, event(1))
    add(tmp_path, "http://127.0.0.1:9/2/httpapi")
    status, (one,), said = run(tmp_path)
    assert (status, one["pending"], one["delivered"]) == (1, 1, 0)
    assert "radio/prod" in one_line(said)

    with SandboxServer(Sandbox()) as strict:
        strict.sandbox.faults.add(Fault("invalid_key"))
        with SandboxServer(Sandbox()) as server:
            add(tmp_path, strict.endpoint, name="wrong-key")
            add(tmp_path, server.endpoint, name="well")
            status, rows, said = run(tmp_path)
            found = {row["integration"]: row for row in rows}
            assert status == 1
            assert [line.split(":")[1].strip() for line in said.splitlines()] == ["radio/prod", "radio/wrong-key"]
            assert "invalid_api_key" in str(found["radio/wrong-key"]["error"])
            assert found["radio/wrong-key"]["pending"] == 1
            assert (found["radio/well"]["delivered"], found["radio/well"]["error"]) == (1, None)
            assert API_KEY not in said
            prod, wrong = said.splitlines()
            assert prod.endswith("(1 event pending, the next run continues)")
            assert wrong.endswith("then 'nami-amp integrations enable radio/wrong-key')")
        strict.sandbox.faults.remove()
        assert invoke(tmp_path, "integrations", "enable", "radio/wrong-key").exit_code == 0
        assert invoke(tmp_path, "integrations", "disable", "radio/prod").exit_code == 0
        status, rows, said = run(tmp_path)
        assert (status, said) == (0, "")
        assert {row["integration"]: row["delivered"] for row in rows}["radio/wrong-key"] == 1


@pytest.mark.slow
def test_waiting_for_a_login_is_no_failure(tmp_path: Path, server: SandboxServer) -> None:
    load_events(tmp_path, event(1, external=None))
    add(tmp_path, server.endpoint, "--anonymous", "wait_for_login")
    status, (one,), said = run(tmp_path)
    assert (status, one["pending"], said) == (0, 1, "")


@pytest.mark.slow
def test_a_warehouse_in_the_way(tmp_path: Path, server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, of another shape, locked: one line each, and when it is repaired the next run goes on."""
    monkeypatch.setattr(duckdb_attach, "LOCK_PATIENCE_SECONDS", 0.5)
    home = tmp_path / ".nami-amp"
    warehouse = home / "warehouse.duckdb"
    add(tmp_path, server.endpoint)
    status, _, said = run(tmp_path)
    assert status == 1
    assert "there is no DuckDB file" in one_line(said)
    with duckdb.connect(str(warehouse)) as connection:
        connection.execute("CREATE TABLE other (a int)")
    status, _, said = run(tmp_path)
    assert status == 1
    assert "there is no table main.nami_events" in one_line(said)
    with duckdb.connect(str(warehouse)) as connection:
        connection.execute(
            "CREATE TABLE nami_events (id text, app_id text, event_type text, user_id text, "
            "created_date timestamp, ingested_at timestamptz, payload text)"
        )
    status, _, said = run(tmp_path)
    assert status == 1
    assert "column created_date of table nami_events is TIMESTAMP" in one_line(said)
    warehouse.unlink()
    load_events(tmp_path, event(1))
    program = f"import duckdb; c = duckdb.connect({str(warehouse)!r}); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        status, _, said = run(tmp_path)
        assert status == 1
        assert "locked by another process" in one_line(said)
        holder.communicate("\n")
    status, (one,), said = run(tmp_path)
    assert (status, one["delivered"], said) == (0, 1, "")


@pytest.mark.slow
def test_settings_and_names_that_cannot_be_used(tmp_path: Path) -> None:
    for settings, arguments, message in (
        ({"NAMI_AMP_BATCH_EVENTS": "x"}, ("run",), "NAMI_AMP_BATCH_EVENTS must be"),
        ({"NAMI_AMP_WAREHOUSE_URL": "mysql://u:p@h/d"}, ("status",), "NAMI_AMP_WAREHOUSE_URL must be"),
        ({}, ("run", "--integration", "radio/none"), "no integration radio/none"),
        ({}, ("run", "--integration", "radio"), "write APP/NAME"),
        ({"NAMI_AMP_ENCRYPTION_KEY": "short"},
         ("integrations", "add", "a", "b", "--endpoint", "us", "--api-key-env", "KEY"), "must be a Fernet key"),
    ):  # fmt: skip
        done = nami_amp(tmp_path, *arguments, **settings)
        assert done.returncode == 2, done
        assert message in one_line(done.stderr)
        assert done.stdout == ""


@pytest.mark.parametrize("home", ["a-file/home", "/proc/nope"])
@pytest.mark.parametrize("arguments", [("status",), ("run",), ("integrations", "list"), ("trace", "x")])
def test_a_folder_that_cannot_be_written(tmp_path: Path, home: str, arguments: tuple[str, ...]) -> None:
    (tmp_path / "a-file").write_text("")
    done = invoke(tmp_path, *arguments, settings={"NAMI_AMP_HOME": home})
    assert done.exit_code == 1
    assert "cannot create" in one_line(done.stderr)


def test_a_state_store_that_is_none(tmp_path: Path) -> None:
    (tmp_path / ".nami-amp").mkdir()
    (tmp_path / ".nami-amp" / "state.db").write_text("something else " * 1_000)
    done = invoke(tmp_path, "status")
    assert done.exit_code == 1
    assert "state store" in one_line(done.stderr)


@pytest.mark.slow
def test_status_imports_no_dagster(tmp_path: Path, server: SandboxServer) -> None:
    add(tmp_path, server.endpoint)
    assert nami_amp(tmp_path, "status").returncode == 0
    program = (
        "import sys\nfrom nami_amp_pipeline.cli import cli\n"
        "try:\n    cli.main(['status'])\nexcept SystemExit: pass\n"
        "sys.exit(any(name.split('.')[0] == 'dagster' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment(tmp_path), check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_sandbox_serves_until_it_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path, "sandbox", "--port", "0") as serving:
        assert serving.stdout is not None
        assert "Local Amplitude at http://127.0.0.1:" in serving.stdout.readline()
        endpoint = serving.stdout.readline().split()[4]
        add(tmp_path, endpoint)
        assert invoke(tmp_path, "integrations", "test").exit_code == 0
        serving.send_signal(number)
        assert serving.wait(10) == 0


def test_a_port_that_is_taken_is_said(tmp_path: Path, server: SandboxServer) -> None:
    done = nami_amp(tmp_path, "sandbox", "--port", str(server.port))
    assert done.returncode == 2
    assert f"cannot listen on port {server.port}" in one_line(done.stderr)


@pytest.mark.contract("6.3")
@pytest.mark.slow
def test_ctrl_c_ends_quietly(tmp_path: Path) -> None:
    load_events(tmp_path, event(1))
    add(tmp_path, "http://127.0.0.1:9/2/httpapi")
    with started(tmp_path, "run", NAMI_AMP_RUN_RETRY_SECONDS="60") as running:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not list((tmp_path / ".nami-amp" / "data" / "outboxes").glob("*.arrow")):
            time.sleep(0.1)
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)
    assert (running.returncode, said) == (130, "")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [PROGRAM, "--help"], cwd=tmp_path, env=environment(tmp_path), stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.stderr == b""
