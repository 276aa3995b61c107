"""A pipeline that delivers to a local Amplitude over HTTP, at a time that can be moved; others write there too."""

from __future__ import annotations

import base64
import gzip
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.operations.reconciliation import Day, Reconciliation
from nami_amp_pipeline.sample import generate
from nami_amp_pipeline.sandbox import Fault, Options, Project, Sandbox, SandboxServer
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state.integrations import Integration, all_integrations
from nami_amp_pipeline_tests.support.harness import Pipeline

API_KEY, SECRET_KEY = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
NOON = datetime(2026, 12, 1, 12, 20, tzinfo=UTC)


class Held:
    """See the module's docstring.

    Attributes:
        pipe: the pipeline.
        sandbox: the local Amplitude, whose clock is the pipeline's.
        endpoint: where it listens.
        integration: ``radio/main``, once it was added.
    """

    integration: Integration

    def __init__(self, pipe: Pipeline, sandbox: Sandbox, endpoint: str) -> None:
        self.pipe, self.sandbox, self.endpoint = pipe, sandbox, endpoint

    def load(self, users: int, seed: int = 7, app: str = "radio") -> None:
        """Puts sample events into the warehouse."""
        with duckdb.connect(str(self.pipe.warehouse)) as connection:
            connection.register("sample", pa.Table.from_batches(generate(users, apps=[app], seed=seed)))
            connection.execute("INSERT INTO nami_events BY NAME FROM sample")

    def add(self, **settings: Any) -> Integration:
        """Adds the integration ``radio/main``."""
        given = {
            "endpoint": self.endpoint,
            "allow_custom_endpoint": True,
            "api_key": Secret(API_KEY),
            "secret_key": Secret(SECRET_KEY),
            "user_id_kind": "nami_user_id",
        }
        self.integration = self.pipe.add("radio", **{**given, **settings})
        return self.integration

    def add_another(self, app: str, secret: str) -> Integration:
        """Adds an integration of another app to the same project."""
        return self.pipe.add(
            app,
            endpoint=self.endpoint,
            allow_custom_endpoint=True,
            api_key=Secret(API_KEY),
            secret_key=Secret(secret),
            user_id_kind="nami_user_id",
        )

    def some_user(self) -> str:
        """A user of the sample."""
        with duckdb.connect(str(self.pipe.warehouse)) as connection:
            ((user_id,),) = connection.execute("SELECT mode(user_id) FROM nami_events").fetchall()
        return str(user_id)

    def exported_nothing(self, folder: Path) -> Path:
        """A folder with an export without events."""
        folder.mkdir()
        (folder / "187520_2026-12-01_0#0.json.gz").write_bytes(gzip.compress(b""))
        return folder

    def exported(self, folder: Path, change: Callable[[dict[str, Any]], None] = lambda _record: None) -> Path:
        """Everything that is held as Amplitude exports it to S3, some records changed."""
        folder.mkdir()
        token = base64.b64encode(f"{API_KEY}:{SECRET_KEY}".encode()).decode()
        headers = {"Authorization": f"Basic {token}"}
        answer = self.sandbox.handle("GET", "/api/2/export", headers, b"", "start=20261101T00&end=20270201T00")
        assert answer.status == 200
        with zipfile.ZipFile(io.BytesIO(answer.read())) as archive:
            for name in archive.namelist():
                records = [orjson.loads(line) for line in gzip.decompress(archive.read(name)).splitlines()]
                for record in records:
                    change(record)
                lines = b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)
                (folder / name.rpartition("/")[2]).write_bytes(gzip.compress(lines))
        return folder

    def tick(self) -> None:
        """One micro-batch, over HTTP."""
        context = self.pipe.context
        pipeline.capture_apps(context)
        pipeline.snapshot_apps(context)
        pipeline.prepare_integrations(context, all_integrations(context.store))
        pipeline.deliver_integrations(context, all_integrations(context.store))

    def write_others(self, events: int, start: int = 0) -> None:
        """Somebody else writes events, some with insert ids and some without."""
        for first in range(start, start + events, 1_000):
            body = [
                {
                    "event_type": "screen_view",
                    "user_id": f"sdk-user-{number % 97}",
                    "event_properties": {"screen": f"s{number % 7}"},
                    **({"insert_id": f"sdk-{number}"} if number % 3 else {}),
                }
                for number in range(first, min(first + 1_000, start + events))
            ]
            answer = self.sandbox.handle(
                "POST",
                "/2/httpapi",
                {"Content-Type": "application/json"},
                orjson.dumps({"api_key": API_KEY, "events": body}),
            )
            assert answer.status == 200

    def damage(self, kind: Any, ids: Sequence[str], **more: Any) -> None:
        """What is held is lost, cut or doubled."""
        for insert_id in ids:
            assert self.sandbox.lose_held(Fault(kind, insert_id=insert_id, **more)) == 1

    def later(self, **time: float) -> None:
        """Time goes by."""
        self.pipe.clock.set(datetime.fromtimestamp(self.pipe.clock.now, UTC) + timedelta(**time))

    def reconcile(self, day: datetime = NOON, source: Path | None = None, *, now_too: bool = False) -> Day:
        """Compares one day."""
        work = Reconciliation(self.pipe.context, "radio/main", None if source is None else str(source))
        (found,) = work.compare(from_datetime(day), from_datetime(day), now_too=now_too)
        return found

    def repair(self, *days: Day) -> Any:
        """Sends what is missing again."""
        return Reconciliation(self.pipe.context, "radio/main").repair(days)

    def held(self) -> list[dict[str, Any]]:
        """All events that the local Amplitude holds of ours, one that is held twice twice."""
        with self.sandbox.locked:
            return [
                event
                for store in self.sandbox.stores()
                for batch in store.kept()
                for _, _, event in batch.held()
                if event["event_type"] != "screen_view"
            ]


@contextmanager
def held_by_amplitude(
    home: Path,
    open_at: datetime = NOON,
    *,
    ahead: float = 0.0,
    environ: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[Held]:
    """Sets it up in an empty folder.

    Args:
        home: the folder.
        open_at: what time it is.
        ahead: seconds that Amplitude's clock is ahead.
        environ: more settings.
        options: of the local Amplitude.
    """
    pipe = Pipeline(home, environ, open_at=open_at)
    project = Project(187_520, "shop", SECRET_KEY)
    sandbox = Sandbox(lambda: pipe.clock() + ahead, {API_KEY: project}, options=Options(throttle=False, **options))
    try:
        with SandboxServer(sandbox) as server:
            yield Held(pipe, sandbox, server.endpoint)
    finally:
        pipe.close()
