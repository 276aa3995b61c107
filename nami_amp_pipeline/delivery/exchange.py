"""A request and its answer under way: the deadlines of each part, and their progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nami_amp_pipeline.delivery.guarded_socket import GuardedSocket


class NoAnswer(Exception):  # an outcome like an answer, that happens to be raised
    """There is no whole answer to this request.

    Attributes:
        kind: ``no_connection``, ``proxy``, ``tls``, ``timeout``, ``reset``, ``truncated``, ``out_of_step``, ``late``,
            ``bad_address`` or ``failed``.
        maybe_stored: whether the request may have reached the server.
        detail: the words of the system or the TLS library, if any.
    """

    def __init__(self, kind: str, *, maybe_stored: bool, detail: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail
        self.maybe_stored = maybe_stored


class OutOfStepError(OSError):
    """Received bytes that cannot be the answer to the current request."""


class LateError(OSError):
    """The right to send this request has expired."""


class Exchange:
    """A request and its answer under way, in one thread.

    Args:
        deadline: the monotonic time by which the whole answer must have arrived.
        send_until: the monotonic time after which no more of the request may be sent.

    Attributes:
        begun: whether a byte of the request may have been sent.
        complete: whether the whole request was given to the system.
        trouble: the kind of :class:`NoAnswer` that results, if known.
        socket: the connection that carries it.
    """

    def __init__(self, deadline: float, send_until: float) -> None:
        self.deadline = deadline
        self.send_until = send_until
        self.begun = False
        self.complete = False
        self.trouble = ""
        self.detail = ""
        self.socket: GuardedSocket | None = None

    def left(self) -> float:
        """Seconds to the deadline.

        Raises:
            TimeoutError: it is over.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            self.note("timeout")
            raise TimeoutError("the exchange took too long")
        return left

    def check_may_send(self) -> None:
        """Checks that this request may still be sent.

        Raises:
            LateError: it may not.
        """
        if time.monotonic() > self.send_until:
            self.note("late")
            raise LateError("the right to send this request has expired")

    def out_of_step(self) -> OutOfStepError:
        """The error for unexpected bytes."""
        self.note("out_of_step")
        return OutOfStepError("received bytes that do not belong to this request")

    def note(self, trouble: str, detail: str | None = None) -> None:
        """Notes an error; only the first counts."""
        if not self.trouble:
            self.trouble, self.detail = trouble, detail or ""

    def no_answer(self) -> NoAnswer:
        """The error to raise after a failure."""
        kind = self.trouble or ("truncated" if self.begun else "bad_address")
        return NoAnswer(kind, maybe_stored=self.begun, detail=self.detail)

    def finish(self) -> None:
        """The answer is whole: no byte may follow it.

        If it came before the request was sent whole, the server would take the rest for another request: the connection
        is closed.

        Raises:
            OutOfStepError: something has.
        """
        if self.socket is None:
            return
        if self.socket.early or not self.complete:
            self.abort()
        else:
            self.socket.answered()

    def break_off(self) -> None:
        """Breaks the connection off, from another thread."""
        if self.socket is not None:
            self.socket.break_off()

    def abort(self) -> None:
        """Closes the connection, so that it is not used again."""
        if self.socket is not None:
            self.socket.kill()


_current = threading.local()


@contextmanager
def exchanging(exchange: Exchange) -> Iterator[None]:
    """Makes an exchange this thread's."""
    _current.exchange = exchange
    try:
        yield
    finally:
        _current.exchange = None


def is_exchanging() -> bool:
    """Whether this thread is within an exchange."""
    return getattr(_current, "exchange", None) is not None


def current() -> Exchange:
    """The exchange of this thread.

    Raises:
        RuntimeError: there is none: a guarded session was used without one.
    """
    exchange: Exchange | None = getattr(_current, "exchange", None)
    if exchange is None:
        raise RuntimeError("a guarded session is used within an exchange only")
    return exchange
