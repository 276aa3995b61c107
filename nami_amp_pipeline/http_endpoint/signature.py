"""Signs a batch as Standard Webhooks does, so that the receiver knows who sent it and that nobody changed it.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Final

from nami_amp_pipeline.secrets import Secret

ID: Final = "webhook-id"
TIMESTAMP: Final = "webhook-timestamp"
SIGNATURE: Final = "webhook-signature"

PREFIX: Final = "whsec_"
"""Begins a secret that is bytes in base64; another is its own bytes."""


def batch_id(body: bytes) -> str:
    """The id of a batch: of the same bytes always the same, so that the receiver can tell a repeat."""
    return f"msg_{hashlib.sha256(body).hexdigest()[:32]}"


def signed(secret: Secret, body: bytes, now: float) -> Mapping[str, str]:
    """The headers that sign a batch.

    Args:
        secret: which the receiver has too.
        body: as it is posted.
        now: seconds since the epoch.
    """
    name, at = batch_id(body), str(int(now))
    mac = hmac.new(key_of(secret), f"{name}.{at}.".encode() + body, hashlib.sha256)
    return {ID: name, TIMESTAMP: at, SIGNATURE: f"v1,{base64.b64encode(mac.digest()).decode()}"}


def key_of(secret: Secret) -> bytes:
    """The bytes of a secret."""
    text = secret.reveal()
    if text.startswith(PREFIX):
        try:
            return base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            pass
    return text.encode()
