"""Settings from the environment, or from a ``.env`` file beside the working directory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values

from nami_amp_pipeline import contract
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.warehouse import schemes

T = TypeVar("T")

_DAYS = "a number of days over 0, at most 36500"

SECRETS = ("WAREHOUSE_URL", "STATE_URL", "ENCRYPTION_KEY", "ALERT_WEBHOOK_URL")
"""Settings that may also be given as the content of a file, which ``NAMI_AMP_<NAME>_FILE`` names."""


@dataclass(frozen=True)
class Settings:
    """Everything that can be set, with its default; each field is ``NAMI_AMP_<NAME>`` in the environment.

    Attributes:
        home: folder of everything that has no address of its own.
        warehouse_url: ``duckdb:///path`` or ``postgresql://…``; read only.
        warehouse_schema: schema of the events table.
        warehouse_table: name of the events table.
        state_url: ``sqlite:///path`` or ``postgresql://…``.
        data_dir: folder of segments, outboxes and receipts.
        encryption_key: Fernet key for the API keys; without it one is made in ``home`` (mode 0600).
        late_commit_window_seconds: how long after later rows a row may still become visible.
        ledger_retention_days: how long a row that is loaded again is recognised; segments live as long.
        receipt_retention_days: how long receipts and requests tell how an event ended.
        dead_letter_retention_days: how long a dead letter can be looked at and sent again.
        dagster_retention_days: how long a run stays in Dagster's history, if it is not a partition's newest.
        unused_file_retention_days: how long a file that nothing refers to stays on the disk.
        segment_rows: rows of one segment; memory grows with it, not with the backlog.
        max_payload_bytes: a larger payload is not read further; its event becomes a dead letter, ``too_large``.
        max_rows_per_tick: rows captured by one run at most, over all apps.
        batch_events: events of one request at most.
        batch_bytes: bytes of one request at most, before compression.
        gzip: whether request bodies are compressed.
        max_lanes: requests that one integration has under way at most.
        http_timeout_seconds: for a whole request, answer included.
        run_retry_seconds: how long a run goes on trying what is not delivered yet.
        hold_days: how long ``wait_for_login`` holds an event.
        lease_seconds: how long a process may be silent before another takes its partitions over.
        tick_minutes: how often the schedule starts a micro-batch.
        sensor_seconds: how often each sensor looks.
        early_tick_seconds: how old work may become before a micro-batch starts early, a tick and a minute where it is
            not set; 0 never.
        dagster_url: where Dagster's pages are, for links in alerts.
        alert_webhook_url: where alerts are posted in the format of Slack's incoming webhooks; the address is a secret.
        alert_lag_seconds: how long an event may wait before that is an alert; 0 never.
        alert_dead_letters: how many new dead letters of an integration within the window are still no alert.
        alert_window_seconds: that window.
        alert_nothing_ingested_seconds: how long an app may be silent before that is an alert; 0 for ever.
        duckdb_memory: memory limit of the compute engine.
        duckdb_threads: threads of the compute engine; 0 is one per core.
    """

    home: Path = Path(".nami-amp")
    warehouse_url: str = field(default="", repr=False)
    warehouse_schema: str = ""
    warehouse_table: str = "nami_events"
    state_url: str = field(default="", repr=False)
    data_dir: Path = Path()
    encryption_key: str | None = field(default=None, repr=False)
    late_commit_window_seconds: int = 600
    ledger_retention_days: float = 30
    receipt_retention_days: float = 90
    dead_letter_retention_days: float = 90
    dagster_retention_days: float = 14
    unused_file_retention_days: float = 1
    segment_rows: int = 100_000
    max_payload_bytes: int = 1_000_000
    max_rows_per_tick: int = 10_000_000
    batch_events: int = 1_000
    batch_bytes: int = 950_000
    gzip: bool = False
    max_lanes: int = 16
    http_timeout_seconds: float = 30.0
    run_retry_seconds: float = 120.0
    hold_days: int = 30
    lease_seconds: int = 120
    tick_minutes: int = 5
    sensor_seconds: int = 30
    early_tick_seconds: int = 360
    dagster_url: str = ""
    alert_webhook_url: str | None = field(default=None, repr=False)
    alert_lag_seconds: int = 3_600
    alert_dead_letters: int = 100
    alert_window_seconds: int = 3_600
    alert_nothing_ingested_seconds: int = 86_400
    duckdb_memory: str = "600MB"
    duckdb_threads: int = 0

    @staticmethod
    def load(environ: Mapping[str, str] | None = None, dotenv: Path = Path(".env")) -> Settings:
        """Reads the settings; what the environment says wins over ``.env``.

        Raises:
            Misconfigured: a value cannot be parsed; the message names the variable, never a secret value.
        """
        values = {k: v for k, v in dotenv_values(dotenv).items() if v is not None} if dotenv.is_file() else {}
        values.update(os.environ if environ is None else environ)
        for name in SECRETS:
            values.update(_from_file(values, f"NAMI_AMP_{name}"))

        def read(name: str, parse: Callable[[str], T], default: T, expected: str) -> T:
            text = values.get(f"NAMI_AMP_{name}", "").strip()
            if not text:
                return default
            try:
                return parse(text)
            except ValueError:
                raise Misconfigured(f"NAMI_AMP_{name} must be {expected}") from None

        base = Settings()
        home = read("HOME", Path, base.home, "a folder")
        tick_minutes = read("TICK_MINUTES", _whole(1, 59), base.tick_minutes, "a whole number from 1 to 59")
        return Settings(
            home=home,
            warehouse_url=read("WAREHOUSE_URL", _url(*schemes()), f"duckdb:///{home}/warehouse.duckdb",
                               "duckdb:///PATH or postgresql://USER@HOST/DATABASE"),
            warehouse_schema=read("WAREHOUSE_SCHEMA", _identifier, "", "the name of a schema"),
            warehouse_table=read("WAREHOUSE_TABLE", _identifier, base.warehouse_table, "the name of a table"),
            state_url=read("STATE_URL", _url("sqlite", "postgresql", "postgres"), f"sqlite:///{home}/state.db",
                           "sqlite:///PATH or postgresql://USER@HOST/DATABASE"),
            data_dir=read("DATA_DIR", Path, home / "data", "a folder"),
            encryption_key=read("ENCRYPTION_KEY", str, None, "a Fernet key"),
            late_commit_window_seconds=read("LATE_COMMIT_WINDOW_SECONDS", _whole(0), base.late_commit_window_seconds,
                                            "a whole number of seconds"),
            ledger_retention_days=read("LEDGER_RETENTION_DAYS", _days, base.ledger_retention_days, _DAYS),
            receipt_retention_days=read("RECEIPT_RETENTION_DAYS", _days, base.receipt_retention_days, _DAYS),
            dead_letter_retention_days=read("DEAD_LETTER_RETENTION_DAYS", _days, base.dead_letter_retention_days,
                                            _DAYS),
            dagster_retention_days=read("DAGSTER_RETENTION_DAYS", _days, base.dagster_retention_days, _DAYS),
            unused_file_retention_days=read("UNUSED_FILE_RETENTION_DAYS", _days, base.unused_file_retention_days,
                                            _DAYS),
            segment_rows=read("SEGMENT_ROWS", _whole(1), base.segment_rows, "a whole number of rows"),
            max_payload_bytes=read("MAX_PAYLOAD_BYTES", _whole(1_000, 16_000_000), base.max_payload_bytes,
                                   "a whole number from 1000 to 16000000"),
            max_rows_per_tick=read("MAX_ROWS_PER_TICK", _whole(1), base.max_rows_per_tick, "a whole number of rows"),
            batch_events=read("BATCH_EVENTS", _whole(1, contract.MAX_REQUEST_EVENTS), base.batch_events,
                              f"a whole number from 1 to {contract.MAX_REQUEST_EVENTS}"),
            batch_bytes=read("BATCH_BYTES", _whole(10_000, contract.MAX_BATCH_REQUEST_BYTES), base.batch_bytes,
                             f"a whole number from 10000 to {contract.MAX_BATCH_REQUEST_BYTES}"),
            gzip=read("GZIP", _boolean, base.gzip, "'true' or 'false'"),
            max_lanes=read("MAX_LANES", _whole(1, 256), base.max_lanes, "a whole number from 1 to 256"),
            http_timeout_seconds=read("HTTP_TIMEOUT_SECONDS", _positive, base.http_timeout_seconds,
                                      "a number of seconds over 0"),
            run_retry_seconds=read("RUN_RETRY_SECONDS", _not_negative, base.run_retry_seconds, "a number of seconds"),
            hold_days=read("HOLD_DAYS", _whole(1), base.hold_days, "a whole number of days"),
            lease_seconds=read("LEASE_SECONDS", _whole(5), base.lease_seconds, "a whole number of seconds, 5 or more"),
            tick_minutes=tick_minutes,
            sensor_seconds=read("SENSOR_SECONDS", _whole(5, 3_600), base.sensor_seconds,
                                "a whole number of seconds from 5 to 3600"),
            early_tick_seconds=read("EARLY_TICK_SECONDS", _whole(0), 60 * tick_minutes + 60,
                                    "a whole number of seconds"),
            dagster_url=read("DAGSTER_URL", _web_address, "", "a URL such as https://dagster.example.com"),
            alert_webhook_url=read("ALERT_WEBHOOK_URL", _web_address, None, "a URL that starts with https://"),
            alert_lag_seconds=read("ALERT_LAG_SECONDS", _whole(0), base.alert_lag_seconds, "a whole number of seconds"),
            alert_dead_letters=read("ALERT_DEAD_LETTERS", _whole(0), base.alert_dead_letters, "a whole number"),
            alert_window_seconds=read("ALERT_WINDOW_SECONDS", _whole(1), base.alert_window_seconds,
                                      "a whole number of seconds"),
            alert_nothing_ingested_seconds=read("ALERT_NOTHING_INGESTED_SECONDS", _whole(0),
                                                base.alert_nothing_ingested_seconds, "a whole number of seconds"),
            duckdb_memory=read("DUCKDB_MEMORY", _memory, base.duckdb_memory, "a size such as 600MB or 2GB"),
            duckdb_threads=read("DUCKDB_THREADS", _whole(0), base.duckdb_threads, "a whole number"),
        )  # fmt: skip


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        scheme, sep, rest = text.partition("://")
        if not sep or scheme not in schemes or not rest.strip("/"):
            raise ValueError(text)
        return f"postgresql://{rest}" if scheme == "postgres" else text

    return parse


def _from_file(values: Mapping[str, str], variable: str) -> dict[str, str]:
    """The value of a variable that is given by a file, as containers are given their secrets."""
    path = values.get(f"{variable}_FILE", "").strip()
    if not path:
        return {}
    if values.get(variable, "").strip():
        raise Misconfigured(f"set either {variable} or {variable}_FILE, not both")
    try:
        return {variable: Path(path).read_text().strip()}
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise Misconfigured(f"{variable}_FILE: cannot read {path}: {why}") from None


def _web_address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or (parts.port or 1) < 0:
        raise ValueError(text)
    return text.rstrip("/")


def _identifier(text: str) -> str:
    if "\0" in text:  # any other name is quoted
        raise ValueError(text)
    return text


def _memory(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]*(MB|GB|MiB|GiB)", text):
        raise ValueError(text)
    return text


def _whole(low: int, high: int = 2**53) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError(text)
        return number

    return parse


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number


def _days(text: str) -> float:
    number = float(text)
    if not 0 < number <= 36_500:
        raise ValueError(text)
    return number


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError(text)
    return number


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(text)
