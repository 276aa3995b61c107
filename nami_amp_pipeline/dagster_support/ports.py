"""Ports of this machine: finds a free one, holds it until a process is to listen there, says whether it was lost."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from nami_amp_pipeline.errors import Blocked

HOST: Final = "127.0.0.1"

_HERE: Final = (HOST, "localhost")
_TRIED: Final = 20
_ASK_SECONDS: Final = 5.0
_IN_USE: Final = os.strerror(errno.EADDRINUSE).lower()


class HeldPort:
    """A port on which this process listens, without ever answering, so that no other takes it meanwhile.

    Args:
        port: the port; 0 for any.

    Raises:
        OSError: it is taken, or this user may not have it.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        try:
            # Without it, connections of a server that has just ended would keep the port for a minute.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((HOST, port))
            self._socket.listen()
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Leaves the port to the process that is to have it."""
        self._socket.close()


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of this machine, and this user may."""
    held = _held(port)
    if held is not None:
        held.close()
    return held is not None


def hold_port(wanted: int | None, last: int | None, first: int, avoid: Collection[int] = ()) -> HeldPort:
    """A port for pages: the one that is wanted, that of the last session, or the first that is free.

    Args:
        wanted: what the user chose; None if that is left to this function.
        last: of the last session, if there was one.
        first: where to begin to look.
        avoid: ports that others are to have.

    Raises:
        Blocked: the one that is wanted is taken.
    """
    if wanted is not None:
        held = None if wanted in avoid else _held(wanted)
        if held is None:
            raise taken(wanted)
        return held
    usual = range(first, min(first + _TRIED, 65_536))
    for port in [last, *usual] if last else usual:
        held = None if port in avoid else _held(port)
        if held is not None:
            return held
    return HeldPort(0)


def taken(port: int) -> Blocked:
    """The error that a port that the user chose cannot be had."""
    return Blocked(f"port {port} is taken: give --port another one, or leave it out")


def was_lost(port: int, log: Path) -> bool:
    """Whether a process that has ended did so because another listened on its port.

    Args:
        port: where it was to listen.
        log: what it said.
    """
    try:
        said = log.read_text("utf-8", "replace").lower()
    except OSError:
        said = ""
    return _IN_USE in said or not is_free(port)


def local_ports(endpoints: Sequence[str]) -> list[int]:
    """The ports of endpoints where a local Amplitude of this machine can be, each once, in their order."""
    here = [parts for parts in map(urlsplit, endpoints) if parts.scheme == "http" and parts.hostname in _HERE]
    return list(dict.fromkeys(parts.port for parts in here if parts.port))


def _held(port: int) -> HeldPort | None:
    """Holds a port, or gives None where that cannot be."""
    # macOS lets a process have a port of one address although another has it for all addresses.
    with socket.socket() as asking:
        asking.settimeout(_ASK_SECONDS)
        if asking.connect_ex((HOST, port)) == 0:
            return None
    try:
        return HeldPort(port)
    except OSError:
        return None
