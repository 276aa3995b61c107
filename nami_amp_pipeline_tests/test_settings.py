"""Settings: defaults, where they come from, and one clear line for each that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.settings import Settings


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
        ("WAREHOUSE_SCHEMA", "a\0b"),
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
    with pytest.raises(Misconfigured, match=r"NAMI_AMP_ENCRYPTION_KEY_FILE: cannot read .*: No such file"):
        Settings.load({"NAMI_AMP_ENCRYPTION_KEY_FILE": str(tmp_path / "none")})
    file.write_text("nonsense and hush")
    with pytest.raises(Misconfigured, match="NAMI_AMP_ALERT_WEBHOOK_URL must be") as error:
        Settings.load({"NAMI_AMP_ALERT_WEBHOOK_URL_FILE": str(file)})
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("name", ["raw-events", "a b", 'a"b', "Événements", "select"])
def test_any_name_is_taken_as_that_of_a_schema_or_table(name: str) -> None:
    settings = Settings.load({"NAMI_AMP_WAREHOUSE_SCHEMA": name, "NAMI_AMP_WAREHOUSE_TABLE": name})
    assert (settings.warehouse_schema, settings.warehouse_table) == (name, name)


def test_postgres_is_another_word_for_postgresql() -> None:
    settings = Settings.load(
        {"NAMI_AMP_WAREHOUSE_URL": "postgres://u@h/a", "NAMI_AMP_STATE_URL": "postgres://u@h/b?sslmode=require"}
    )
    assert settings.warehouse_url == "postgresql://u@h/a"
    assert settings.state_url == "postgresql://u@h/b?sslmode=require"
