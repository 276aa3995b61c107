"""What ``nami-amp run`` did stands in Dagster's pages, which a fresh clone shows without any setting."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from nami_amp_pipeline.dagster_support.instance import dagster_home
from nami_amp_pipeline.runner import run_micro_batch
from nami_amp_pipeline_tests.support.scene import BAD_KEY, GOOD_KEY, WARNINGS, scene

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SECONDS = 60

_RUNS = """
query { runsOrError(limit: 10) { ... on Runs { results { runId status jobName tags { key value }
  runConfigYaml repositoryOrigin { repositoryName }
  eventConnection(afterCursor: null) { events { __typename ... on MessageEvent { message stepKey }
    ... on ErrorEvent { error { message stack } }
    ... on ExecutionStepFailureEvent { failureMetadata { description label } error { message stack } } } } } } } }
"""
_ASSETS = """
query { assetNodes { assetKey { path } groupName description kinds
  partitionKeys partitionStats { numMaterialized numPartitions numFailed }
  assetMaterializations(limit: 10) { partition runId label description metadataEntries { label description __typename
    ... on TextMetadataEntry { text } ... on MarkdownMetadataEntry { mdStr } ... on IntMetadataEntry { intValue }
    ... on TableMetadataEntry { table { records schema { columns { name } } } }
    ... on JsonMetadataEntry { jsonString } } } } }
"""
_JOB_RUNS = """
query { runsOrError(filter: {pipelineName: "micro_batch",
  tags: [{key: ".dagster/repository", value: "__repository__@nami_amp_pipeline"}]}) { ... on Runs { count } } }
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone as ``git clone`` leaves it."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("dagster.yaml", "workspace.yaml", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    (folder / "nami_amp_pipeline").symlink_to(ROOT / "nami_amp_pipeline")
    return folder


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def started(folder: Path, *command: str, **more: str) -> Iterator[str]:
    """A server of Dagster's in a process group of its own, which is ended whole; gives its address."""
    port = free_port()
    environ = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder), **more}
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:], "-h", "127.0.0.1", "-p", str(port)],
            cwd=folder,
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            until = time.monotonic() + SECONDS
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                try:
                    if requests.get(f"{url}/server_info", timeout=5).ok:
                        break
                except requests.ConnectionError:
                    time.sleep(0.2)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(15)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started and did not end


def ask(url: str, query: str) -> Mapping[str, Any]:
    answer = requests.post(f"{url}/graphql", json={"query": query}, timeout=SECONDS)
    found: dict[str, Any] = answer.json()
    assert "errors" not in found, found
    data: dict[str, Any] = found["data"]
    return data


def test_pages_show_the_run_and_its_materializations_but_no_key(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with scene(clone / ".nami-amp") as stage:
        stage.load(apps=("radio", "fit"))
        stage.add("radio", key=GOOD_KEY)
        stage.add("fit", key=BAD_KEY)
        report = run_micro_batch(stage.settings)
        home = dagster_home(stage.settings)
    with started(clone, "dagster-webserver", "-w", "workspace.yaml", DAGSTER_HOME=str(home)) as url:
        runs, assets, of_job = ask(url, _RUNS), ask(url, _ASSETS), ask(url, _JOB_RUNS)
    (run,) = runs["runsOrError"]["results"]
    assert (run["runId"], run["status"], run["jobName"]) == (report.run_id, "FAILURE", "micro_batch")
    failures = [
        event for event in run["eventConnection"]["events"] if event["__typename"] == "ExecutionStepFailureEvent"
    ]
    assert [event["stepKey"] for event in failures] == ["upload"]
    assert "fit|main: " in failures[0]["failureMetadata"]["description"]
    assert of_job["runsOrError"]["count"] == 1
    nodes = {node["assetKey"]["path"][0]: node for node in assets["assetNodes"]}
    (delivered,) = nodes["amplitude_deliveries"]["assetMaterializations"]
    assert (delivered["partition"], delivered["runId"]) == ("radio|main", report.run_id)
    assert {one["partition"] for one in nodes["nami_events"]["assetMaterializations"]} == {"radio", "fit"}
    assert nodes["nami_events"]["partitionStats"]["numMaterialized"] == 2
    assert set(nodes["amplitude_events"]["partitionKeys"]) == {"radio|main", "fit|main"}
    answers = json.dumps([runs, assets, of_job])
    assert GOOD_KEY not in answers
    assert BAD_KEY not in answers


def test_fresh_clone_starts_and_shares_the_history(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with scene(clone / ".nami-amp") as stage:
        report = run_micro_batch(stage.settings)
    with started(clone, "dagster", "dev") as url:
        found = [run["runId"] for run in ask(url, _RUNS)["runsOrError"]["results"]]
    assert report.run_id in found
