"""Checks everything that the pipeline needs, changes nothing, and reports each problem in one line.

What Dagster needs is looked at in :mod:`nami_amp_pipeline.dagster_support.health`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import certifi
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import Clock, micros, system_clock
from nami_amp_pipeline.delivery.destination import Probe
from nami_amp_pipeline.delivery.http_session import ca_bundle, proxy_of, without_password
from nami_amp_pipeline.delivery.transport import HttpTransport
from nami_amp_pipeline.destinations import destination_of
from nami_amp_pipeline.errors import FilesUnavailable, Misconfigured, NamiAmpError
from nami_amp_pipeline.operations.property_shares import events_without
from nami_amp_pipeline.operations.repair import lost_files
from nami_amp_pipeline.secrets import Cipher
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import Store, migrate, rotation, tables
from nami_amp_pipeline.state.integration_keys import sharing_a_key
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline.state.unreadable import unreadable
from nami_amp_pipeline.storage.cached_folder import CachedFolder, open_folder
from nami_amp_pipeline.storage.object_storage import probe
from nami_amp_pipeline.warehouse import Finding, open_warehouse

LEAST_FREE_BYTES = 200_000_000
"""Less than this in the data folder and the next segment may not fit."""

LITTLE_FREE_BYTES = 2_000_000_000
CLOCK_SECONDS = 5.0
"""A clock that is off by more than this gets a warning."""

REACH_SECONDS = 10.0

_DAY = 24 * 3_600 * 1_000_000

_PAIRS = 5
"""The most pairs of integrations with one key that are reported."""

Check = Callable[[Settings], Sequence[Finding]]


def examine(settings: Settings, checks: Sequence[tuple[str, Check]]) -> Iterator[Finding]:
    """Runs checks; a check that fails does not stop the others.

    Args:
        settings: what was set.
        checks: the name of each check, and the check.
    """
    for subject, check in checks:
        try:
            yield from check(settings)
        except NamiAmpError as error:
            yield Finding(subject, "error", str(error))
        except Exception as error:  # noqa: BLE001 - one check that fails must not hide what the others have to say
            first = next(iter(str(error).splitlines()), "")[:200]
            yield Finding(subject, "error", f"the check failed: {type(error).__name__}: {first}")


def check_warehouse(settings: Settings) -> list[Finding]:
    """Checks that the events table is reachable and has its columns and index."""
    return [replace(finding, subject=f"warehouse {finding.subject}") for finding in open_warehouse(settings).check()]


def check_rows(settings: Settings) -> list[Finding]:
    """Reports rows that runs could not read, except those that a check of the warehouse finds."""
    if not _up_to_date(settings):
        return []
    with _opened(settings) as store:
        return [
            Finding("warehouse rows", "warning", str(row), "load them again with a value that can be read")
            for row in unreadable(store)
            if row.reason in ("long_id", "odd_row")
        ]


def check_enrichments(settings: Settings) -> list[Finding]:
    """The enrichments that are declared, and events of the last day that go without a property."""
    findings = [
        Finding("enrichment", "ok", f"{each.name}: {each.timing.replace('_', ' ')}, on failure {each.on_failure}")
        for each in contract.ENRICHMENTS
    ]
    if _up_to_date(settings):
        with _opened(settings) as store:
            findings += [
                Finding(
                    "user properties",
                    "warning",
                    f"{app_id}: {_count(events, 'event')} of the last 24 hours went without {name}, whose SQL or "
                    "enrichment failed",
                    "the logs of the runs say why; what was sent stays without it",
                )
                for app_id, name, events in events_without(store, since=micros(system_clock) - _DAY)
            ]
    return findings


def check_store(settings: Settings) -> list[Finding]:
    """Whether the store can be reached and written."""
    missing = _no_file(settings)
    if missing is not None:
        return [_can_be_made("store", missing, "the first command creates it")]
    with _opened(settings) as store:
        version = store.schema_version()
        kind = "SQLite" if store.is_sqlite else "PostgreSQL"
        if version == 0:
            return [Finding("store", "ok", f"{kind}, empty: the first command creates its tables")]
        with store.begin() as tx:
            # Undone at once; what a read-only server, role or file would refuse.
            tx.execute(sa.insert(tables.leases).values(name="doctor", owner="", fence=0, expires_at=0))
            tx.rollback()
        return [Finding("store", "ok", f"{kind}, readable and writable")]


def check_migrations(settings: Settings) -> list[Finding]:
    """Whether the store's tables are those of this program."""
    if _no_file(settings) is not None:
        return []
    with _opened(settings) as store, store.reading() as tx:
        version = store.schema_version()
        if version in (0, tables.SCHEMA_VERSION):
            return [Finding("migrations", "ok", f"schema version {tables.SCHEMA_VERSION}")] if version else []
        if version > tables.SCHEMA_VERSION:
            return [
                Finding(
                    "migrations",
                    "error",
                    f"the store has schema version {version}, this program supports versions up to "
                    f"{tables.SCHEMA_VERSION} only",
                    "install the program version that wrote it",
                )
            ]
        behind = f"the store has schema version {version}, this program needs {tables.SCHEMA_VERSION}"
        if migrate.is_safe(tx, version) or not migrate.others_at_work(store, tx):
            return [Finding("migrations", "warning", behind, "nothing to do: the next command upgrades it")]
        return [Finding("migrations", "error", behind, "stop the pipeline, make a backup, and run 'nami-amp migrate'")]


