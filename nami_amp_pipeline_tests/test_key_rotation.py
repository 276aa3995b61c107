"""Rotation of the encryption key: no stored key is lost, whenever it is killed and whoever else is at work."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.state import Store, backfills, integrations, rotation, tables
from nami_amp_pipeline.state.migrate import create_or_upgrade
from nami_amp_pipeline.state.rotation import Rotated, forget, rotate
from nami_amp_pipeline_tests.support.command_line import add, invoke, one_line

pytestmark = pytest.mark.slow_cases


def new_key() -> str:
    return Fernet.generate_key().decode()


@contextmanager
def opened(url: str) -> Iterator[Store]:
    store = Store(url, lambda: 0.0)
    try:
        create_or_upgrade(store)
        yield store
    finally:
        store.close()


def add_some(store: Store, cipher: Cipher, *names: str) -> None:
    for name in names:
        integrations.add(
            store,
            cipher,
            integrations.NewIntegration("radio", name, "us", Secret(f"api-{name}"), Secret(f"secret-{name}")),
        )


def clear(store: Store, cipher: Cipher) -> set[str]:
    """All stored keys in clear text."""
    return {
        cipher.decrypt(token).reveal()
        for one in integrations.all_integrations(store)
        for token in (one.api_key, one.secret_key)
        if token is not None
    }


def expected(*names: str) -> set[str]:
    return {f"{kind}-{name}" for name in names for kind in ("api", "secret")}


@pytest.mark.slow
def test_keys_of_the_environment(state_url: str, tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    with opened(state_url) as store:
        add_some(store, Cipher(old, tmp_path / "key"), "a", "b")
        both = Cipher(f" {new} , {old} ", tmp_path / "key")
        assert clear(store, both) == expected("a", "b")
        assert rotate(store, both) == Rotated(encrypted=4, current=0, older=1)
        assert rotate(store, both) == Rotated(encrypted=0, current=4, older=1)
        assert clear(store, Cipher(new, tmp_path / "key")) == expected("a", "b")
        with pytest.raises(Misconfigured, match="another key"):
            clear(store, Cipher(old, tmp_path / "key"))
    assert not (tmp_path / "key").exists()


def test_keys_of_the_file(state_url: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    with opened(state_url) as store:
        cipher = Cipher(None, file)
        add_some(store, cipher, "a")
        before = file.read_text()
        assert rotate(store, cipher) == Rotated(encrypted=2, current=0, older=1)
        newest, kept = file.read_text().split()
        assert kept == before
        add_some(store, cipher, "b")
        assert clear(store, Cipher(newest, file)) == expected("a", "b")
        assert forget(store, Cipher(None, file)) == 1
        assert file.read_text() == newest
        assert file.stat().st_mode & 0o777 == 0o600
        assert clear(store, Cipher(None, file)) == expected("a", "b")
        assert forget(store, Cipher(None, file)) == 0
    assert [left.name for left in tmp_path.iterdir() if left.name.startswith("key")] == ["key"]


def test_older_keys_stay_as_long_as_anything_needs_them(state_url: str, tmp_path: Path) -> None:
    cipher = Cipher(None, tmp_path / "key")
    with opened(state_url) as store:
        add_some(store, cipher, "a")
        cipher.add_key_to_file()
        with pytest.raises(Misconfigured, match="keys rotate"):
            forget(store, cipher)
        assert clear(store, cipher) == expected("a")


def test_a_key_that_is_not_given_changes_nothing(state_url: str, tmp_path: Path) -> None:
    first, second = new_key(), new_key()
    with opened(state_url) as store:
        add_some(store, Cipher(first, tmp_path / "key"), "a", "b")
        add_some(store, Cipher(second, tmp_path / "key"), "c")
        before = integrations.all_integrations(store)
        with pytest.raises(Misconfigured, match=r"the keys of radio/c were encrypted with a key that is missing"):
            rotate(store, Cipher(f"{new_key()},{first}", tmp_path / "key"))
        assert integrations.all_integrations(store) == before


def test_a_run_that_began_before_reads_on(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/state.db") as store:
        add_some(store, Cipher(None, tmp_path / "key"), "a")
        run = Cipher(None, tmp_path / "key")
        (read,) = integrations.all_integrations(store)
        rotate(store, Cipher(None, tmp_path / "key"))
        forget(store, Cipher(None, tmp_path / "key"))
        assert run.decrypt(read.api_key).reveal() == "api-a"


KILLED = """
import os, signal, sys
from pathlib import Path
from nami_amp_pipeline.secrets import Cipher
from nami_amp_pipeline.state import Store, rotation

def step(name):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

