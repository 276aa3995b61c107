"""What a broken or hostile source might send: only for tests, switched off unless asked for."""

from __future__ import annotations

import random
from typing import Final

from nami_amp_pipeline.sample import payloads as rendering
from nami_amp_pipeline.sample.payloads import Event

_BROKEN: Final = (None, "", "null", "[]", '"text"', "17", "true", '{"id":"1"', "{'id': 1}", "NaN", "\u00a0", "{}x")
_EXTERNAL: Final = (
    "NULL",
    "0",
    " none ",
    "",
    "   ",
    "-1",
    "Anonymous",
    "00000000-0000-0000-0000-000000000000",
    " padded ",
    "7",
    'quo"te\\back\nline',
    "\u0001control\u001f",
    "ünïcødé-✓",
    "👩‍👩‍👧‍👦",
    "مرحبا",
    "e\u0301",
    "x" * 900,
)
_TEXTS: Final = (
    "x" * 20_000,
    "\u0001\u0002\u001f\t\n\r",
    "👩‍👩‍👧‍👦" * 50,
    '"\\"\\\\"',
    "\u2028\u2029\ufeff",
    "'; drop table nami_events; --",
)


def external_id(rng: random.Random) -> tuple[str, str]:
    """An External ID, with its type, that Amplitude reserves or that is otherwise hard to carry."""
    return _EXTERNAL[int(rng.random() * len(_EXTERNAL))], "uuid"


def spoil(event: Event, rng: random.Random) -> Event:
    """The event with a payload that is not an object, or with texts that are hard to carry."""
    if rng.random() < 0.5:
        return event._replace(has_broken=True, broken=_BROKEN[int(rng.random() * len(_BROKEN))])
    awkward = rendering.text(_TEXTS[int(rng.random() * len(_TEXTS))])
    return event._replace(body=(*event.body, f',"note":{awkward}'))
