"""Settings: defaults, where they come from, and one clear line for each that cannot be used."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from nami_amp_pipeline import settings as module
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.settings import SECRETS, Settings, settings_table


@pytest.mark.contract("6.2")
def test_everything_lives_under_one_folder_without_any_setting() -> None:
    settings = Settings.load({}, Path("no-such-file"))
    assert settings.warehouse_url == "duckdb:///.nami-amp/warehouse.duckdb"
    assert settings.state_url == "sqlite:///.nami-amp/state.db"
    assert settings.data_dir == Path(".nami-amp/data")
    assert settings.encryption_key is None


def test_home_moves_all_that_has_no_address_of_its_own() -> None:
    settings = Settings.load({"NAMI_AMP_HOME": "/x", "NAMI_AMP_STATE_URL": "postgresql://u@h/d"}, Path("no-such-file"))
    assert settings.warehouse_url == "duckdb:////x/warehouse.duckdb"
    assert settings.state_url == "postgresql://u@h/d"
    assert settings.data_dir == Path("/x/data")


@pytest.mark.contract("6.2")
def test_the_environment_wins_over_dotenv(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("NAMI_AMP_BATCH_EVENTS=5\nNAMI_AMP_MAX_LANES=3\n")
    settings = Settings.load({"NAMI_AMP_BATCH_EVENTS": "7"}, dotenv)
    assert (settings.batch_events, settings.max_lanes) == (7, 3)


def test_an_empty_value_is_the_default() -> None:
    assert Settings.load({"NAMI_AMP_BATCH_EVENTS": " "}, Path("no-such-file")).batch_events == 1_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WAREHOUSE_URL", "mysql://u:pass-word@h/d"),
        ("WAREHOUSE_URL", "duckdb:///"),
        ("WAREHOUSE_SCHEMA", "a\0pass-word"),
        ("WAREHOUSE_TABLE", "a\0pass-word"),
        ("WAREHOUSE_URL", "postgresql://u:pass-word@h:port/d"),
        ("WAREHOUSE_URL", "postgresql://u:pass-word@[h/d"),
        ("STATE_URL", "postgres://u:pass#word"),
        ("STATE_URL", "mysql://u:pass-word@h/d"),
        ("DAGSTER_URL", "pass-word"),
        ("DAGSTER_URL", "ftp://pass-word"),
        ("ALERT_WEBHOOK_URL", "https://[pass-word"),
        ("MAX_PAYLOAD_BYTES", "999"),
        ("STATE_URL", "pass-word"),
        ("LATE_COMMIT_WINDOW_SECONDS", "-1"),
        ("LEDGER_RETENTION_DAYS", "0"),
        ("SEGMENT_ROWS", "many"),
        ("MAX_ROWS_PER_TICK", "1.5"),
        ("BATCH_EVENTS", "2001"),
        ("BATCH_BYTES", "20000001"),
        ("GZIP", "perhaps"),
        ("MAX_LANES", "257"),
        ("HTTP_TIMEOUT_SECONDS", "0"),
        ("HTTP_TIMEOUT_SECONDS", "nan"),
        ("RUN_RETRY_SECONDS", "inf"),
        ("HOLD_DAYS", "0"),
        ("LEASE_SECONDS", "4"),
        ("TICK_MINUTES", "60"),
        ("DUCKDB_MEMORY", "lots"),
        ("DUCKDB_THREADS", "-1"),
    ],
)
def test_a_setting_that_cannot_be_parsed_is_named_without_its_value(name: str, value: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Settings.load({f"NAMI_AMP_{name}": value}, Path("no-such-file"))
    message = str(caught.value)
    assert message.startswith(f"NAMI_AMP_{name} must be ")
    assert "pass-word" not in message
    assert "\n" not in message


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("1", True), ("off", False), ("FALSE", False)])
def test_yes_and_no_in_several_spellings(text: str, value: bool) -> None:
    assert Settings.load({"NAMI_AMP_GZIP": text}, Path("no-such-file")).gzip is value


def test_secrets_stand_in_no_repr() -> None:
    settings = Settings.load(
        {"NAMI_AMP_ENCRYPTION_KEY": "the-fernet-key", "NAMI_AMP_STATE_URL": "postgresql://u:pass-word@h/d"},
        Path("no-such-file"),
    )
    assert settings.encryption_key == "the-fernet-key"
    assert "the-fernet-key" not in repr(settings)
    assert "pass-word" not in repr(settings)


def test_secrets_may_be_files(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("postgresql://user:hush@host/store\n")
    settings = Settings.load({"NAMI_AMP_STATE_URL_FILE": str(file)})
    assert settings.state_url == "postgresql://user:hush@host/store"
    with pytest.raises(Misconfigured, match="NAMI_AMP_STATE_URL_FILE, not both"):
        Settings.load({"NAMI_AMP_STATE_URL_FILE": str(file), "NAMI_AMP_STATE_URL": "sqlite:///other"})
    with pytest.raises(Misconfigured, match="the file that NAMI_AMP_ENCRYPTION_KEY_FILE names: No such file"):
        Settings.load({"NAMI_AMP_ENCRYPTION_KEY_FILE": str(tmp_path / "none")})
    file.write_text("nonsense and hush")
    with pytest.raises(Misconfigured, match="NAMI_AMP_ALERT_WEBHOOK_URL must be") as error:
        Settings.load({"NAMI_AMP_ALERT_WEBHOOK_URL_FILE": str(file)})
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("text", ["hush-0123=", "/hush/0123", "h" * 5_000, "hush\0", "postgresql://u:hush@h/d"])
def test_a_secret_given_as_the_name_of_a_file_is_not_echoed(name: str, text: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Settings.load({f"NAMI_AMP_{name}_FILE": text}, Path("no-such-file"))
    message = str(caught.value)
    assert message.startswith(f"cannot read the file that NAMI_AMP_{name}_FILE names: ")
    assert "hush" not in message
    assert len(message) < 200


def test_a_file_of_settings_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_bytes(b"NAMI_AMP_ENCRYPTION_KEY=\xff\xfehush")
    with pytest.raises(Misconfigured, match=r"cannot read .*\.env: it is not UTF-8 text") as caught:
        Settings.load({}, dotenv)
    assert "hush" not in str(caught.value)


_PASSWORDS = ["pass-word", "p@ss", "p/ss", "p#ss", "p?ss", "a@b/c#d?e", "p%ss", "p:ss", "p[s]s", "p s", "12/34@5", "é@"]


@pytest.mark.parametrize("password", _PASSWORDS)
@pytest.mark.parametrize(
    "after", ["host/store", "host:5432/store", "10.0.0.1/store?sslmode=require", "[::1]:5432/store"]
)
@pytest.mark.parametrize("name", ["STATE_URL", "WAREHOUSE_URL"])
def test_passwords_may_have_any_letter(password: str, after: str, name: str) -> None:
    settings = Settings.load({f"NAMI_AMP_{name}": f"postgres://user:{password}@{after}"}, Path("no-such-file"))
    url = sa.engine.make_url(getattr(settings, name.lower()))
    plain = sa.engine.make_url(f"postgresql://user:x@{after}")
    assert (url.username, url.password) == ("user", password)
    assert (url.drivername, url.host, url.port, url.database, url.query) == (
        "postgresql", plain.host, plain.port, plain.database, plain.query
    )  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40ss@h/d",
        "postgresql://u:p@h/d?options=-csearch_path%3Da@b",
        "postgresql:///store?host=/var/run/postgresql",
        "postgresql://u:p@one:5432,two:5432/d?target_session_attrs=read-write",
        "postgresql://h/d",
    ],
)
def test_an_address_that_is_well_formed_stays_as_it_is(url: str) -> None:
    assert Settings.load({"NAMI_AMP_STATE_URL": url}, Path("no-such-file")).state_url == url


@pytest.mark.parametrize("name", ["events", 'a"b', "a b", "Événements", "select", "a.b", "a;DROP"])
def test_a_table_may_have_any_name_that_a_database_takes(name: str) -> None:
    given = {"NAMI_AMP_WAREHOUSE_TABLE": name, "NAMI_AMP_WAREHOUSE_SCHEMA": name}
    settings = Settings.load(given, Path("no-such-file"))
    assert (settings.warehouse_table, settings.warehouse_schema) == (name, name)


def test_a_lease_outlives_a_request() -> None:
    given = {"NAMI_AMP_LEASE_SECONDS": "59", "NAMI_AMP_HTTP_TIMEOUT_SECONDS": "29.6"}
    with pytest.raises(Misconfigured, match="NAMI_AMP_LEASE_SECONDS must be at least twice NAMI_AMP_HTTP_TIMEOUT"):
        Settings.load(given, Path("no-such-file"))
    Settings.load({**given, "NAMI_AMP_LEASE_SECONDS": "60"}, Path("no-such-file"))


def test_a_variable_that_sets_nothing_is_said_once_with_the_nearest_name(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_warned", set())
    given = {"NAMI_AMP_BATCH_EVENT": "hush", "NAMI_AMP_OF_MY_OWN": "hush", "NAMI_AMP_DEBUG": "1", "OTHER": "1"}
    with caplog.at_level(logging.WARNING, "nami_amp_pipeline"):
        assert Settings.load(given, Path("no-such-file")).batch_events == 1_000
        Settings.load(given, Path("no-such-file"))
    assert [record.getMessage() for record in caplog.records] == [
        "NAMI_AMP_BATCH_EVENT is not a setting; did you mean NAMI_AMP_BATCH_EVENTS?",
        "NAMI_AMP_OF_MY_OWN is not a setting; docs/settings.md lists all settings",
    ]


def test_settings_do_not_change_and_read_nothing_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "NAMI_AMP_BATCH_EVENTS", "7")
    settings = Settings()
    assert settings.batch_events == 1_000
    with pytest.raises(ValidationError, match="frozen"):
        settings.batch_events = 5
    assert settings.replace(batch_events=5).batch_events == 5
    assert Settings.load().batch_events == 7


def test_the_docs_have_every_setting_as_the_code_has_it() -> None:
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
    assert settings_table() in page, "python -m nami_amp_pipeline.settings"
    for name, field in Settings.model_fields.items():
        assert field.description, name
