"""State stores of an earlier version, and a revision of a later one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nami_amp_pipeline.state import Store, migrate, tables

FIRST = Path(__file__).parents[1] / "schema_version_1"
NEXT = '''"""A revision of a later day."""

import sqlalchemy as sa
from alembic import op

revision = "{version:04d}"
down_revision = "{before:04d}"

safe = {safe}


def upgrade() -> None:
    with op.batch_alter_table("integrations", recreate="auto") as batch:
        batch.alter_column("last_error", new_column_name="newest_error")
        batch.alter_column("prepared_through", server_default=None, existing_type=sa.Integer())
    {more}
'''


@contextmanager
def opened(url: str) -> Iterator[Store]:
    store = Store(url, lambda: 1.0)  # by then the leases that a test fills in are over
    try:
        yield store
    finally:
        store.close()


def make_first_version(url: str) -> None:
    """What the program made while the schema had version 1, before there were migrations."""
    with opened(url) as store, store.begin() as tx:
        for statement in (FIRST / f"{store.engine.dialect.name}.sql").read_text().split(";\n\n"):
            tx.exec_driver_sql(statement)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Gives the program a revision of a later day; returns a function that writes it."""
    before = tables.SCHEMA_VERSION
    scripts = tmp_path / "100% scripts"
    shutil.copytree(migrate.SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(migrate, "SCRIPTS", scripts)

    def write(*, safe: bool, more: str = "pass") -> int:
        text = NEXT.format(version=before + 1, before=before, safe=safe, more=more)
        (scripts / "versions" / f"{before + 1:04d}_later.py").write_text(text)
        monkeypatch.setattr(tables, "SCHEMA_VERSION", before + 1)
        return before + 1

    return write


def at_work(store: Store, is_at_work: bool) -> None:
    """Has a process of another machine hold a lease."""
    with store.begin() as tx:
        row = {"name": "app:radio", "owner": "elsewhere", "fence": 1, "expires_at": 2**60 if is_at_work else 0}
        store.upsert(tx, tables.leases, [row], ["name"], update=["owner", "expires_at"])
