"""The form of an integration: its fields as it has them, as a person typed them, and as operations take them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import from_datetime, to_datetime
from nami_amp_pipeline.control_center.receiver import OWN, OWN_SECRET, REMOVE, Receiver, wrong_key
from nami_amp_pipeline.destinations import DEFAULT
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.integrations import (
    Integration,
    IntegrationChange,
    NewIntegration,
    rules,
)
from nami_amp_pipeline.secrets import Secret

if TYPE_CHECKING:
    from nami_amp_pipeline.control_center.visit import Visit

RENAME: Final = "rename."
"""Before an event type: the field with its name in Amplitude."""

_LONGEST_NAME: Final = 100
_LONGEST_QUOTA: Final = 14
_FUTURE: Final = timedelta(days=1)


@dataclass(frozen=True)
class Group:
    """Event types that a fieldset holds.

    Attributes:
        prefix: of all of them.
        label: for people.
        help: what else there is to know.
    """

    prefix: str
    label: str
    help: str = ""

    @property
    def types(self) -> list[contract.EventType]:
        """The event types."""
        return [kind for kind in contract.EVENT_TYPES if kind.name.startswith(f"{self.prefix}.")]

    @property
    def pattern(self) -> str:
        """The selection of all of them, and of those that Nami adds."""
        return f"{self.prefix}.*"


GROUPS: Final = (
    Group("device", "On devices", "These events carry no user properties."),
    Group("user.journey.trial", "Trials"),
    Group("user.subscription", "Subscriptions"),
)


@dataclass
class Draft:
    """The form. Texts are as a person typed them; keys are never put back into a page.

    Attributes:
        enabled: whether it is switched on.
        name: of the integration.
        destination: what receives its events.
        endpoint: ``us``, ``eu``, or a URL that the operator allowed.
        user_id: which id becomes Amplitude's user id.
        anonymous: what happens before login.
        events: the chosen event types.
        later: whether types that Nami adds to a whole group are chosen too.
        rename: names in Amplitude by event type.
        sandbox: what happens to sandbox purchases.
        exclude: payload fields that never leave, one a line.
        hashed: payload fields that leave as hashes, one a line.
        revenue: which amount is sent.
        store_fees: ``platform=share``, one a line.
        start: ``keep``, ``now``, ``beginning`` or ``day``.
        start_day: ``2026-11-03``.
        quota: events a month, as the person has them in Amplitude; kept for the app.
        quota_was: the same, as the form was made with.
        version: that the form was made of; 0 of a new integration.
        allow_shared: whether another integration may have the same key.
        untested: whether a key may be saved that no endpoint could be asked about.
        api_key: typed now; None for nothing.
        secret_key: typed now; None for nothing.
        remove_secret_key: whether the stored one goes.
        fields: those that the destination has of its own, but for the secrets; empty texts are left out.
        secret_fields: the secrets among them that were typed now.
        removed: names of those that are stored and go.
    """

    enabled: bool = True
    name: str = "main"
    destination: str = DEFAULT
    endpoint: str = "us"
    user_id: str = "external_id"
    anonymous: str = "skip"
    events: tuple[str, ...] = field(default_factory=contract.event_type_names)
    later: bool = True
    rename: Mapping[str, str] = field(default_factory=dict)
    sandbox: str = "send"
    exclude: str = ""
    hashed: str = ""
    revenue: str = "gross"
    store_fees: str = ""
    start: str = "now"
    start_day: str = ""
    quota: str = ""
    quota_was: str = ""
    version: int = 0
    allow_shared: bool = False
    untested: bool = False
    api_key: Secret | None = None
    secret_key: Secret | None = None
    remove_secret_key: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    secret_fields: Mapping[str, Secret] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """The endpoint as a URL."""
        return contract.ENDPOINTS.get(self.endpoint, self.endpoint) if self.destination == DEFAULT else self.endpoint

    @property
    def quota_number(self) -> int | None:
        """The quota in events a month; None if there is none, or it cannot be read."""
        digits = self.quota.replace(",", "").replace(" ", "")
        return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= _LONGEST_QUOTA else None

    @property
    def patterns(self) -> list[str]:
        """The selection of event types: whole groups as such, if later types are chosen too."""
        chosen = set(self.events)
        if not self.later:
            return list(self.events)
        if chosen == set(contract.event_type_names()):
            return ["all"]
        found = []
        for group in GROUPS:
            names = [kind.name for kind in group.types]
            found += [group.pattern] if chosen.issuperset(names) else [name for name in names if name in chosen]
        return found

    @staticmethod
    def of(integration: Integration) -> Draft:
        """The form of an integration as it is."""
        endpoints = {url: name for name, url in contract.ENDPOINTS.items()}
        start = integration.start_from
        return Draft(
            enabled=integration.enabled,
            name=integration.name,
            endpoint=endpoints.get(integration.endpoint, integration.endpoint),
            user_id=integration.user_id_kind,
            anonymous=integration.anonymous,
            events=integration.events,
            later=any(pattern == "all" or pattern.endswith(".*") for pattern in integration.patterns),
            rename=dict(integration.rename),
            sandbox=integration.sandbox,
            exclude="\n".join(integration.exclude),
            hashed="\n".join(integration.hashed),
            revenue=integration.revenue,
            store_fees="\n".join(f"{store}={share:g}" for store, share in integration.store_fees.items()),
            start="keep",
            start_day="" if start is None else f"{to_datetime(start):%Y-%m-%d}",
            version=integration.version,
            destination=integration.destination,
            fields=dict(integration.fields),
        )

    @staticmethod
    def typed(visit: Visit, receiver: Receiver) -> Draft:
        """The form as a person sent it; a choice that the form does not offer stays, and is refused by the checks."""
        renames = {
            kind.name: visit.text(RENAME + kind.name).strip()
            for kind in contract.EVENT_TYPES
            if visit.text(RENAME + kind.name).strip()
        }
        chosen = set(visit.texts("event"))
        version = visit.text("version")
        secrets = [field.name for field in receiver.own if field.is_secret]
        return Draft(
            enabled=visit.text("enabled") == "on",
            name=visit.text("name").strip(),
            destination=receiver.name,
            endpoint=visit.text("endpoint").strip(),
            user_id=visit.text("user_id"),
            anonymous=visit.text("anonymous"),
            events=tuple(name for name in contract.event_type_names() if name in chosen),
            later=visit.text("later") == "on",
            rename={name: text for name, text in renames.items() if text != name},
            sandbox=visit.text("sandbox"),
            exclude=visit.text("exclude"),
            hashed=visit.text("hashed"),
            revenue=visit.text("revenue"),
            store_fees=visit.text("store_fees"),
            start=visit.text("start"),
            start_day=visit.text("start_day").strip(),
            quota=visit.text("quota").strip(),
            quota_was=visit.text("quota_was").strip(),
            version=int(version) if version.isdecimal() and len(version) < 18 else 0,
            allow_shared=visit.text("allow_shared") == "on",
            untested=visit.text("untested") == "on",
            api_key=_key(visit.text("api_key")),
            secret_key=_key(visit.text("secret_key")),
            remove_secret_key=visit.text("remove_secret_key") == "on",
            fields={
                each.name: text
                for each in receiver.own
                if not each.is_secret and (text := visit.text(OWN + each.name).strip()) and text != each.default
            },
            secret_fields={name: Secret(text) for name in secrets if (text := visit.text(OWN_SECRET + name).strip())},
            removed=tuple(name for name in secrets if visit.text(REMOVE + name) == "on"),
        )

    def errors(
        self,
        receiver: Receiver,
        *,
        address: str,
        stored: Collection[str],
        taken: tuple[str, ...],
        is_new: bool,
        now: int,
    ) -> dict[str, str]:
        """What is wrong, by field, in the order of the form.

        Args:
            receiver: what receives the events.
            address: what is wrong with the endpoint, which the form knows; empty if nothing is.
            stored: names of the secrets of the destination's own that are stored.
            taken: names of the app's other integrations.
            is_new: whether it is to be added, so that it needs a key.
            now: in µs since the epoch.
        """
        found: dict[str, str] = {}
        if is_new and (said := _of_name(self.name, taken)):
            found["name"] = said
        if address:
            found["endpoint"] = address
        if is_new and self.api_key is None:
            found["api_key"] = f"Enter the {'API key' if receiver.is_amplitude else receiver.key_label.lower()}"
        found |= {name: said for name in ("api_key", "secret_key") if (said := wrong_key(getattr(self, name)))}
        if self.secret_key is not None and self.remove_secret_key:
            found["secret_key"] = "Either enter a secret key, or remove the one that is there"  # noqa: S105 - no secret
        kept: dict[str, Secret | None] = dict.fromkeys(name for name in stored if name not in self.removed)
        found |= receiver.wrong_fields(self.fields, kept | dict(self.secret_fields))
        for name in self.removed:
            if name in self.secret_fields:
                found[OWN_SECRET + name] = "Either enter another one, or remove the one that is there"
        found |= {name: said for name, choices, said in _CHOICES if getattr(self, name) not in choices}
        if not self.events:
            found["events"] = "Choose at least one event"
        _check(found, "renames", lambda: rules.check_rename(self.rename))
        if any(len(name) > _LONGEST_NAME for name in self.rename.values()):
            found["renames"] = f"A name in Amplitude has at most {_LONGEST_NAME} characters"
        _check(found, "exclude", lambda: rules.check_fields(_lines(self.exclude), _lines(self.hashed)))
        if self.user_id == "external_id" and "external_ids" in (*_lines(self.exclude), *_lines(self.hashed)):
            found["exclude"] = "external_ids has to leave while the External ID is the user id"
        try:
            rules.check_fees(self._fees())
        except (Misconfigured, ValueError):
            found["store_fees"] = "Write one store a line, as apple=0.15: the share is from 0 to 1"
        if said := self._of_start(is_new, now):
            found["start"] = said
        return found | self.quota_errors()

    def quota_errors(self) -> dict[str, str]:
        """What is wrong with the quota."""
        if self.quota and not self.quota_number:
            return {"quota": "Write the quota as a number of events a month, such as 10,000,000"}
        return {}

    def _of_start(self, is_new: bool, now: int) -> str:
        if self.start not in (("now", "beginning", "day") if is_new else ("keep", "now", "beginning", "day")):
            return "Choose where to start"
        if self.start != "day":
            return ""
        day = _day(self.start_day)
        if day is None:
            return "Write the day as 2026-11-03"
        return "" if day < to_datetime(now) + _FUTURE else "That day is still to come: choose “From now on”"

    def _fees(self) -> dict[str, float]:
        pairs = [line.partition("=") for line in _lines(self.store_fees)]
        return {store.strip(): float(share) for store, _, share in pairs}

    def start_from(self, now: int) -> int | None:
        """Where it begins, in µs since the epoch; None for the beginning."""
        if self.start == "beginning":
            return None
        day = _day(self.start_day) if self.start == "day" else None
        return now if day is None else from_datetime(day)

    def new(self, app_id: str, now: int, *, allow_custom: bool) -> NewIntegration:
        """What to add; :meth:`errors` has found nothing."""
        assert self.api_key is not None
        return NewIntegration(
            app_id,
            self.name,
            api_key=self.api_key,
            secret_key=self.secret_key,
            start_from=self.start_from(now),
            enabled=self.enabled,
            allow_custom_endpoint=allow_custom,
            allow_shared_key=self.allow_shared,
            events=self.patterns,
            destination=self.destination,
            fields=self.fields,
            secret_fields=self.secret_fields,
            **self._plain(),
        )

    def change(
        self, integration: Integration, receiver: Receiver, now: int, *, allow_custom: bool
    ) -> IntegrationChange:
        """What to change; :meth:`errors` has found nothing."""
        before = Draft.of(integration)
        same_events = self.events == before.events and self.later == before.later
        values: dict[str, Any] = {**self._plain(), "enabled": self.enabled}
        if self.url == integration.endpoint:
            values.pop("endpoint")
        if not same_events:
            values["events"] = self.patterns
        if self.start != "keep":
            values["start_from"] = self.start_from(now)
        if self.api_key is not None:
            values["api_key"] = self.api_key
        if self.secret_key is not None or self.remove_secret_key:
            values["secret_key"] = self.secret_key
        values["fields"] = {field.name: self.fields.get(field.name) for field in receiver.own if not field.is_secret}
        values["secret_fields"] = self.moved_secrets
        return IntegrationChange(**values, allow_custom_endpoint=allow_custom, allow_shared_key=self.allow_shared)

    @property
    def moved_secrets(self) -> dict[str, Secret | None]:
        """The secrets of the destination's own fields that change; None of those that go."""
        return dict.fromkeys(self.removed) | dict(self.secret_fields)

    def _plain(self) -> dict[str, Any]:
        return {
            "endpoint": self.url,
            "user_id_kind": cast(contract.UserIdKind, self.user_id),
            "anonymous": cast(contract.AnonymousPolicy, self.anonymous),
            "rename": dict(self.rename),
            "sandbox": cast(contract.SandboxPolicy, self.sandbox),
            "exclude": _lines(self.exclude),
            "hashed": _lines(self.hashed),
            "revenue": cast(contract.RevenueKind, self.revenue),
            "store_fees": self._fees(),
        }

    def differences(self, other: Draft) -> list[tuple[str, str, str]]:
        """The fields that differ: label, the value here, and the value there."""
        found = []
        for label, read in _COMPARED:
            mine, theirs = read(self), read(other)
            if mine != theirs:
                found.append((label, mine, theirs))
        return found


