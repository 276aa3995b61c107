"""``nami-amp doctor`` finds each part that is really broken, says what to do in one line, and changes nothing."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from dagster._daemon.types import DaemonHeartbeat
from dagster_shared.error import SerializableErrorInfo

from nami_amp_pipeline.dagster_support.health import check_dagster
from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations import doctor
from nami_amp_pipeline.sandbox import Sandbox, SandboxServer
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import Store, migrate, tables
from nami_amp_pipeline.state.migrate import create_or_upgrade
from nami_amp_pipeline.warehouse import Finding
from nami_amp_pipeline_tests.adversity.disk import NoMount, small_disk
from nami_amp_pipeline_tests.support.command_line import add, event, invoke, load_events
from nami_amp_pipeline_tests.support.old_stores import at_work, later, make_first_version, opened
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.scene import WARNINGS

__all__ = ["later"]

pytestmark = [pytest.mark.slow_cases, pytest.mark.filterwarnings(WARNINGS)]

NOWHERE = "http://127.0.0.1:9/2/httpapi"


def settings(folder: Path, **more: str) -> Settings:
    return Settings.load({"NAMI_AMP_HOME": str(folder / ".nami-amp"), **more}, folder / "no.env")


def only(findings: list[Finding] | Any, level: str) -> Finding:
    (found,) = (one for one in findings if one.level == level)
    assert isinstance(found, Finding)
    assert "\n" not in found.message
    return found


def everything(folder: Path, environment: dict[str, str] | None = None) -> tuple[int, dict[str, dict[str, Any]]]:
    done = invoke(folder, "doctor", "--json", settings=environment)
    answer = orjson.loads(done.stdout)
    assert "Traceback" not in done.output
    assert answer["ok"] == (done.exit_code == 0) == all(one["result"] != "problem" for one in answer["checks"])
    return done.exit_code, {one["check"]: one for one in answer["checks"]}


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox()) as server:
        yield server


@pytest.mark.slow
def test_nothing_is_wrong(tmp_path: Path, server: SandboxServer) -> None:
    load_events(tmp_path, event(1))
    add(tmp_path, server.endpoint)
    with dagster_instance(settings(tmp_path)):
        pass
    status, checks = everything(tmp_path)
    assert status == 0, checks
    assert {name: one["result"] for name, one in checks.items()} == {
        **dict.fromkeys(
            ("settings", "warehouse columns", "store", "migrations", "encryption key", "data files", "data folder"),
            "ok",
        ),
        **dict.fromkeys(("disk", "endpoint", "clock", "dagster"), "ok"),
        "daemon": "warning",
    }  # fmt: skip
    assert server.endpoint in checks["endpoint"]["message"]
    lines = invoke(tmp_path, "doctor").stdout.splitlines()
    assert len(lines) == len(checks)
    assert lines[0] == "ok       settings: all are valid"


def test_before_anything_was_done_nothing_is_made(tmp_path: Path) -> None:
    status, checks = everything(tmp_path)
    assert status == 1
    assert "nami-amp load" in checks["warehouse columns"]["message"]
    assert [one["result"] for one in checks.values()].count("problem") == 1
    assert checks["endpoints"]["message"].startswith("skipped")
    assert not list(tmp_path.iterdir())


def test_settings_that_cannot_be_used(tmp_path: Path) -> None:
    status, checks = everything(tmp_path, {"NAMI_AMP_BATCH_EVENTS": "many"})
    assert (status, checks["settings"]["result"]) == (1, "problem")
    assert "NAMI_AMP_BATCH_EVENTS" in checks["settings"]["message"]


def test_a_warehouse_without_a_column(tmp_path: Path) -> None:
    file = tmp_path / "w.duckdb"
    with duckdb.connect(file) as connection:
        connection.execute("CREATE TABLE nami_events (id VARCHAR, app_id VARCHAR)")
    found = only(doctor.check_warehouse(settings(tmp_path, NAMI_AMP_WAREHOUSE_URL=f"duckdb:///{file}")), "error")
    assert "has no column event_type" in found.message


def test_a_warehouse_without_an_index_and_one_that_is_not_there(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.fresh_database()
    with sa.create_engine(url).begin() as tx:
        tx.exec_driver_sql(
            "CREATE TABLE nami_events (id text, app_id text, event_type text, user_id text, created_date timestamptz, "
            "ingested_at timestamptz, payload jsonb)"
        )
    found = only(doctor.check_warehouse(settings(tmp_path, NAMI_AMP_WAREHOUSE_URL=url)), "warning")
    assert found.subject == "warehouse index"
    assert (found.fix or "").startswith("CREATE INDEX")
    _, checks = everything(tmp_path, {"NAMI_AMP_WAREHOUSE_URL": "postgresql://u:pass-word@127.0.0.1:9/d"})
    assert checks["warehouse connection"]["result"] == "problem"
    assert "pass-word" not in str(checks)


@pytest.mark.parametrize("broken", ["no server", "read only", "no rights", "garbage", "no folder"])
def test_a_store_that_cannot_be_used(tmp_path: Path, postgres: Postgres, broken: str) -> None:
    if broken == "no server":
        url, words = "postgresql://u:pass-word@127.0.0.1:9/d", "refused"
    elif broken == "garbage":
        (tmp_path / "state.db").write_bytes(b"this is no database" * 1_000)
        url, words = f"sqlite:///{tmp_path}/state.db", "not a database"
    elif broken == "no folder":
        (tmp_path / "file").write_text("")
        url, words = f"sqlite:///{tmp_path}/file/state.db", "cannot create"
    else:
        url, words = postgres.fresh_database(), "read-only" if broken == "read only" else "permission denied"
        with opened(url) as store:
            create_or_upgrade(store)
            with store.begin() as tx:
                tx.exec_driver_sql("DROP ROLE IF EXISTS nami_looker")
                tx.exec_driver_sql("CREATE ROLE nami_looker LOGIN PASSWORD 'pass-word'")
                tx.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO nami_looker")
                if broken == "read only":
                    tx.exec_driver_sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO nami_looker")
                    tx.exec_driver_sql("ALTER ROLE nami_looker SET default_transaction_read_only = on")
        url = sa.make_url(url).set(username="nami_looker", password="pass-word").render_as_string(hide_password=False)
    status, checks = everything(tmp_path, {"NAMI_AMP_STATE_URL": url})
    assert (status, checks["store"]["result"]) == (1, "problem")
    assert words in checks["store"]["message"]
    assert "pass-word" not in str(checks)
    if broken in ("read only", "no rights"):
        with postgres_as_owner(url, postgres) as store, store.begin() as tx:
            tx.exec_driver_sql("DROP OWNED BY nami_looker")
            tx.exec_driver_sql("DROP ROLE nami_looker")


@contextmanager
def postgres_as_owner(url: str, postgres: Postgres) -> Iterator[Store]:
    owner = sa.make_url(postgres.url).set(database=sa.make_url(url).database)
    with opened(owner.render_as_string(hide_password=False)) as store:
        yield store


def test_looking_at_the_store_leaves_nothing_in_it(state_url: str, tmp_path: Path) -> None:
    with opened(state_url) as store:
        create_or_upgrade(store)
        assert only(doctor.check_store(settings(tmp_path, NAMI_AMP_STATE_URL=state_url)), "ok")
        with store.begin() as tx:
            assert tx.execute(sa.select(tables.leases)).all() == []


def test_a_store_of_another_version(state_url: str, tmp_path: Path, later: Any) -> None:
    chosen = settings(tmp_path, NAMI_AMP_STATE_URL=state_url)
    make_first_version(state_url)
    assert "upgrades it" in (only(doctor.check_migrations(chosen), "warning").fix or "")
    with opened(state_url) as store:
        assert store.schema_version() == 1, "looking must not migrate"
        create_or_upgrade(store)
        assert only(doctor.check_migrations(chosen), "ok")
        later(safe=False)
        assert "upgrades it" in (only(doctor.check_migrations(chosen), "warning").fix or "")
        at_work(store, True)
        assert "nami-amp migrate" in (only(doctor.check_migrations(chosen), "error").fix or "")
        migrate.migrate(store, beside_others=True)
        with store.begin() as tx:
            tx.execute(sa.update(tables.schema_version).values(version=tables.SCHEMA_VERSION + 1))
        assert "this program supports" in only(doctor.check_migrations(chosen), "error").message


def test_a_lost_encryption_key(tmp_path: Path) -> None:
    add(tmp_path, NOWHERE)
    assert "1 integration" in only(doctor.check_keys(settings(tmp_path)), "ok").message
    wrong = Fernet.generate_key().decode()
    _, checks = everything(tmp_path, {"NAMI_AMP_ENCRYPTION_KEY": wrong})
    assert checks["encryption key"]["result"] == "problem"
    assert "radio/prod" in checks["encryption key"]["message"]
    assert wrong not in str(checks)
    (tmp_path / ".nami-amp" / "encryption.key").unlink()
    assert "radio/prod" in only(doctor.check_keys(settings(tmp_path)), "error").message
    assert not (tmp_path / ".nami-amp" / "encryption.key").exists()


def test_a_data_folder_that_cannot_be_made_or_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("/proc/nami-amp/data", str(tmp_path / "file" / "data"), "/proc/self"):
        found = only(doctor.check_folder(settings(tmp_path, NAMI_AMP_DATA_DIR=folder)), "error")
        assert found.subject == "data folder"
        assert found.fix


def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path / "disk", 64) as disk:
            found = only(doctor.check_folder(settings(tmp_path, NAMI_AMP_DATA_DIR=str(disk))), "error")
            assert (found.subject, found.message.split(" GB")[0]) == ("disk", "only 0.1")
            assert not list(disk.iterdir())
    except NoMount as error:
        pytest.skip(str(error))


@contextmanager
def listening(talk: Any) -> Iterator[int]:
    """A server of our own; ``talk`` is given each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                    with connection:
                        talk(connection)
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "server.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