rotation.rotate(Store(sys.argv[1], lambda: 0.0), Cipher(None, Path(sys.argv[2])), step)
"""


@pytest.mark.slow
def test_killed_at_any_step_it_loses_nothing_and_goes_on(state_url: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    with opened(state_url) as store:
        add_some(store, Cipher(None, file), "a", "b")
        for step in ("rotate.key", "rotate.encrypt", "rotate.commit", "rotate.committed"):
            ended = subprocess.run(
                [sys.executable, "-c", KILLED, state_url, str(file), step], check=False, timeout=60, capture_output=True
            )
            assert ended.returncode == -signal.SIGKILL, ended.stderr
            assert clear(store, Cipher(None, file)) == expected("a", "b")
        # The first was killed before there was a key, the next two left one that the one after them used.
        assert len(file.read_text().split()) == 2
        assert rotate(store, Cipher(None, file)).encrypted == 4
        forget(store, Cipher(None, file))
        assert clear(store, Cipher(None, file)) == expected("a", "b")


@pytest.mark.slow
def test_who_adds_meanwhile_is_not_left_behind(state_url: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    names = [f"n{number}" for number in range(12)]
    failures: list[BaseException] = []
    with opened(state_url) as store, opened(state_url) as other:
        add_some(store, Cipher(None, file), "a")

        def adding() -> None:
            try:
                for name in names:
                    add_some(other, Cipher(None, file), name)
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        thread = threading.Thread(target=adding)
        thread.start()
        while thread.is_alive():
            rotate(store, Cipher(None, file))
            forget(store, Cipher(None, file))
        thread.join()
        assert not failures
        rotate(store, Cipher(None, file))
        forget(store, Cipher(None, file))
        assert clear(store, Cipher(None, file)) == expected("a", *names)


def test_on_postgresql_encrypting_waits_for_a_rotation(postgres: object, tmp_path: Path) -> None:
    url = postgres.fresh_database()  # type: ignore[attr-defined]
    with opened(url) as store, opened(url) as other:
        with store.begin() as tx:
            integrations.hold_keys(store, tx, alone=True)
            with other.begin() as waiting:
                waiting.exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
                with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
                    integrations.hold_keys(other, waiting)
                waiting.rollback()
        with other.begin() as tx, store.begin() as second:
            integrations.hold_keys(other, tx)
            integrations.hold_keys(store, second)  # those who encrypt do not wait for one another


def test_the_commands(tmp_path: Path) -> None:
    add(tmp_path, "http://127.0.0.1:9/2/httpapi")
    file = tmp_path / ".nami-amp" / "encryption.key"
    first = file.read_text()
    done = invoke(tmp_path, "keys", "rotate")
    assert done.exit_code == 0
    assert "1 stored keys were encrypted again" in done.stdout
    assert "keys forget" in done.stdout
    newest = file.read_text().split()[0]
    assert "--yes" in one_line(invoke(tmp_path, "keys", "forget").stderr)
    forgotten = invoke(tmp_path, "keys", "forget", "--yes")
    assert forgotten.stdout == "1 older keys removed.\n"
    assert file.read_text() == newest
    generated = invoke(tmp_path, "keys", "generate").stdout.strip()
    assert Fernet(generated)
    moved = invoke(tmp_path, "keys", "rotate", settings={"NAMI_AMP_ENCRYPTION_KEY": f"{generated},{newest}"})
    assert "You can now drop the old keys" in moved.stdout
    file.unlink()
    environment = {"NAMI_AMP_ENCRYPTION_KEY": generated}
    assert "cannot reach" in invoke(tmp_path, "integrations", "test", settings=environment).stderr
    refused = invoke(tmp_path, "keys", "forget", "--yes", settings=environment)
    assert (refused.exit_code, "remove the older keys there" in one_line(refused.stderr)) == (2, True)
    lost = invoke(tmp_path, "keys", "rotate", settings={"NAMI_AMP_ENCRYPTION_KEY": first})
    assert (lost.exit_code, "radio/prod" in one_line(lost.stderr)) == (2, True)
    for text in (done.output, forgotten.output, moved.output, refused.output, lost.output):
        assert not any(key in text for key in (first, newest, generated))


def test_every_column_that_is_encrypted_is_rotated() -> None:
    assert {column.name for column in tables.integrations.columns if column.name.endswith(("_key", "_salt"))} == set(
        rotation._COLUMNS
    )


def test_a_backfill_keeps_no_key_and_stops_no_rotation(state_url: str, tmp_path: Path) -> None:
    """Its row would hold a key that was replaced long ago, or one that nobody can set again."""
    old, new = new_key(), new_key()
    with opened(state_url) as store:
        add_some(store, Cipher(old, tmp_path / "key"), "a")
        (integration,) = integrations.all_integrations(store)
        with store.begin() as tx:
            number = backfills.add(
                store, tx, integration,
                since=0, until=1, by="created_date", patterns=None, resend=False, created_by="test",
            )  # fmt: skip
            row = tx.execute(
                sa.select(tables.integrations).where(tables.integrations.c.id == backfills.get(tx, number).channel_id)
            ).one()
        assert (row.api_key, row.secret_key, row.hash_salt) == ("", None, None)
        assert rotate(store, Cipher(f"{new},{old}", tmp_path / "key")) == Rotated(encrypted=2, current=0, older=1)
        newest = Cipher(new, tmp_path / "key")
        with store.begin() as tx:
            assert rotation.unreadable(tx, newest) == []
        assert rotate(store, newest) == Rotated(encrypted=0, current=2, older=0)
