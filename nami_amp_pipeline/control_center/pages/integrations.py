"""Integrations: those that an app has, and those that it can have; switches one on or off, and removes one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.responses import Response

from nami_amp_pipeline import contract
from nami_amp_pipeline.control_center.chart import Rect, small
from nami_amp_pipeline.control_center.receiver import Receiver
from nami_amp_pipeline.control_center.visit import Visit, action, page
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.integrations import Integration, region
from nami_amp_pipeline.operations.standing import Standing


@dataclass(frozen=True)
class Service:
    """A service that can receive events.

    Attributes:
        name: of it.
        does: a sentence.
        destination: its name in the store; empty of one that cannot be set up.
    """

    name: str
    does: str
    destination: str = ""


_ABSENT: Final = (
    Service("Adjust", "Mobile measurement."),
    Service("AppsFlyer", "Mobile measurement."),
    Service("Braze", "Customer engagement."),
    Service("Mixpanel", "Product analytics."),
    Service("mParticle", "Customer data platform."),
)


def services() -> list[Service]:
    """All services: first those that can be set up."""
    there = [
        Service(receiver.called, "Sends subscription events and user properties.", receiver.name)
        for receiver in Receiver.all()
    ]
    names = {service.name.lower() for service in there}
    return [*there, *(service for service in _ABSENT if service.name.lower() not in names)]


_STATES: Final = {
    "delivering": ("On", "good"),
    "idle": ("On, waiting for the first event", "good"),
    "waiting": ("Late", "warn"),
    "throttled": ("Throttled", "warn"),
    "unreachable": ("Unreachable", "warn"),
    "halted": ("Stopped", "bad"),
    "off": ("Off", ""),
}


@dataclass(frozen=True)
class Row:
    """An integration as the table shows it.

    Attributes:
        integration: its settings.
        standing: how it stands.
        where: its region or host.
        hours: events that were sent, of each of the last 24 hours.
    """

    integration: Integration
    standing: Standing
    where: str
    hours: Sequence[int] = ()

    @property
    def bars(self) -> list[Rect]:
        """Those of :attr:`hours`."""
        return small(self.hours)

    @property
    def service(self) -> str:
        """What receives its events."""
        try:
            return Receiver.of(self.integration.destination).called
        except Misconfigured:  # the package that adds it is missing
            return self.integration.destination

    @property
    def word(self) -> str:
        """Its state in a word or two."""
        return _STATES[self.standing.state][0]

    @property
    def kind(self) -> str:
        """``good``, ``warn``, ``bad`` or empty: never told by colour alone."""
        return _STATES[self.standing.state][1]

    @property
    def refused(self) -> int:
        """Its dead letters."""
        return sum(self.standing.numbers.dead_letters.values())


def show(visit: Visit) -> Response:
    """The integrations of an app, and the services to choose from."""
    asked = visit.query.get("service", "").strip()
    found = [service for service in services() if asked.lower() in service.name.lower()]
    set_up = Counter(integration.destination for integration in visit.of_app)
    sent = {
        key: [tally.delivered for tally in tallies]
        for key, tallies in visit.operations.by_hour(visit.of_app, "24h").items()
    }
    rows = _rows(visit.of_app, visit.standings, sent)
    return visit.render("integrations.html", app=visit.app, rows=rows, services=found, set_up=set_up, asked=asked)


def _rows(
    integrations: Sequence[Integration],
    standings: Sequence[Standing],
    sent: Mapping[str, Sequence[int]] | None = None,
) -> list[Row]:
    by_key = {standing.integration: standing for standing in standings}
    return [
        Row(integration, by_key[integration.key], _where(integration), (sent or {}).get(integration.key, ()))
        for integration in integrations
        if integration.key in by_key
    ]


def _where(integration: Integration) -> str:
    named = {"us": "Standard", "eu": "EU Residency"}
    return named.get(region(integration), region(integration))


def switch(visit: Visit) -> Response:
    """Asks whether an integration is to be switched, and does so."""
    integration = visit.integration
    if visit.is_post:
        on = visit.text("to") == "on"
        (visit.operations.enable if on else visit.operations.disable)(integration.key)
        return visit.redirect("integrations", app=visit.app_id, done="on" if on else "off")
    (row,) = _rows([integration], [visit.standing])
    return visit.render("switch.html", row=row, integration=integration)


def remove(visit: Visit) -> Response:
    """Asks whether an integration is to be removed, with what is lost, and does so once its name was typed."""
    integration = visit.integration
    error = ""
    if visit.is_post:
        if visit.text("name").strip() == integration.name:
            visit.operations.remove(integration.key)
            return visit.redirect("integrations", app=visit.app_id, done="removed")
        error = f"Type {integration.name} to remove it"
    (row,) = _rows([integration], [visit.standing])
    errors = {"name": error} if error else {}
    return visit.render("remove.html", row=row, integration=integration, errors=errors, status=422 if error else 200)


def test_event(visit: Visit) -> Response:
    """Sends one made-up event, and shows the answer."""
    integration = visit.integration
    chosen = visit.text("event_type") or integration.events[0]
    sent = None
    if visit.is_post and chosen in contract.event_type_names():
        sent = visit.operations.send_trial_event(integration.key, chosen)
    return visit.render(
        "test_event.html", integration=integration, chosen=chosen, types=contract.event_type_names(), sent=sent
    )


_PATH: Final = "/apps/{app}/integrations"
navigation: Final = ("integrations", "Integrations")
routes: Final = [
    page(_PATH, show, name="integrations"),
    action(f"{_PATH}/{{integration}}/switch", switch, name="switch"),
    action(f"{_PATH}/{{integration}}/remove", remove, name="remove"),
    action(f"{_PATH}/{{integration}}/test-event", test_event, name="test-event"),
]
