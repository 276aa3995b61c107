"""What the demo's local Amplitude received, asked of it over HTTP, and what was sent to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow.compute as pc
import pyarrow.parquet as pq
import requests
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.demo.setup import demo_key
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.sample import Persona, personas_of
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration

_SECONDS: Final = 30.0

SHOWN: Final = (("radio-nami", "ada"), ("radio-nami", "bo"), ("fit-nami", "cleo"))
"""Three users with a story, by app: two of them known by their External ID, one by Nami's user id."""


class LocalAmplitude:
    """The sandbox as its page sees it.

    Args:
        url: without a slash at the end.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def events_by_type(self, app_id: str) -> dict[str, int]:
        """Distinct events of an app's project."""
        hint = "…" + demo_key(app_id)[-4:]
        for project in self._get("summary")["projects"]:
            if project["api_key"] == hint:
                found: dict[str, int] = project["event_types"]
                return found
        return {}

    def user(self, app_id: str, user_id: str) -> dict[str, Any] | None:
        """A user's profile, or None if none of that id was ever seen."""
        answer = self._get("users", {"api_key": demo_key(app_id), "user_id": user_id})
        return next((user for user in answer["users"] if user["user_id"] == user_id), None)

    def audit(self) -> dict[str, Any]:
        """What it noticed about the sender since it was started."""
        return self._get("audit")

    def _get(self, name: str, parameters: Mapping[str, str] | None = None) -> dict[str, Any]:
        try:
            answer = requests.get(f"{self.url}/sandbox/{name}", params=parameters, timeout=_SECONDS)
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise Blocked(f"the local Amplitude at {self.url} does not answer: {type(error).__name__}") from None
        return found


def sent_by_type(context: Context, integration: Integration) -> dict[str, int]:
    """Events that were acknowledged, by the name they were sent under, read from the receipts."""
    table = tables.outboxes
    with context.store.begin() as tx:
        names = tx.execute(
            sa.select(table.c.receipts_file).where(
                table.c.integration_id == integration.id, table.c.receipts_file.is_not(None)
            )
        ).scalars().all()  # fmt: skip
    counts: dict[str, int] = {}
    for name in names:
        receipts = pq.read_table(context.folder.fetch(name), columns=["event_type", "state"])
        delivered = receipts.filter(pc.equal(receipts["state"], "delivered"))["event_type"]
        for pair in pc.value_counts(delivered).to_pylist():
            sent_as = integration.rename.get(pair["values"], pair["values"])
            counts[sent_as] = counts.get(sent_as, 0) + pair["counts"]
    return counts


@dataclass(frozen=True)
class Person:
    """A member of the cast as Amplitude knows them.

    Attributes:
        app_id: the app.
        member: who they are in the sample.
        user_id: Amplitude's.
        profile: as the sandbox holds it; None if nothing arrived.
    """

    app_id: str
    member: Persona
    user_id: str
    profile: Mapping[str, Any] | None


def people(amplitude: LocalAmplitude, integrations: Sequence[Integration]) -> list[Person]:
    """The three users that the demo shows."""
    kinds = {integration.app_id: integration.user_id_kind for integration in integrations}
    found = []
    for app_id, name in SHOWN:
        member = next(persona for persona in personas_of(app_id) if persona.name == name)
        by_external = kinds[app_id] == "external_id" and member.external_id is not None
        user_id = member.external_id if by_external and member.external_id is not None else member.user_id
        found.append(Person(app_id, member, user_id, amplitude.user(app_id, user_id)))
    return found