def check_keys(settings: Settings) -> list[Finding]:
    """Whether the stored API keys can be decrypted."""
    if not _up_to_date(settings):
        return []
    cipher = Cipher(settings.encryption_key, settings.home / "encryption.key")
    with _opened(settings) as store, store.reading() as tx:
        total = tx.execute(sa.select(sa.func.count()).select_from(tables.integrations)).scalar_one()
        if not total:
            return [Finding("encryption key", "ok", "no API key is stored yet")]
        lost = rotation.unreadable(tx, cipher)
    if not lost:
        return [Finding("encryption key", "ok", f"decrypts the keys of {_count(total, 'integration')}")]
    where = str(cipher.key_file) if cipher.uses_file else "NAMI_AMP_ENCRYPTION_KEY"
    return [
        Finding(
            "encryption key",
            "error",
            f"{where} does not decrypt the keys of {', '.join(lost[:5])}{' and others' if len(lost) > 5 else ''}",
            "restore the key that encrypted them, or set the API keys again with 'nami-amp integrations update'",
        )
    ]


def check_shared_keys(settings: Settings) -> list[Finding]:
    """Whether integrations of one app have one API key and event types in common."""
    if not _up_to_date(settings):
        return []
    with _opened(settings) as store:
        pairs = sharing_a_key(
            all_integrations(store), Cipher(settings.encryption_key, settings.home / "encryption.key")
        )
    found = [
        Finding(
            "shared key",
            "warning",
            f"{integration.key} and {other.key} have the same API key and some of the same event types: Amplitude "
            "keeps only one copy of such an event",
            f"let them select different events, or remove one: 'nami-amp integrations update {other.key} --events …'",
        )
        for integration, other in pairs[:_PAIRS]
    ]
    if len(pairs) > _PAIRS:
        more = len(pairs) - _PAIRS
        found.append(Finding("shared key", "warning", f"{more:,} more pair{'s' * (more != 1)} of integrations do so"))
    return found


def check_files(settings: Settings) -> list[Finding]:
    """Whether every file is there that the store refers to."""
    if not _up_to_date(settings):
        return []
    folder = open_folder(settings, make=False)
    with _opened(settings) as store:
        lost = lost_files(store, folder)
    if not lost:
        return [Finding("data files", "ok", "every file that the store refers to exists")]
    some = ", ".join(lost_file.file for lost_file in lost[:_PAIRS]) + (", …" if len(lost) > _PAIRS else "")
    return [
        Finding(
            "data files",
            "error",
            f"{_count(len(lost), 'file')} missing in {folder.address}: {some}; this stops: {lost[0].stops}",
            "restore them, or let 'nami-amp repair --dry-run' show what a repair does",
        )
    ]


def check_folder(settings: Settings) -> list[Finding]:
    """Whether the data folder can be written and has room."""
    folder = settings.data_dir
    there = _nearest(folder)
    if there != folder.absolute():
        found = _can_be_made("data folder", folder, "the first run creates it")
    else:
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
            found = Finding("data folder", "ok", f"{folder} is writable")
        except OSError as error:
            found = Finding(
                "data folder",
                "error",
                f"{folder} is not writable: {error.strerror}",
                "make it writable for this user",
            )
    if found.level == "error":
        return [found]
    free = shutil.disk_usage(there).free
    room = f"{free / 1e9:,.1f} GB free in {there}"
    fix = "free disk space, or shorten the retention"
    if free < LEAST_FREE_BYTES:
        return [found, Finding("disk", "error", f"only {room}", fix)]
    return [
        found,
        Finding("disk", "warning", f"only {room}", fix) if free < LITTLE_FREE_BYTES else Finding("disk", "ok", room),
    ]


def check_object_storage(settings: Settings) -> list[Finding]:
    """Whether objects can be written, read, listed and removed, where there is an object storage."""
    folder = open_folder(settings, make=False)
    if not isinstance(folder, CachedFolder):
        return []
    try:
        took = probe(folder.storage)
    except FilesUnavailable as error:
        return [
            Finding(
                "object storage",
                "error",
                str(error),
                "check NAMI_AMP_DATA_URL, the credentials in the environment, and that they may write, read, list and "
                "delete",
            )
        ]
    return [Finding("object storage", "ok", f"{folder.address}: wrote, read, listed and removed in {took:.2f} s")]


def check_endpoints(settings: Settings, clock: Clock = system_clock) -> list[Finding]:
    """Checks that Amplitude is reachable, and compares this machine's clock with Amplitude's and the store's."""
    ahead: dict[str, float] = {}
    findings: list[Finding] = []
    if _up_to_date(settings):
        with _opened(settings) as store:
            endpoints = sorted(
                {
                    (integration.destination, integration.endpoint)
                    for integration in all_integrations(store)
                    if integration.enabled
                }
            )
            if not store.is_sqlite:
                ahead["the store's server"] = _ahead_of(store, clock)
        findings += _reach_all(endpoints, ahead, clock)
    else:
        findings.append(Finding("endpoints", "ok", "skipped: the state store does not exist yet"))
    return [*findings, _judge_clock(ahead, settings)]


