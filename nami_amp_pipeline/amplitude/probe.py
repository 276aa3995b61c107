"""Whether an endpoint can be reached, without posting anything."""

from __future__ import annotations

import http.client
import ssl
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import certifi


@dataclass(frozen=True)
class Reached:
    """What came of it.

    Attributes:
        problem: why it cannot be reached, in a few words; None if it can.
        date: what the other side's clock says, in seconds since the epoch, to the second; None if it did not say.
    """

    problem: str | None
    date: float | None = None


def reach(url: str, timeout_seconds: float) -> Reached:
    """Connects to an endpoint (with TLS where it is https) and asks for its address, which posts no event."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=certifi.where())
            connection = http.client.HTTPSConnection(host, parts.port, timeout=timeout_seconds, context=context)
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=timeout_seconds)
        try:
            connection.connect()
            connection.request("HEAD", parts.path or "/", headers={"User-Agent": "nami-amp-pipeline"})
            return Reached(None, _seconds(connection.getresponse().getheader("Date")))
        finally:
            connection.close()
    except ssl.SSLError as error:
        return Reached(
            f"no secure connection: {getattr(error, 'verify_message', None) or error.reason or 'TLS failed'}"
        )
    except TimeoutError:
        return Reached(f"no answer in {timeout_seconds:g} s")
    except OSError as error:
        return Reached(error.strerror or "the connection broke")
    except (http.client.HTTPException, ValueError):
        return Reached("what answers there is no HTTP server")


def _seconds(date: str | None) -> float | None:
    try:
        moment = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
