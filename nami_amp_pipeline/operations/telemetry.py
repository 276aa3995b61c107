"""The figures of all integrations for OpenTelemetry: sent by OTLP over HTTP, as the variables ``OTEL_…`` say."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from nami_amp_pipeline import redaction
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Blocked, Misconfigured, NamiAmpError
from nami_amp_pipeline.operations.metrics import families

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader
    from prometheus_client.core import Metric

SERVICE: Final = "nami-amp-pipeline"
"""``service.name``, where the variables say no other."""

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_EXTRA: Final = "OpenTelemetry is not installed: pip install 'nami-amp-pipeline[otel]'"
_LOG: Final = redaction.guarded_logger(__name__)

Read = Callable[[], Iterable["Metric"]]
"""Reads the figures, as Prometheus has them."""


def is_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names an endpoint, and does not switch this off."""
    is_off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_METRICS_EXPORTER") == "none"
    return not is_off and any(environ.get(name) for name in _ENDPOINTS)


def send(context: Context) -> None:
    """Sends the figures once.

    Args:
        context: the process at work.

    Raises:
        Misconfigured: OpenTelemetry is not installed.
        StoreUnavailable: the state store cannot be read.
        Blocked: nobody took the figures.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult
    except ImportError:
        raise Misconfigured(_EXTRA) from None
    _keep_headers_out()
    found, reader = families(context), InMemoryMetricReader()
    provider = observed(lambda: found, reader)
    heard = _Heard()
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(heard)
    before, logger.propagate = logger.propagate, False
    try:
        data, exporter = reader.get_metrics_data(), OTLPMetricExporter()
        taken = data is not None and exporter.export(data) is MetricExportResult.SUCCESS
        exporter.shutdown()
    finally:
        logger.propagate = before
        logger.removeHandler(heard)
        provider.shutdown()
    if not taken:
        raise Blocked(f"nobody took the figures: {heard.last or 'the endpoint did not say why'}")


def keep_sending(read: Read) -> Callable[[], None]:
    """Sends the figures again and again, in a thread, if the environment wants that; gives what ends it.

    Args:
        read: called for each time; where it fails, nothing is sent that time.
    """
    if not is_wanted():
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    except ImportError:
        _LOG.warning(_EXTRA)
        return lambda: None
    _keep_headers_out()
    return observed(read, PeriodicExportingMetricReader(OTLPMetricExporter())).shutdown


def observed(read: Read, reader: MetricReader) -> MeterProvider:
    """A provider whose gauges are the figures; they are read anew for each collection.

    All are gauges, also those that only grow: they are read from the store, and do not begin at 0 with the process.
    """
    from opentelemetry.metrics import Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource

    resource = Resource.create()
    if str(resource.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SERVICE}))
    provider = MeterProvider([reader], resource, shutdown_on_exit=False)
    meter, samples = provider.get_meter(SERVICE), dict[str, list[Observation]]()

    def collect() -> None:
        samples.clear()
        try:
            for family in read():
                for sample in family.samples:
                    samples.setdefault(sample.name, []).append(Observation(sample.value, dict(sample.labels)))
        except NamiAmpError as error:
            _LOG.warning("the figures for OpenTelemetry cannot be read: %s", error)

    def gauge(name: str, means: str, *, is_first: bool) -> None:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            if is_first:  # in the order of their making; the others share what it has read
                collect()
            return samples.get(name, ())

        meter.create_observable_gauge(name, [observe], description=means)

    for number, family in enumerate(families()):
        gauge(family.name + ("_total" if family.type == "counter" else ""), family.documentation, is_first=not number)
    return provider


def _keep_headers_out() -> None:
    """Registers the values of the headers, which are keys mostly, as what no message may hold."""
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS"):
        redaction.add(*(unquote(part.partition("=")[2]) for part in os.environ.get(name, "").split(",")))


class _Heard(logging.Handler):
    """Keeps the last line that was logged."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """See the base class."""
        self.last = " ".join(record.getMessage().split())[:300]
