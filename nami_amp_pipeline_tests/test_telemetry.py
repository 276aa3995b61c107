"""The figures for OpenTelemetry: what an OTLP receiver gets is what ``/metrics`` says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from nami_amp_pipeline.errors import StoreUnavailable
from nami_amp_pipeline.operations import telemetry
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.integrations import NewIntegration
from nami_amp_pipeline.operations.metrics import families
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.testing.receiver import Answer, Posted, Receiver, wait_until
from nami_amp_pipeline_tests.support.command_line import invoke, one_line

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
GO_ON = ("nami_amp_collected_timestamp_seconds", "nami_amp_behind_seconds")
TOKEN = "otlp-token-5b7c9d1e3f"


class Collector:
    """Takes what is exported, and keeps it."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.posted: list[Posted] = []
        self.came = threading.Event()
        self._receiver = Receiver(self._take)
        self.url, self.close = self._receiver.url, self._receiver.close

    def _take(self, posted: Posted) -> Answer:
        self.posted.append(posted)
        return self.answer

    def read(self, number: int = -1) -> tuple[Samples, dict[str, str]]:
        """The samples of a request, and the attributes of its resource."""
        asked = ExportMetricsServiceRequest.FromString(self.posted[number].body)
        (resource,) = asked.resource_metrics
        found: Samples = {}
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                assert metric.WhichOneof("data") == "gauge"
                for point in metric.gauge.data_points:
                    labels = frozenset((each.key, each.value.string_value) for each in point.attributes)
                    found[metric.name, labels] = point.as_double if point.HasField("as_double") else point.as_int
        return found, {each.key: each.value.string_value for each in resource.resource.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with Operations(Settings(home=tmp_path / ".nami-amp")) as operations:
        for name in ("main", "other"):
            operations.add(NewIntegration("radio", name, "us", Secret(name * 8)))
        operations.disable("radio/other")
    return tmp_path


def exposed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def steady(samples: Samples) -> Samples:
    return {key: value for key, value in samples.items() if key[0] not in GO_ON}


def test_the_command_sends_what_metrics_says(home: Path, collector: Collector) -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={TOKEN}",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
    }  # fmt: skip
    done = invoke(home, "metrics", "--otlp", settings=environ)
    assert (done.exit_code, done.output) == (0, "")
    found, resource = collector.read()
    wanted = exposed(invoke(home, "metrics").stdout)
    assert steady(found) == steady(wanted)
    assert {name for name, _ in wanted} == {name for name, _ in found}
    state = frozenset({("app", "radio"), ("integration", "other"), ("state", "off")})
    assert found["nami_amp_state", state] == 1
    assert (resource["service.name"], resource["deployment.environment"]) == ("nami-amp-pipeline", "test")
    assert collector.posted[0].headers["api-key"] == TOKEN
    collector.answer = Answer(403, f"who is {TOKEN}?".encode())
    refused = invoke(home, "metrics", "--otlp", settings=environ)
    assert refused.exit_code == 1
    assert "nobody took the figures: " in one_line(refused.stderr)
    assert TOKEN not in refused.output


def test_a_process_goes_on_sending_what_is_new(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    reads: list[int] = []

    def read() -> list[Any]:
        reads.append(len(reads))
        if len(reads) == 2:
            raise StoreUnavailable("the store is away")
        first, *rest = families()
        return [GaugeMetricFamily(first.name, first.documentation, value=float(len(reads))), *rest]

    end = telemetry.keep_sending(read)
    try:
        wait_until(lambda: len(reads) > 3 and len(collector.posted) > 1)
    finally:
        end()
    name = next(iter(families())).name
    values = [collector.read(number)[0][name, frozenset()] for number in range(len(collector.posted))]
    assert values[:2] == [1.0, 3.0], "what cannot be read is not sent, and not sent again"
    assert collector.read()[1]["service.name"] == "mine"
    sent = len(collector.posted)
    assert sent == len(values)


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_METRICS_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_variables_switch_it(environ: dict[str, str], wanted: bool) -> None:
    assert telemetry.is_wanted(environ) is wanted


def test_the_control_center_does_so_where_it_is_wanted(
    home: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Operations(Settings(home=home / ".nami-amp")) as operations:
        operations.keep_sending_metrics()()
        assert collector.posted == []
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", collector.url)
        end = operations.keep_sending_metrics()
        end()  # sends once more
    assert steady(collector.read()[0])


def test_without_the_extra_it_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    done = invoke(home, "metrics", "--otlp")
    assert done.exit_code == 2
    assert "pip install 'nami-amp-pipeline[otel]'" in one_line(done.stderr)
