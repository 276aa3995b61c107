"""Files in a bucket, by the commands that people run: settings, doctor, runs of Dagster on two machines, a move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.repair import lost_files
from nami_amp_pipeline.sandbox import Sandbox, SandboxServer
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.storage import bucket as buckets
from nami_amp_pipeline_tests.support.bucket import ENCRYPTION_KEY, S3, Machines, bucket, moto_server
from nami_amp_pipeline_tests.support.command_line import event, invoke
from nami_amp_pipeline_tests.support.harness import Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.scene import WARNINGS

pytestmark = pytest.mark.filterwarnings(WARNINGS)


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    with moto_server() as port:
        yield port


@pytest.fixture
def s3(moto: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with bucket(moto, monkeypatch) as made:
        yield made


@pytest.mark.parametrize(
    "address",
    [
        "s3://key:secret@bucket/folder", "s3://bucket?access_key_id=x", "s3://", "s3:bucket", "bucket", "ftp://b/c",
        "https://bucket.s3.amazonaws.com/x", "gs://bucket#x", "s3://bucket:9000/x",
    ],
)  # fmt: skip
def test_an_address_with_credentials_or_of_nothing_known_is_refused_in_one_line(address: str) -> None:
    with pytest.raises(Misconfigured, match=r"NAMI_AMP_DATA_URL must be s3://.*without credentials$") as said:
        Settings.load({"NAMI_AMP_DATA_URL": address}, Path("none"))
    assert "secret" not in str(said.value)


@pytest.mark.parametrize("address", ["s3://bucket", "gs://bucket/folder/", "az://container/a/b"])
def test_addresses_of_three_clouds(address: str) -> None:
    assert Settings.load({"NAMI_AMP_DATA_URL": address}, Path("none")).data_url == address.rstrip("/")


def test_the_signature_in_an_address_of_azure_is_said_nowhere() -> None:
    place = "https://account.blob.core.windows.net/c/n"
    error = OSError(f"Error performing PUT {place}?sv=1&sig=topsecret in 3 ms - 403\nmore")
    assert buckets.cause(error) == f"OSError: Error performing PUT {place} in 3 ms - 403"


def checks(folder: Path, settings: dict[str, str]) -> dict[str, dict[str, Any]]:
    done = invoke(folder, "doctor", "--json", settings=settings)
    return {one["check"]: one for one in orjson.loads(done.stdout)["checks"]}


def test_doctor_tries_the_bucket_in_one_line_and_leaves_nothing(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_RETRIES", 0)
    found = checks(tmp_path, {"NAMI_AMP_DATA_URL": s3.address})["object storage"]
    assert found["result"] == "ok"
    assert found["message"].startswith(f"{s3.address}: wrote, read, listed and removed in ")
    assert s3.names() == set()
    assert {method for method, _ in s3.trouble.seen} >= {"PUT", "GET"}
    assert list(tmp_path.iterdir()) == []
    missing = checks(tmp_path, {"NAMI_AMP_DATA_URL": "s3://no-such-bucket/x"})["object storage"]
    assert missing["result"] == "problem"
    assert missing["message"].startswith("s3://no-such-bucket/x: probes/")
    s3.trouble.fail, s3.trouble.only = -1, ("GET",)
    unreadable = checks(tmp_path, {"NAMI_AMP_DATA_URL": s3.address})["object storage"]
    assert "cannot be read" in unreadable["message"]
    assert "\n" not in unreadable["message"]
    assert s3.names() == set()


def test_without_a_bucket_doctor_says_nothing_of_it(tmp_path: Path) -> None:
    assert "object storage" not in checks(tmp_path, {})


@pytest.mark.slow
def test_one_machine_captures_and_prepares_and_another_delivers(tmp_path: Path, s3: S3, postgres: Postgres) -> None:
    """Whole runs of Dagster, each with a home of its own; the second has nothing on its disk."""
    common = {
        "NAMI_AMP_STATE_URL": postgres.fresh_database(),
        "NAMI_AMP_WAREHOUSE_URL": f"duckdb:///{tmp_path / 'warehouse.duckdb'}",
        "NAMI_AMP_ENCRYPTION_KEY": ENCRYPTION_KEY,
        "NAMI_AMP_DATA_URL": s3.address,
        "NAMI_AMP_RUN_RETRY_SECONDS": "0",
        "NAMI_AMP_LATE_COMMIT_WINDOW_SECONDS": "0",
    }
    homes = [tmp_path / "one", tmp_path / "two"]
    for home in homes:
        home.mkdir()

    def command(home: Path, *arguments: str) -> Any:
        return invoke(home, *arguments, settings=common)

    lines = [event(number, f"u{number % 3}") for number in range(30)]
    (homes[0] / "events.ndjson").write_bytes(b"\n".join(lines) + b"\n")
    assert command(homes[0], "load", "events.ndjson", "--app", "radio").exit_code == 0
    sandbox = Sandbox()
    with SandboxServer(sandbox) as server:
        added = command(
            homes[0], "integrations", "add", "radio", "prod", "--endpoint", server.endpoint, "--allow-custom-endpoint",
            "--api-key-env", "KEY", "--start-from", "beginning",
        )  # fmt: skip
        assert added.exit_code == 0, added.output
        port = server.port
    first = command(homes[0], "run", "--json")  # nobody answers at the endpoint
    assert first.exit_code == 1, first.output
    assert orjson.loads(first.stdout)["integrations"][0]["pending"] == 30
    with SandboxServer(sandbox, port=port):
        second = command(homes[1], "run", "--json")
    assert second.exit_code == 0, second.output
    assert orjson.loads(second.stdout)["integrations"][0]["delivered"] == 30
    assert sandbox.audit.accepted_more_than_once.count == 0
    found = command(homes[1], "trace", "event-7")
    assert found.exit_code == 0, found.output
    assert "arrived" in found.output
    assert checks(homes[0], common)["data files"]["result"] == "ok"


@pytest.mark.slow
def test_a_folder_moves_into_a_bucket(tmp_path: Path, s3: S3) -> None:
    machines = Machines(tmp_path, s3, f"sqlite:///{tmp_path / 'state.db'}")
    before = machines.new(NAMI_AMP_DATA_URL="")
    one = before.add("app")
    machines.load("1", "2", user="a")
    before.tick()
    machines.load("3", user="a", minutes=1)
    before.clock.now += 3_600
    after: Pipeline = machines.new()
    assert len(lost_files(after.context.store, after.context.folder)) == 4
    folder = before.settings.data_dir
    for path in folder.rglob("*.*"):
        s3.client.upload_file(str(path), s3.bucket, f"nami/{path.relative_to(folder)}")
    assert not lost_files(after.context.store, after.context.folder)
    after.tick()
    assert [event["insert_id"] for event in after.sent(one)] == ["3"]
    machines.close()
