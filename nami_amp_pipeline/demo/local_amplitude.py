"""The demo's local Amplitude: the one of this home that runs already, or its own at the port of the last time."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import requests

from nami_amp_pipeline.demo.setup import APPS, demo_integration_keys, demo_key, journal
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.sandbox import Options, Project, Sandbox, SandboxServer
from nami_amp_pipeline.settings import Settings

PORT: Final = 8765
_PORTS_TRIED: Final = 20
_ASK_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Place:
    """Where it listens.

    Attributes:
        url: of its page, without a slash at the end.
        endpoint: what integrations post to.
        is_of_the_demo: whether it ends with the demo; else another process runs it.
    """

    url: str
    endpoint: str
    is_of_the_demo: bool

    @property
    def port(self) -> int:
        """The port."""
        return urlsplit(self.url).port or 80


@contextmanager
def local_amplitude(settings: Settings, port: int | None, endpoints: Sequence[str]) -> Iterator[Place]:
    """A sandbox that remembers; without throttling, as the sample's whole month arrives in a second.

    Args:
        settings: of the home.
        port: where it is to listen, 0 for any; None for the port of the last time, or one that is free.
        endpoints: of the demo's integrations, if there are any yet.

    Raises:
        Blocked: no port is to be had, or the file of its events cannot be used.
    """
    try:
        projects = {
            demo_key(app_id): Project(name=key) for app_id, key in zip(APPS, demo_integration_keys(), strict=True)
        }
        sandbox = Sandbox(projects=projects, any_key=True, options=Options(throttle=False), journal=journal(settings))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise Blocked(f"cannot open {journal(settings)}: {error.strerror or error}") from None
        yield _running(settings, port, endpoints)
        return
    try:
        server = _listen(sandbox, port, [found for endpoint in endpoints if (found := urlsplit(endpoint).port)])
        try:
            yield Place(server.url, server.endpoint, is_of_the_demo=True)
        finally:
            server.stop()
    finally:
        sandbox.close()


def _running(settings: Settings, port: int | None, endpoints: Sequence[str]) -> Place:
    """The sandbox that another process runs with the events of this home, whose page may be open in a browser."""
    for endpoint in dict.fromkeys(endpoints):
        parts = urlsplit(endpoint)
        url = f"{parts.scheme}://{parts.netloc}"
        if port in (None, 0, parts.port) and _answers(url):
            return Place(url, endpoint, is_of_the_demo=False)
    raise Blocked(
        f"another process runs the local Amplitude with the events of {journal(settings)}: end it, or run the demo "
        "with its port"
    )


def _answers(url: str) -> bool:
    with requests.Session() as asking:
        asking.trust_env = False  # no proxy leads to this machine
        try:
            return asking.get(f"{url}/sandbox/summary", timeout=_ASK_SECONDS).ok
        except requests.RequestException:
            return False


def _listen(sandbox: Sandbox, port: int | None, known: Sequence[int]) -> SandboxServer:
    usual = range(PORT, PORT + _PORTS_TRIED)
    tried = [port] if port is not None else list(dict.fromkeys([*known, *usual]))
    reason = ""
    for number in tried:
        server = SandboxServer(sandbox, port=number)
        try:
            server.start()
        except OSError as error:
            reason = error.strerror or str(error)
            continue
        return server
    ports = f"port {port}" if port is not None else f"any port from {usual[0]} to {usual[-1]}"
    raise Blocked(f"the local Amplitude cannot listen on {ports}: {reason}")