_CHOICES: Final = (
    ("user_id", contract.USER_ID_KINDS, "Choose which id becomes Amplitude's user id"),
    ("anonymous", contract.ANONYMOUS_POLICIES, "Choose what happens before login"),
    ("sandbox", contract.SANDBOX_POLICIES, "Choose what happens to sandbox purchases"),
    ("revenue", contract.REVENUE_KINDS, "Choose which revenue is sent"),
)

_COMPARED: Final[tuple[tuple[str, Callable[[Draft], str]], ...]] = (
    ("Enable Integration", lambda draft: "on" if draft.enabled else "off"),
    ("Endpoint", lambda draft: draft.url),
    (
        "Fields of the destination",
        lambda draft: ", ".join(f"{of}: {text}" for of, text in sorted(draft.fields.items())),
    ),
    ("User ID", lambda draft: draft.user_id),
    ("Before login", lambda draft: draft.anonymous),
    ("Events", lambda draft: ", ".join(draft.events)),
    ("Types that Nami adds", lambda draft: "sent too" if draft.later else "not sent"),
    ("Names in Amplitude", lambda draft: ", ".join(f"{old} as {new}" for old, new in sorted(draft.rename.items()))),
    ("Sandbox purchases", lambda draft: draft.sandbox),
    ("Fields that never leave", lambda draft: ", ".join(sorted(_lines(draft.exclude)))),
    ("Fields that leave as hashes", lambda draft: ", ".join(sorted(_lines(draft.hashed)))),
    ("Revenue", lambda draft: draft.revenue),
    ("Store fees", lambda draft: ", ".join(sorted(_lines(draft.store_fees)))),
)


def _key(text: str) -> Secret | None:
    """A key without the space that comes along when people copy one; None if there is none."""
    return Secret(text.strip()) if text.strip() else None


def _of_name(name: str, taken: tuple[str, ...]) -> str:
    if not name:
        return "Enter a name"
    if len(name) > _LONGEST_NAME:
        return f"Use at most {_LONGEST_NAME} characters for the name"
    if not contract.INTEGRATION_NAME.fullmatch(name):
        odd = next(character for character in name if not contract.INTEGRATION_NAME.fullmatch(character))
        return f"Use letters, digits, - and _: “{name}” has {'a space' if odd.isspace() else f'“{odd}”'}"
    return f"There is an integration “{name}” already in this app" if name in taken else ""


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.replace(",", "\n").splitlines() if line.strip()]


def _day(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None


def _check(found: dict[str, str], name: str, check: Callable[[], object]) -> None:
    try:
        check()
    except Misconfigured as error:
        said = str(error)
        found[name] = said[:1].upper() + said[1:]