def until_the_end(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


@pytest.mark.slow
def test_endpoints_that_cannot_be_reached(
    tmp_path: Path, server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "REACH_SECONDS", 3.0)
    context = self_signed(tmp_path)

    def tls(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True):
            pass

    with (
        listening(until_the_end) as silent,
        listening(lambda connection: connection.close()) as closed,
        listening(lambda connection: connection.sendall(b"SSH-2.0-x\r\n")) as other,
        listening(tls) as untrusted,
    ):
        wrong = {
            NOWHERE: "refused",
            f"http://127.0.0.1:{silent}/": "no answer in time",
            f"http://127.0.0.1:{closed}/": "",
            f"http://127.0.0.1:{other}/": "",
            f"https://localhost:{untrusted}/": "TLS failed: self-signed certificate",
        }
        for number, endpoint in enumerate([*wrong, server.endpoint]):
            add(tmp_path, endpoint, name=f"n{number}")
        found = list(doctor.check_endpoints(settings(tmp_path)))
    assert f"{server.endpoint} is reachable" in [one.message for one in found if one.level == "ok"]
    problems = [one.message for one in found if one.level == "error"]
    assert len(problems) == len(wrong)
    for endpoint, words in wrong.items():
        (line,) = (line for line in problems if endpoint in line)
        assert words in line


def test_a_clock_that_is_wrong(state_url: str, tmp_path: Path) -> None:
    def http(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(f"HTTP/1.1 405 No\r\nDate: {formatdate(usegmt=True)}\r\nContent-Length: 0\r\n\r\n".encode())

    environment = {"NAMI_AMP_STATE_URL": state_url}
    chosen = settings(tmp_path, **environment)
    with listening(http) as port:
        if state_url.startswith("sqlite"):  # on PostgreSQL the server's clock is enough
            added = invoke(
                tmp_path, "integrations", "add", "radio", "prod", "--endpoint", f"http://127.0.0.1:{port}/",
                "--allow-custom-endpoint", "--api-key-env", "KEY", settings=environment,
            )  # fmt: skip
            assert added.exit_code == 0, added.output
        else:
            with opened(state_url) as store:
                create_or_upgrade(store)
        for seconds, level, words in (
            (0.0, "ok", "agrees with"),
            (40.0, "warning", " s ahead of"),
            (-300.0, "error", " s behind"),
        ):
            # It is our clock that is off: the server's and the database's are what they are.
            found = doctor.check_endpoints(chosen, clock=lambda seconds=seconds: time.time() + seconds)  # type: ignore[misc]
            clock = found[-1]
            assert (clock.subject, clock.level) == ("clock", level), clock
            assert words in clock.message
            assert (clock.fix is None) == (level == "ok")


@pytest.mark.slow
def test_dagster_and_its_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    chosen = settings(tmp_path)
    assert "there has been no run yet" in only(check_dagster(chosen), "warning").message
    assert not (tmp_path / ".nami-amp").exists()
    with dagster_instance(chosen) as instance:
        kinds = list(instance.get_required_daemon_types())
        assert "has never run" in only(check_dagster(chosen), "warning").message

        def beat(seconds_ago: float, *errors: str) -> None:
            told = [SerializableErrorInfo(error, [], None) for error in errors]
            for kind in kinds:
                instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - seconds_ago, kind, "id", told))

        beat(7_200)
        stale = only(check_dagster(chosen), "error")
        assert "scheduler" in stale.message
        assert "dagster-daemon run" in (stale.fix or "")
        beat(1)
        assert [one.level for one in check_dagster(chosen)] == ["ok", "ok"]
        beat(1, "the code server\nis gone")
        assert {one.message for one in check_dagster(chosen) if one.level == "error"} == {
            f"{kind.lower()} says: the code server is gone" for kind in kinds
        }
    (tmp_path / ".nami-amp" / "dagster" / "dagster.yaml").write_text("storage: [nonsense")
    (found,) = doctor.examine(chosen, [("dagster", check_dagster)])
    assert found.level == "error"
    assert "cannot be used" in found.message
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "file"))
    assert "is not a folder" in only(check_dagster(chosen), "error").message


def test_a_check_that_breaks_hides_no_other(tmp_path: Path) -> None:
    def broken(_settings: Settings) -> list[Finding]:
        raise ZeroDivisionError("first line\nsecond line")

    def misconfigured(_settings: Settings) -> list[Finding]:
        raise Misconfigured("write something else")

    found = list(
        doctor.examine(
            settings(tmp_path),
            [("one", broken), ("two", misconfigured), ("three", lambda _: [Finding("three", "ok", "fine")])],
        )
    )
    assert [(one.subject, one.level) for one in found] == [("one", "error"), ("two", "error"), ("three", "ok")]
    assert found[0].message == "the check failed: ZeroDivisionError: first line"
