"""Sentences that are written of Amplitude, as they are said of another destination."""

from __future__ import annotations

import re
from typing import Final, overload

from nami_amp_pipeline.destinations import DEFAULT, title_of

_NAME: Final = re.compile(r"\bAmplitude\b")
_ONLY_THERE: Final = (
    (": more than 30 events a second", ""),
    ("Look at https://status.amplitude.com", "Look at the receiver's own logs"),
    ("server that is not Amplitude's HTTP API", "server that is not the receiver"),
)


@overload
def said_of(destination: str, text: str) -> str: ...
@overload
def said_of(destination: str, text: None) -> None: ...


def said_of(destination: str, text: str | None) -> str | None:
    """A sentence that may name Amplitude, with the name of another destination in its place.

    Args:
        destination: its name in the store.
        text: one sentence; None stays None.
    """
    if text is None or destination == DEFAULT:
        return text
    for ours, theirs in _ONLY_THERE:
        text = text.replace(ours, theirs)
    found = _NAME.sub(title_of(destination), text)
    return found[:1].upper() + found[1:] if text[:1].isupper() else found