def _reach_all(endpoints: Sequence[tuple[str, str]], ahead: dict[str, float], clock: Clock) -> list[Finding]:
    transport = HttpTransport(REACH_SECONDS)

    def ask(target: tuple[str, str]) -> tuple[Probe, float]:
        try:
            destination = destination_of(target[0])
        except Misconfigured as error:
            return Probe(False, str(error), kind="other"), clock()
        return destination.probe(target[1], None, transport), clock()

    if not endpoints:
        return [Finding("endpoints", "ok", "skipped: no integration is enabled")]
    findings = []
    with ThreadPoolExecutor(max_workers=8) as pool:
        for (_, endpoint), (found, now) in zip(endpoints, pool.map(ask, endpoints), strict=True):
            way = _way_to(endpoint)
            if not found.ok:
                findings.append(
                    Finding(
                        "endpoint",
                        "error",
                        f"{found.message}{way}",
                        "check name, proxy, firewall and certificates; events stay queued until it is reachable",
                    )
                )
                continue
            findings.append(Finding("endpoint", "ok", f"{found.message}{way}"))
            if found.date is not None and abs(now - found.date) > CLOCK_SECONDS:
                ahead[endpoint] = now - found.date
            elif found.date is not None:
                ahead.setdefault(endpoint, 0.0)  # it says whole seconds only
    transport.close()
    return findings


def _way_to(endpoint: str) -> str:
    """The proxy and certificates that the environment names."""
    proxy = proxy_of(endpoint)
    bundle = ca_bundle()
    through = f" through the proxy {without_password(proxy)}" if proxy else ""
    own = endpoint.startswith("https:") and bundle != certifi.where()
    return through + (f" with the certificates of {bundle}" if own else "")


def _ahead_of(store: Store, clock: Clock) -> float:
    """How far this machine's clock is ahead of the server's, in seconds."""
    with store.reading() as tx:
        before = clock()
        theirs = float(tx.execute(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))).scalar_one())
        return (before + clock()) / 2 - theirs


def _judge_clock(ahead: dict[str, float], settings: Settings) -> Finding:
    if not ahead:
        return Finding("clock", "ok", "skipped: no endpoint or server to compare the clock with")
    other, seconds = max(ahead.items(), key=lambda entry: abs(entry[1]))
    if abs(seconds) <= CLOCK_SECONDS:
        return Finding("clock", "ok", f"agrees with {' and '.join(sorted(ahead))}")
    # Another machine takes work over when a lease has run out by its own clock.
    level: Literal["error", "warning"] = "error" if abs(seconds) > settings.lease_seconds / 2 else "warning"
    direction = "ahead of" if seconds > 0 else "behind"
    return Finding(
        "clock", level, f"this machine is {abs(seconds):,.0f} s {direction} {other}", "synchronise it (NTP, chrony)"
    )


class _opened:  # noqa: N801 - a context manager, used like a function
    """The store, as it is: nothing is made or migrated."""

    def __init__(self, settings: Settings) -> None:
        self._store = Store(settings.state_url, system_clock, settings.lease_seconds)

    def __enter__(self) -> Store:
        return self._store

    def __exit__(self, *_error: object) -> None:
        self._store.close()


def _no_file(settings: Settings) -> Path | None:
    """The missing file of an SQLite store: opening the store would create it."""
    if not settings.state_url.startswith("sqlite:///"):
        return None
    path = Path(settings.state_url.removeprefix("sqlite:///"))
    return None if path.exists() else path


def _up_to_date(settings: Settings) -> bool:
    if _no_file(settings) is not None:
        return False
    try:
        with _opened(settings) as store:
            return store.schema_version() == tables.SCHEMA_VERSION
    except NamiAmpError:  # said once is enough
        return False


def _can_be_made(subject: str, path: Path, when: str) -> Finding:
    parent = _nearest(path.parent)
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        try:
            with tempfile.TemporaryFile(dir=parent):
                return Finding(subject, "ok", f"{path} does not exist yet: {when}")
        except OSError:
            pass
    return Finding(subject, "error", f"cannot create {path}: {parent} is not a writable folder", "choose another path")


def _nearest(path: Path) -> Path:
    """The path, or its nearest existing parent."""
    path = path.absolute()
    while True:
        try:
            path.stat()
            return path
        except OSError:
            path = path.parent


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


CHECKS: Sequence[tuple[str, Check]] = (
    ("warehouse", check_warehouse),
    ("store", check_store),
    ("warehouse rows", check_rows),
    ("migrations", check_migrations),
    ("enrichments", check_enrichments),
    ("encryption key", check_keys),
    ("shared key", check_shared_keys),
    ("object storage", check_object_storage),
    ("data files", check_files),
    ("data folder", check_folder),
    ("endpoints", check_endpoints),
)
"""All checks, in order of dependency."""
