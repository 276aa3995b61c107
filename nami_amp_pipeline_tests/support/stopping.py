"""Stops this very process (SIGSTOP) at one instruction of the way from the lease to the socket.

``python -m nami_amp_pipeline_tests.support.stopping URL PLACE SECONDS`` posts one request that may be sent for so many
seconds, and says what came of it.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from nami_amp_pipeline.delivery import http_session
from nami_amp_pipeline.delivery.exchange import Exchange, current
from nami_amp_pipeline.delivery.guarded_socket import GuardedSocket
from nami_amp_pipeline.delivery.recorder import Recorder
from nami_amp_pipeline.delivery.send_alarm import alarm
from nami_amp_pipeline.delivery.transport import HttpTransport, NoAnswer, Request

LOOKED = "between the last look and the send"
PLACES = {
    "between looking at the lease and stamping": (Recorder, "renew_for", "after"),
    "between stamping and the deadline": (HttpTransport, "post", "before"),
    "between the deadline and connecting": (http_session, "_connected", "before"),
    "between connecting and sending": (GuardedSocket, "__init__", "after"),
    "between head and body": (GuardedSocket, "sendall", "before"),
    LOOKED: (Exchange, "check_may_send", "after"),
}
"""Each by what is called just before or after it."""


def stop_at(place: str, time_of_many: int = 1) -> None:
    """Makes this process stop the first, second, … time that it comes to a place."""
    owner, name, side = PLACES[place]
    inner: Callable[..., Any] = getattr(owner, name)
    seen = 0

    def come() -> None:
        nonlocal seen
        seen += 1
        if seen == time_of_many:
            # To this very thread: another one would be told first, and this one would run on for a moment.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    def outer(*args: Any, **kwargs: Any) -> Any:
        here = _is_here(place)
        if side == "before" and here:
            come()
        result = inner(*args, **kwargs)
        if side == "after" and here:
            come()
        return result

    setattr(owner, name, outer)


def _is_here(place: str) -> bool:
    if place == LOOKED:
        return sys._getframe(2).f_code.co_name == "_send"
    return place != "between head and body" or current().begun


def main() -> None:
    """The command line."""
    url, place, seconds = sys.argv[1:]
    stop_at(place)
    alarm.enable()
    begun = time.monotonic()
    try:
        said = str(HttpTransport(20.0).post(Request(url, b"x" * 100_000, send_until=begun + float(seconds))).status)
    except NoAnswer as error:
        said = f"{error.kind} {error.maybe_stored}"
    sys.stdout.write(said + "\n")


if __name__ == "__main__":
    main()
