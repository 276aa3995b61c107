"""What stands in the file of the integrations; its JSON schema and the reading of it are made of these classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from nami_amp_pipeline import contract
from nami_amp_pipeline.contract import AnonymousPolicy, RevenueKind, SandboxPolicy, UserIdKind
from nami_amp_pipeline.destinations import DEFAULT, destination_of
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.times import parse_time
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.state import integration_rules as rules
from nami_amp_pipeline.state import own_fields
from nami_amp_pipeline.state.integrations import NewIntegration, checked

T = TypeVar("T")

_SCHEMA_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def _by(rule: Callable[[T], object]) -> AfterValidator:
    """A validator that holds a value to a rule, and leaves it as it was given."""

    def check(value: T) -> T:
        try:
            rule(value)
        except Misconfigured as error:
            raise ValueError(str(error)) from None
        return value

    return AfterValidator(check)


def _start(text: str) -> None:
    if text not in ("now", "beginning"):
        # 'yesterday' or '2d' would be another time on each day that the file is applied.
        if not re.match(r"\d{4}-", text):
            raise Misconfigured("must be now, beginning, or a time such as 2026-09-01T00:00:00Z")
        parse_time(text, "start_from")


def _file_name(text: str) -> None:
    if not text.strip() or not text.isprintable() or len(text) > 200:
        raise Misconfigured("must be a name of 1 to 200 characters in one line")


def _known_type(event_type: str) -> None:
    rules.check_rename({event_type: "x"})


AppId = Annotated[str, _by(rules.check_app_id), Field(json_schema_extra={"pattern": f"^{contract.APP_ID.pattern}$"})]
Name = Annotated[
    str, _by(rules.check_name), Field(json_schema_extra={"pattern": f"^{contract.INTEGRATION_NAME.pattern}$"})
]
Selection = Annotated[str, _by(lambda pattern: rules.check_events([pattern]))]
RenamedType = Annotated[str, _by(_known_type)]
PayloadField = Annotated[str, _by(lambda name: rules.check_fields([name], []))]


class Part(BaseModel):
    """What all parts of the file share: they know their fields, and guess at nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    def to_json(self) -> dict[str, Any]:
        """What was given, in the form of the file."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class KeyReference(Part):
    """Where a key is found; the key itself is never in the file. Exactly one of the fields is given."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["env"]}, {"required": ["file"]}, {"required": ["keep"]}]}
    )

    env: str | None = Field(None, description="An environment variable, or a variable of .env.")
    file: str | None = Field(None, description="A file, relative to the folder in which the command runs.")
    keep: Literal[True] | None = Field(None, description="The key that is stored already, whatever it is.")

    @model_validator(mode="after")
    def _one_of_them(self) -> KeyReference:
        if len(self.model_fields_set) != 1 or getattr(self, next(iter(self.model_fields_set))) is None:
            raise ValueError("give exactly one of env, file and keep, such as {env: AMPLITUDE_KEY}")
        return self

    def __str__(self) -> str:
        if self.keep:
            return "as it is"
        return f"from environment variable {self.env}" if self.env is not None else f"from file {self.file}"


