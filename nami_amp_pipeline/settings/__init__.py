"""Settings from the environment, or from a ``.env`` file in the working directory; writes their table for the docs.

Each field below is one setting: its type and bounds are what is checked, its description and unit are what the error
message and ``docs/settings.md`` say.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from dotenv import dotenv_values
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import Timetable, cron_fields, quiet_minutes, zone_of
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.settings.extensions import declare, mistakes_of_properties
from nami_amp_pipeline.settings.field_words import expected, extra
from nami_amp_pipeline.settings.kinds import (
    DataUrl,
    Days,
    Name,
    Natural,
    Positive,
    StoreUrl,
    WarehouseUrl,
    WebAddress,
    checked,
    contact,
    networks,
    setting,
)

PREFIX: Final = "NAMI_AMP_"

SECRETS: Final = (
    "WAREHOUSE_URL",
    "STATE_URL",
    "ENCRYPTION_KEY",
    "ALERT_WEBHOOK_URL",
    "CONTROL_CENTER_OIDC_CLIENT_SECRET",
)
"""Settings that may also be given as the content of a file, which ``NAMI_AMP_<NAME>_FILE`` names."""

NOT_SETTINGS: Final = ("DEBUG", "IMAGE", "TEST_POSTGRES_URL")
"""Other variables with the same prefix: of the command line, of the containers, of the tests."""

_LOG = logging.getLogger("nami_amp_pipeline.settings")


_POSTGRES: Final = "postgresql://USER@HOST/DATABASE"


def _in_home(address: str) -> Callable[[dict[str, Any]], str]:
    return lambda given: address.format(home=given.get("home", ".nami-amp"))


class Settings(BaseSettings):
    """Everything that can be set, with its default; each field is ``NAMI_AMP_<NAME>`` in the environment.

    :meth:`load` reads the environment; an object made directly takes arguments and defaults, and reads nothing.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", validate_default=False)

    home: Path = setting(Path(".nami-amp"), "folder for all data without a setting of its own", expected="a folder")
    warehouse_url: WarehouseUrl = setting(
        _in_home("duckdb:///{home}/warehouse.duckdb"),
        "where the events are: `duckdb:///PATH`, `parquet://FOLDER`, `postgresql://…`, `snowflake://…` or "
        "`bigquery://…` ([warehouses](warehouses.md))",
        expected=f"duckdb:///PATH, parquet://FOLDER, {_POSTGRES}, or one of docs/warehouses.md",
        shown="`duckdb:///<home>/warehouse.duckdb`",
        secret=True,
    )
    warehouse_schema: Name = setting(
        "", "schema of the events table", expected="the name of a schema", shown="the database's default"
    )
    warehouse_table: Name = setting("nami_events", "name of the events table", expected="the name of a table")
    state_url: StoreUrl = setting(
        _in_home("sqlite:///{home}/state.db"),
        "the state store (progress, integrations, dead letters): `sqlite:///PATH` or `postgresql://…`",
        expected=f"sqlite:///PATH or {_POSTGRES}",
        shown="`sqlite:///<home>/state.db`",
        secret=True,
    )
    data_dir: Path = setting(
        lambda given: given.get("home", Path(".nami-amp")) / "data",
        "folder of segments, snapshots, outboxes and receipts",
        expected="a folder",
        shown="`<home>/data`",
    )
    data_url: DataUrl = setting(
        "",
        "object storage in which all files of the data folder are kept, so that [several machines]"
        "(scaling.md#several-machines) work without a shared disk: `s3://BUCKET/FOLDER`, `gs://…` or `az://…`; "
        "credentials come from the cloud's own variables",
        expected="s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or az://CONTAINER/FOLDER, without credentials",
        shown="none: the data folder is all there is",
    )
    cache_max_bytes: Annotated[int, Field(ge=100_000_000, le=2**53)] = setting(
        10_000_000_000,
        "with `NAMI_AMP_DATA_URL`: most bytes of the copies in the data folder; the least recently used leave first",
        unit="bytes",
    )
    encryption_key: str | None = setting(
        None,
        "Fernet key of the stored API keys; several separated by commas while they are "
        "[rotated](state-store.md#the-encryption-key), the newest first",
        expected="a Fernet key",
        shown="a key file in `<home>`, made on first use",
        secret=True,
    )
    extensions: str = setting(
        "",
        "[enrichments](extend.md#walk-an-enrichment) and [destinations](extend.md#walk-a-destination) of modules that "
        "declare them by no entry point, as `module:name`, separated by commas",
        shown="none",
    )
    tick_minutes: Annotated[int, Field(ge=1, le=59)] = setting(
        5, "how often the schedule starts a micro-batch", unit="minutes"
    )
    tick_cron: Annotated[str, checked(cron_fields)] = setting(
        "",
        "when the schedule starts a micro-batch, instead of `NAMI_AMP_TICK_MINUTES`: a cron schedule such as "
        "`0 6-22 * * 1-5`",
        expected="a cron schedule of five fields in numbers, such as '0 6-22 * * 1-5'",
        shown="none",
    )
    tick_time_zone: Annotated[str, checked(zone_of)] = setting(
        "UTC",
        "time zone of `NAMI_AMP_TICK_CRON` and `NAMI_AMP_QUIET_HOURS`",
        expected="the name of a time zone such as Europe/Berlin",
    )
    quiet_hours: Annotated[str, checked(quiet_minutes)] = setting(
        "",
        "hours in which neither the schedule nor a sensor starts a micro-batch, such as `23:00-06:00`",
        expected="two times such as 23:00-06:00",
        shown="none",
    )
    shards: Annotated[int, Field(ge=1, le=256)] = setting(1, "how many runs share the apps of a micro-batch")
    sensor_seconds: Annotated[int, Field(ge=5, le=3_600)] = setting(
        30,
        "how often each sensor checks: for new integrations, due work, alerts; for lost runs every 10 seconds at least",
        unit="seconds",
    )
    early_tick_seconds: Natural = setting(
        lambda given: 0 if given.get("tick_cron") else 60 * given.get("tick_minutes", 5) + 60,
        "how long work may wait before a micro-batch starts early; 0: never",
        unit="seconds",
        shown="a tick and a minute; never with `NAMI_AMP_TICK_CRON`",
    )
    dagster_url: WebAddress = setting(
        "",
        "address of Dagster's UI, for links in alerts",
        expected="a URL such as https://dagster.example.com",
        shown="none",
    )
    control_center_url: WebAddress = setting(
        "",
        "address under which people open the [Control Center](control-center.md), where it is not this machine's own",
        expected="a URL such as https://amp.example.com",
        shown="none",
    )
    control_center_sign_in: Annotated[str, Field(pattern=r"^(none|password|proxy|oidc)$")] = setting(
        "none",
        "how people sign in to the Control Center: `none` (on this machine only), `password`, `proxy` or `oidc`",
        expected="none, password, proxy or oidc",
    )
    control_center_proxies: Annotated[str, checked(networks)] = setting(
        "",
        "addresses of the proxies that say who signed in, or from where a request comes; separated by commas",
        expected="addresses such as 10.0.0.7 or 10.0.0.0/28",
        shown="none",
    )
    control_center_proxy_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] = setting(
        "X-Forwarded-User", "the header in which the proxy names the person", expected="the name of a header"
    )
    control_center_oidc_issuer: WebAddress = setting(
        "",
        "OpenID Connect provider that people sign in with",
        expected="a URL such as https://login.example.com",
        shown="none",
    )
    control_center_oidc_client_id: str = setting("", "id of the Control Center at that provider", shown="none")
    control_center_oidc_client_secret: str | None = setting(
        None, "its secret at that provider", shown="none", secret=True
    )
    control_center_editors: str = setting(
        "",
        "people who may change something where a proxy or a provider says who they are, separated by commas; `*`: all",
        shown="nobody",
    )
    control_center_endpoints: str = setting(
        "",
        "endpoints besides Amplitude's that people may choose in the Control Center, separated by commas; of other "
        "destinations also `https://host/*` for all that begin so",
        shown="none",
    )
    control_center_contact: Annotated[str, checked(contact)] = setting(
        "",
        "where people on the free plan are led to by *Contact us* in the Control Center",
        expected="an address such as mailto:sales@example.com or https://example.com/plans",
        shown="none",
    )
    control_center_metrics_token: str | None = setting(
        None,
        "whoever shows it may read `/metrics` of the Control Center from other machines; at least 16 characters",
        expected="a text of at least 16 characters",
        shown="none: this machine only",
        secret=True,
        min_length=16,
    )
    alert_webhook_url: WebAddress | None = setting(
        None,
        "URL that [alerts](alerts.md) are posted to, in the format of Slack's incoming webhooks; a secret",
        expected="a URL that starts with https://",
        shown="none",
        secret=True,
    )
    alert_lag_seconds: Natural = setting(
        3_600, "alert when an event has been pending for longer than this; 0: never", unit="seconds"
    )
    alert_dead_letters: Natural = setting(
        100, "alert when an integration gets more new dead letters than this within the window"
    )
    alert_window_seconds: Positive = setting(3_600, "the window of `NAMI_AMP_ALERT_DEAD_LETTERS`", unit="seconds")
    alert_nothing_ingested_seconds: Natural = setting(
        86_400, "alert when an app has been silent for longer than this; 0: never", unit="seconds"
    )
    late_commit_window_seconds: Natural = setting(
        600, "how long after later rows a row may still become visible", unit="seconds"
    )
    ledger_retention_days: Days = setting(
        30.0,
        "how long a row that is loaded again is recognised; segments and snapshots are kept as long "
        "([operations](operations.md))",
        unit="days",
    )
    receipt_retention_days: Days = setting(90.0, "how long receipts and requests are kept", unit="days")
    dead_letter_retention_days: Days = setting(
        90.0, "how long dead letters are kept and can be sent again", unit="days"
    )
    dagster_retention_days: Days = setting(
        14.0,
        "how long this pipeline's Dagster runs are kept; those with a partition's latest materialization always are",
        unit="days",
    )
    unused_file_retention_days: Days = setting(
        1.0, "how long a file that nothing refers to stays on the disk", unit="days"
    )
    hold_days: Positive = setting(30, "how long `wait_for_login` holds an event", unit="days")
    segment_rows: Positive = setting(100_000, "rows per segment; memory grows with it", unit="rows")
    max_payload_bytes: Annotated[int, Field(ge=1_000, le=16_000_000)] = setting(
        1_000_000, "largest payload; an event with a larger one becomes a dead letter, `too_large`", unit="bytes"
    )
    max_rows_per_tick: Positive = setting(10_000_000, "most rows that one run captures, over all apps", unit="rows")
    batch_events: Annotated[int, Field(ge=1, le=contract.MAX_REQUEST_EVENTS)] = setting(
        1_000, "most events per request (Amplitude: 2,000)", unit="events"
    )
    batch_bytes: Annotated[int, Field(ge=10_000, le=contract.MAX_BATCH_REQUEST_BYTES)] = setting(
        950_000,
        "most bytes per request, before compression (Amplitude: 1,000,000; `/batch` 20,000,000)",
        unit="bytes",
    )
    gzip: bool = setting(False, "compress request bodies", expected="'true' or 'false'")
    max_lanes: Annotated[int, Field(ge=1, le=256)] = setting(
        16, "most requests under way per integration", unit="requests"
    )
    http_timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = setting(
        30.0, "timeout of a whole request, including its answer", unit="seconds"
    )
    run_retry_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = setting(
        120.0, "how long a run continues without progress", unit="seconds"
    )
    lease_seconds: Annotated[int, Field(ge=5, le=3_600)] = setting(
        120,
        "how long a process may be silent before another takes its work over; at least twice "
        "`NAMI_AMP_HTTP_TIMEOUT_SECONDS`",
        unit="seconds",
    )
    duckdb_memory: Annotated[str, Field(pattern=r"^[1-9][0-9]*(MB|GB|MiB|GiB)$")] = setting(
        "600MB",
        "memory limit of the compute engine (DuckDB); beyond it, DuckDB spills to the data folder",
        expected="a size such as 600MB or 2GB",
    )
    duckdb_threads: Natural = setting(0, "threads of the compute engine (DuckDB); 0: one per core", unit="threads")

    @model_validator(mode="after")
    def _lease_outlives_a_request(self) -> Settings:
        # A request is sent only if its lease holds until its timeout: with less nothing could ever be sent in time.
        if self.lease_seconds < 2 * self.http_timeout_seconds:
            raise ValueError("lease")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the arguments count: :meth:`load` decides what is read."""
        return (init_settings,)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, dotenv: Path = Path(".env")) -> Settings:
        """Reads the settings; what the environment says wins over ``.env``.

        Args:
            environ: variables by name; those of the process by default.
            dotenv: a file with more of them.

        Raises:
            Misconfigured: a value, or what another package declares, cannot be used; no message repeats a value.
        """
        if unusable := (*contract.UNUSABLE, *mistakes_of_properties()):
            raise Misconfigured(f"another package declares what cannot be used: {'; '.join(unusable)}")
        values = {name: text.strip() for name, text in _given(environ, dotenv).items() if name.startswith(PREFIX)}
        _warn_of_unknown(values)
        for name in SECRETS:
            values.update(_from_file(values, PREFIX + name))
        source = EnvSettingsSource(cls)
        source.env_vars = {name.lower(): text for name, text in values.items() if text}
        try:
            settings = cls(**source())
        except ValidationError as error:
            raise Misconfigured(_in_one_line(error)) from None
        if settings.extensions:
            declare(settings.extensions.split(","))
        return settings

    @property
    def timetable(self) -> Timetable:
        """When the schedule starts micro-batches."""
        return Timetable(self.tick_minutes, self.tick_cron, self.tick_time_zone, self.quiet_hours)

    def replace(self, **changes: Any) -> Settings:
        """The same settings with other values, which are not checked."""
        return self.model_copy(update=changes)


def variable(name: str, environ: Mapping[str, str] | None = None, dotenv: Path = Path(".env")) -> str:
    """A variable that is none of ours, such as ``DAGSTER_HOME``, read from where the settings are; empty if unset.

    Raises:
        Misconfigured: the file cannot be read.
    """
    return _given(environ, dotenv).get(name, "")


def contradictions(environ: Mapping[str, str] | None = None, dotenv: Path = Path(".env")) -> list[str]:
    """Names of variables that the environment and ``.env`` set to different values.

    The settings take those of the environment, Dagster's commands those of the file: they would have another home.
    """
    given = os.environ if environ is None else environ
    return sorted(
        name
        for name, text in _in_file(dotenv).items()
        if name.startswith((PREFIX, "DAGSTER_")) and given.get(name, text) != text
    )


def _given(environ: Mapping[str, str] | None, dotenv: Path) -> dict[str, str]:
    return _in_file(dotenv) | dict(os.environ if environ is None else environ)


def _in_file(dotenv: Path) -> dict[str, str]:
    try:
        found = dotenv_values(dotenv) if dotenv.is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Misconfigured(f"cannot read {dotenv}: {why}") from None
    return {name: text for name, text in found.items() if text is not None}


def _from_file(values: Mapping[str, str], variable: str) -> dict[str, str]:
    """The value of a variable whose content comes from a file, as containers receive secrets."""
    path = values.get(f"{variable}_FILE", "")
    if not path:
        return {}
    if values.get(variable):
        raise Misconfigured(f"set either {variable} or {variable}_FILE, not both")
    try:
        return {variable: Path(path).read_text(encoding="utf-8").strip()}
    except (OSError, ValueError) as error:
        # The path stays out of the message: somebody may have given the secret itself.
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Misconfigured(f"cannot read the file that {variable}_FILE names: {why}") from None


_warned: set[str] = set()


def _warn_of_unknown(values: Mapping[str, str]) -> None:
    """Warns once about each variable with our prefix that sets nothing, and suggests a similar name."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {f"{PREFIX}{name}_FILE" for name in SECRETS} | {PREFIX + name for name in NOT_SETTINGS}
    for name in sorted(values.keys() - known - _warned):
        if name.upper() in known:
            continue
        _warned.add(name)
        near = difflib.get_close_matches(name.upper(), sorted(known), 1, 0.8)
        if near:
            _LOG.warning("%s is not a setting; did you mean %s?", name, near[0])
        else:
            _LOG.warning("%s is not a setting; docs/settings.md lists all settings", name)


def _in_one_line(error: ValidationError) -> str:
    """The first error, without the value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if not first["loc"]:
        return (
            f"{PREFIX}LEASE_SECONDS must be at least twice {PREFIX}HTTP_TIMEOUT_SECONDS: a request is sent only while "
            "its lease outlives it"
        )
    field = str(first["loc"][0])
    return f"{PREFIX}{field.upper()} must be {expected(Settings.model_fields[field])}"


def settings_table() -> str:
    """All settings as a table in Markdown; ``docs/settings.md`` holds it."""
    lines = ["| variable | default | what it sets |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        shown = extra(field, "shown") or f"`{default.lower() if field.annotation is bool else default}`"
        unit = extra(field, "unit")
        means = f"{field.description} ({unit})" if unit in ("seconds", "minutes", "days") else field.description
        lines.append(f"| `{PREFIX}{name.upper()}` | {shown} | {means} |")
    return "\n".join(lines) + "\n"
