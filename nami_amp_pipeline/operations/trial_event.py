"""One made-up event, posted to show that everything up to Amplitude's charts works."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import micros
from nami_amp_pipeline.delivery.destination import Outcome, Target
from nami_amp_pipeline.delivery.transport import HttpAnswer, HttpTransport, NoAnswer
from nami_amp_pipeline.operations.connection import ASK_SECONDS
from nami_amp_pipeline.operations.reasons import means
from nami_amp_pipeline.stages.encoding import encoded_alone
from nami_amp_pipeline.state.own_fields import as_set, secrets_of

if TYPE_CHECKING:
    from nami_amp_pipeline.context import Context
    from nami_amp_pipeline.state.integrations import Integration

PREFIX: Final = "nami-test-"
"""The ids of made-up users begin with it, so that people find them, and tell them from others."""

_MOST_SHOWN: Final = 2_000


@dataclass(frozen=True)
class TrialEvent:
    """What became of a made-up event.

    Attributes:
        ok: whether the destination took it.
        title: what the destination is called.
        user: the id of its user.
        event: as it was posted, as JSON text.
        status: the HTTP status; None without an answer.
        answer: what was answered, without the key; or why there is no answer.
        milliseconds: how long it took.
    """

    ok: bool
    title: str
    user: str
    event: str
    status: int | None
    answer: str
    milliseconds: int

    @property
    def called(self) -> str:
        """The destination, as a sentence begins with it."""
        return self.title[:1].upper() + self.title[1:]

    def to_json(self) -> dict[str, Any]:
        """The object of ``integrations send-test-event --json``."""
        return {
            "ok": self.ok,
            "user_id": self.user,
            "event": orjson.loads(self.event),
            "status": self.status,
            "answer": self.answer,
            "milliseconds": self.milliseconds,
        }


def send_trial_event(context: Context, integration: Integration, event_type: str) -> TrialEvent:
    """Posts one made-up event as an integration would; nothing is recorded here.

    Args:
        context: the process at work.
        integration: whose endpoint, key and names are used, even if it is off.
        event_type: Nami's.
    """
    user = f"{PREFIX}{secrets.token_hex(4)}"
    event = _event(integration, event_type, user, micros(context.clock))
    destination = as_set(integration, context.cipher)
    own = tuple(secrets_of(destination, integration, context.cipher).values())
    target = Target(destination, integration.endpoint, context.cipher.decrypt(integration.api_key), own)
    fields = {
        "id": orjson.loads(event)["insert_id"], "event_type": event_type, "user_id": user, "identity": f"u:{user}",
        "created_date": micros(context.clock),
    }  # fmt: skip
    event = encoded_alone(as_set(integration, None), fields, event)
    frame = target.frame
    transport = HttpTransport(min(ASK_SECONDS, context.settings.http_timeout_seconds))
    started = time.monotonic()
    answer: HttpAnswer | NoAnswer
    try:
        answer = transport.post(target.request(frame.head + event + frame.tail, context.clock()))
    except NoAnswer as error:
        answer = error
    finally:
        transport.close()
    took = int((time.monotonic() - started) * 1_000)
    verdict = destination.judge(answer, [(f"u:{user}",)], now=context.clock())
    status = answer.status if isinstance(answer, HttpAnswer) else None
    said = answer.body.decode(errors="replace") if isinstance(answer, HttpAnswer) else means(answer.kind)
    return TrialEvent(
        verdict.outcome is Outcome.DELIVERED and not verdict.dead and not verdict.paused,
        destination.title,
        user,
        event.decode(),
        status,
        target.clean(said)[:_MOST_SHOWN],
        took,
    )


def made_up_event(integration: Integration, event_type: str, now: int) -> str:
    """An event like those that are sent, with made-up values, as JSON text.

    Args:
        integration: whose names are used.
        event_type: Nami's.
        now: in µs since the epoch.
    """
    return _event(integration, event_type, f"{PREFIX}user", now).decode()


_EXAMPLES: Final[Mapping[str, Any]] = {"texts": ["example"], "text": "example", "number": 0, "flag": False}


def _event(integration: Integration, event_type: str, user: str, now: int) -> bytes:
    known = next(kind for kind in contract.EVENT_TYPES if kind.name == event_type)
    properties: dict[str, Any] = {contract.CATEGORY: known.category, "namiml_test": True}
    if known.subcategory is not None:
        properties[contract.SUBCATEGORY] = known.subcategory
    event: dict[str, Any] = {
        "event_type": integration.rename.get(event_type, event_type),
        "user_id": user,
        "time": now // 1_000,
        "insert_id": f"{user}-{secrets.token_hex(8)}",
        "event_properties": properties,
    }
    if known.carries_device:
        event["device_id"] = f"{user}-device"
    if known.carries_state:
        event["user_properties"] = {prop.name: _EXAMPLES[prop.kind] for prop in contract.PROPERTIES}
    return orjson.dumps(event)
