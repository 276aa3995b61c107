"""What receives the events of an integration, as its form speaks of it: its words, its address, its own fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.control_center.words import sentence
from nami_amp_pipeline.destinations import DEFAULT, DESTINATIONS, SHARED_FIELDS, destination_of
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.integrations import mistakes_of_fields, rules

if TYPE_CHECKING:
    from nami_amp_pipeline.delivery.destination import Field
    from nami_amp_pipeline.secrets import Secret

OWN: Final = "field."
"""Before the name of a field that the destination has of its own and that is no secret."""

OWN_SECRET: Final = "secret."  # noqa: S105 - the beginning of a name
"""Before the name of one that is: it is never put back into a page."""

REMOVE: Final = "remove."
"""Before the name of a secret that goes."""


_LONGEST_KEY: Final = 1_000


@dataclass(frozen=True)
class Receiver:
    """What receives the events.

    Attributes:
        name: of the destination.
        title: in a sentence, such as ``the HTTP endpoint``.
        fields: all of its fields.
        endpoints: its own addresses by short name.
    """

    name: str
    title: str
    fields: Sequence[Field]
    endpoints: Mapping[str, str]

    @staticmethod
    def of(name: str) -> Receiver:
        """A destination by its name.

        Raises:
            Misconfigured: there is none, or it cannot be used.
        """
        found = destination_of(name)
        return Receiver(name, found.title, found.fields, found.endpoints)

    @staticmethod
    def all() -> list[Receiver]:
        """Those that can be used."""
        found = []
        for name in DESTINATIONS:
            try:
                found.append(Receiver.of(name))
            except Misconfigured:
                continue
        return found

    @property
    def is_amplitude(self) -> bool:
        """Whether it is what most texts are written for."""
        return self.name == DEFAULT

    @property
    def called(self) -> str:
        """Its name as a heading: ``HTTP endpoint``."""
        return sentence(self.title.removeprefix("the "))

    def field(self, name: str) -> Field | None:
        """One of its fields; None if it has none of that name."""
        return next((field for field in self.fields if field.name == name), None)

    @property
    def own(self) -> list[Field]:
        """The fields that only it has."""
        return [field for field in self.fields if field.name not in SHARED_FIELDS]

    @property
    def key_label(self) -> str:
        """What its key is called."""
        field = self.field("api_key")
        return "API Key" if self.is_amplitude or field is None else sentence(field.label)

    def wrong_address(self, url: str, options: Options, kept: str) -> str:
        """Why an address cannot be typed here; empty if it can.

        Args:
            url: what was typed.
            options: what the operator allows.
            kept: the address that the integration has already, which need not be allowed.
        """
        if not url:
            return "Enter the address"
        if url != kept and not options.allows(url):
            return "This address is not allowed here. " + options.allowed_addresses
        try:
            rules.check_endpoint(url, allow_custom=True, destination=self.name)
        except Misconfigured as error:
            return sentence(str(error))
        return ""

    def wrong_fields(self, fields: Mapping[str, str], secrets: Mapping[str, Secret | None]) -> dict[str, str]:
        """What is wrong with the fields that only it has, by the name in the form.

        Args:
            fields: those that are no secrets, as they were typed.
            secrets: those that were typed; None of those that are stored and stay.
        """
        wrong = mistakes_of_fields(self.name, fields, secrets)
        return {
            (OWN_SECRET if field.is_secret else OWN) + field.name: sentence(wrong[field.name])
            for field in self.own
            if field.name in wrong
        }


def wrong_key(key: Secret | None) -> str:
    """What is wrong with a key that was typed; empty if nothing is."""
    if key is None:
        return ""
    text = key.reveal()
    if len(text.split()) != 1 or not text.isprintable():
        return "A key is one word, without spaces or line ends"
    return f"A key has at most {_LONGEST_KEY:,} characters" if len(text) > _LONGEST_KEY else ""


def odd_key(key: Secret | None) -> str:
    """What is unusual about a key of Amplitude's; it can be saved all the same."""
    text = key.reveal() if key is not None else ""
    if not text or (len(text) == 32 and all(character in "0123456789abcdef" for character in text)):
        return ""
    return f"Amplitude's keys have 32 characters of 0-9 and a-f; this one has {len(text)}"