class IntegrationEntry(Part):
    """One integration: a project of Amplitude, or another destination. What is not given has its default."""

    enabled: bool = Field(True, description="Whether anything is sent. Off loses nothing.")
    allow_custom_endpoint: bool = Field(False, description="Allow an endpoint that does not belong to Amplitude.")
    allow_shared_key: bool = Field(
        False, description="Allow an API key that another integration uses for some of the same event types."
    )
    destination: str = Field(
        DEFAULT, description="What receives the events: amplitude, http, or one of another package."
    )
    endpoint: str = Field(
        description="Where the Amplitude project is: us, eu, or a URL. Of another destination, its URL."
    )
    api_key: KeyReference = Field(description="Where the API key of the project is found.")
    secret_key: KeyReference | None = Field(
        None, description="Where the secret key is found; only reconciliation needs it."
    )
    fields: dict[str, str] = Field({}, description="The fields that the destination has of its own, by name.")
    secret_fields: dict[str, KeyReference] = Field(
        {}, description="Where the secrets among these fields are found, by name."
    )
    user_id: UserIdKind = Field("external_id", description="What becomes the user id in Amplitude.")
    anonymous: AnonymousPolicy = Field(
        "skip", description="What happens to events of users who have no External ID yet."
    )
    events: list[Selection] = Field(
        ["all"], min_length=1, description="Which event types are sent: all, types, or prefixes such as device.*."
    )
    sandbox: SandboxPolicy = Field("send", description="What happens to events of a store's sandbox.")
    exclude: list[PayloadField] = Field([], description="Payload fields that are never sent.")
    hashed: list[PayloadField] = Field([], alias="hash", description="Payload fields that are sent as a hash.")
    start_from: Annotated[str, _by(_start)] = Field(
        "now",
        description="Where a new integration begins: now, beginning, or a time. 'now' leaves an existing one as it is.",
    )
    revenue: RevenueKind = Field("gross", description="Which amount is sent as revenue.")
    store_fees: dict[str, float] = Field({}, description="The store's share of a price by event_platform.")
    rename: dict[RenamedType, str] = Field({}, description="Names in Amplitude by Nami's event type.")

    @field_validator("destination")
    @classmethod
    def _destination(cls, destination: str) -> str:
        return _held_to(destination_of, destination)

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, endpoint: str, info: ValidationInfo) -> str:
        if "destination" not in info.data:  # which is wrong itself
            return endpoint
        try:
            rules.check_endpoint(
                endpoint,
                allow_custom=info.data.get("allow_custom_endpoint", True),
                destination=info.data["destination"],
            )
        except Misconfigured as error:
            raise ValueError(
                str(error).replace("give --allow-custom-endpoint", "write 'allow_custom_endpoint: true'")
            ) from None
        return endpoint

    @field_validator("hashed")
    @classmethod
    def _hashed(cls, hashed: list[str], info: ValidationInfo) -> list[str]:
        return _held_to(lambda fields: rules.check_fields(info.data.get("exclude", []), fields), hashed)

    @field_validator("store_fees")
    @classmethod
    def _fees(cls, fees: dict[str, float]) -> dict[str, float]:
        return _held_to(rules.check_fees, fees)

    @field_validator("rename")
    @classmethod
    def _rename(cls, rename: dict[str, str]) -> dict[str, str]:
        return _held_to(rules.check_rename, rename)

    @model_validator(mode="after")
    def _together(self) -> IntegrationEntry:
        secret_key = Secret("key") if self.secret_key is not None else None
        target = destination_of(self.destination)
        _held_to(
            lambda entry: own_fields.check_given(target, entry.fields, entry.secret_fields, as_options=False), self
        )
        own = dict.fromkeys(self.secret_fields)  # what they are is looked at when they were read
        _held_to(lambda entry: own_fields.check(target, entry.fields, own, as_options=False), self)
        _held_to(lambda entry: checked(entry.new("app", "name", Secret("key"), secret_key, own, None)), self)
        return self

    @property
    def moves_start(self) -> bool:
        """Whether the file says where the events of an integration that exists begin."""
        return self.start_from != "now"

    @property
    def start(self) -> int | None:
        """Where it begins, in µs since the epoch; None is the beginning. Of no use where the file says ``now``."""
        return None if self.start_from == "beginning" else parse_time(self.start_from, "start_from")

    def new(
        self,
        app_id: str,
        name: str,
        api_key: Secret,
        secret_key: Secret | None,
        secret_fields: Mapping[str, Secret | None],
        start_from: int | None,
    ) -> NewIntegration:
        """What it is as an integration that is added."""
        return NewIntegration(
            app_id=app_id,
            name=name,
            endpoint=self.endpoint,
            api_key=api_key,
            secret_key=secret_key,
            user_id_kind=self.user_id,
            anonymous=self.anonymous,
            events=self.events,
            rename=self.rename,
            start_from=start_from,
            enabled=self.enabled,
            sandbox=self.sandbox,
            exclude=self.exclude,
            hashed=self.hashed,
            revenue=self.revenue,
            store_fees=self.store_fees,
            allow_custom_endpoint=self.allow_custom_endpoint,
            destination=self.destination,
            fields=self.fields,
            secret_fields=secret_fields,
            allow_shared_key=True,  # looked at when all of the file is in place
        )


class AppEntry(Part):
    """A Nami app: the plan of its organisation, and its integrations."""

    plan: Literal["paid", "free"] | None = Field(
        None, description="The plan of the app's organisation; what is not given stays as it is."
    )
    integrations: dict[Name, IntegrationEntry] = Field(
        {}, description="The integrations of the app by name.", json_schema_extra={"additionalProperties": False}
    )


class Document(Part):
    """The integrations of nami-amp-pipeline, as code."""

    version: Literal[1] = Field(description="The version of this format.")
    name: Annotated[str, _by(_file_name)] | None = Field(
        None, description="What the file is called where its integrations are shown; by default its file name."
    )
    apps: dict[AppId, AppEntry] = Field(
        description="The Nami apps by id.", json_schema_extra={"additionalProperties": False}
    )

    def entries(self) -> Iterator[tuple[str, str, IntegrationEntry]]:
        """App id, name and entry of each integration, in order of the keys."""
        for app_id, app in sorted(self.apps.items()):
            for name, entry in sorted(app.integrations.items()):
                yield app_id, name, entry


def json_schema() -> dict[str, Any]:
    """The JSON schema of the file, which docs/integrations.schema.json holds."""
    return {"$schema": _SCHEMA_DIALECT, **Document.model_json_schema(by_alias=True)}


def _held_to(rule: Callable[[T], object], value: T) -> T:
    try:
        rule(value)
    except Misconfigured as error:
        raise ValueError(str(error)) from None
    return value
