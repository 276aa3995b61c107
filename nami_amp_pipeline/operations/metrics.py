"""The figures of all integrations, for Prometheus: of a page's ``/metrics``, or a file for the node exporter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, get_args

from prometheus_client import CollectorRegistry, generate_latest, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.operations.standing import Standing, State, standings

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""Of :func:`exposition`, for the header of an HTTP answer."""

_WHOSE: Final = ("app", "integration")


def exposition(context: Context) -> bytes:
    """The figures as text, as Prometheus reads it.

    Args:
        context: the process at work.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    return generate_latest(_registry(context))


def write(context: Context, path: Path) -> None:
    """Writes the same to a file, which is whole at any moment.

    Args:
        context: the process at work.
        path: of the file; for the node exporter its name must end with ``.prom``.

    Raises:
        StoreUnavailable: the state store cannot be read.
        Blocked: the file cannot be written.
    """
    registry = _registry(context)
    try:
        write_to_textfile(str(path), registry)
    except OSError as error:
        raise Blocked(f"cannot write {path}: {error.strerror or error}") from None


def families(context: Context | None = None) -> list[Metric]:
    """The figures as Prometheus' own classes have them, always the same families; without a context, they are empty.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    figures = _Standings([], 0.0) if context is None else _Standings(standings(context), context.now() / 1e6)
    return list(figures.collect())


def _registry(context: Context) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Standings(standings(context), context.now() / 1e6))
    return registry


class _Standings(Collector):
    def __init__(self, found: Sequence[Standing], now: float) -> None:
        self._found = found
        self._now = now

    def collect(self) -> Iterable[Metric]:
        """All families, each with a sample for each integration."""
        yield from self._states()
        yield from self._counts()
        yield self._gauge(
            "behind_seconds", "How long the oldest event to post has been in the warehouse", "lag_seconds"
        )
        yield self._gauge("rejected", "Dead letters of the last 7 days that can be sent again", "rejected")
        yield self._gauge("needs_you", "1 if it does not go on, or not well, without a person", "needs_you")
        watermark = GaugeMetricFamily(
            "nami_amp_watermark_timestamp_seconds", "Newest ingested_at that was captured", labels=_WHOSE
        )
        for standing in self._found:
            if standing.numbers.watermark is not None:
                watermark.add_metric(_labels(standing), standing.numbers.watermark / 1e6)
        yield watermark
        yield GaugeMetricFamily("nami_amp_collected_timestamp_seconds", "When this was read", value=self._now)

    def _states(self) -> Iterable[Metric]:
        states = GaugeMetricFamily(
            "nami_amp_state", "1 of the state that it is in, 0 of the others", labels=(*_WHOSE, "state")
        )
        for standing in self._found:
            for state in get_args(State):
                states.add_metric((*_labels(standing), state), float(standing.state == state))
        yield states

    def _counts(self) -> Iterable[Metric]:
        captured = CounterMetricFamily("nami_amp_events_captured", "Events that were read", labels=_WHOSE)
        delivered = CounterMetricFamily("nami_amp_events_delivered", "Acknowledged by Amplitude", labels=_WHOSE)
        skipped = CounterMetricFamily("nami_amp_events_skipped", "Left out on purpose", labels=(*_WHOSE, "reason"))
        # No counter: one that is sent again is a dead letter no more.
        dead = GaugeMetricFamily("nami_amp_dead_letters", "Events that ended as such", labels=(*_WHOSE, "reason"))
        pending = GaugeMetricFamily("nami_amp_events_pending", "Not at an end yet", labels=(*_WHOSE, "why"))
        for standing in self._found:
            whose, numbers = _labels(standing), standing.numbers
            captured.add_metric(whose, numbers.captured)
            delivered.add_metric(whose, numbers.delivered)
            for family, by in (
                (skipped, numbers.skipped),
                (dead, numbers.dead_letters),
                (pending, {"queued": 0, **numbers.pending_by}),
            ):
                for name, events in sorted(by.items()):
                    family.add_metric((*whose, name), events)
        yield from (captured, delivered, skipped, dead, pending)

    def _gauge(self, name: str, means: str, field: str) -> Metric:
        family = GaugeMetricFamily(f"nami_amp_{name}", means, labels=_WHOSE)
        for standing in self._found:
            family.add_metric(_labels(standing), float(getattr(standing, field)))
        return family


def _labels(standing: Standing) -> tuple[str, str]:
    app_id, _, name = standing.integration.partition("/")
    return app_id, name
