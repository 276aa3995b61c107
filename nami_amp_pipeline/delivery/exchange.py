"""One request and its answer on the way: until when each part may happen, and how far both have come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nami_amp_pipeline.delivery.guarded_socket import GuardedSocket


class NoAnswer(Exception):  # an outcome like an answer, that happens to be raised
    """No whole answer came, or none that is this request's.

    Attributes:
        kind: ``refused``, ``proxy``, ``tls``, ``timeout``, ``reset``, ``truncated``, ``out_of_step``, ``late``,
            ``bad_address`` or ``failed``.
        maybe_stored: whether the request may have reached the other side.
        detail: what the system or the TLS library said of it, if anything.
    """

    def __init__(self, kind: str, *, maybe_stored: bool, detail: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail
        self.maybe_stored = maybe_stored


class OutOfStepError(OSError):
    """Bytes came that cannot be the answer to the request at hand."""


class LateError(OSError):
    """The right to send this request has run out."""


class Exchange:
    """See the module's docstring; one thread works on it.

    Args:
        deadline: the monotonic time by which the whole answer must be there.
        send_until: the monotonic time after which nothing more of the request may be sent.

    Attributes:
        begun: whether a byte of the request may have left.
        complete: whether all of it was given to the system.
        trouble: the kind of :class:`NoAnswer` that this ends in, once something noticed it.
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
        """Looks whether this request may still be sent.

        Raises:
            LateError: it may not.
        """
        if time.monotonic() > self.send_until:
            self.note("late")
            raise LateError("the right to send this request has run out")

    def out_of_step(self) -> OutOfStepError:
        """The error for bytes that nobody can account for."""
        self.note("out_of_step")
        return OutOfStepError("bytes came that are no answer to this request")

    def note(self, trouble: str, detail: str | None = None) -> None:
        """Remembers what went wrong; the first word counts."""
        if not self.trouble:
            self.trouble, self.detail = trouble, detail or ""

    def no_answer(self) -> NoAnswer:
        """What to raise after a failure."""
        kind = self.trouble or ("truncated" if self.begun else "bad_address")
        return NoAnswer(kind, maybe_stored=self.begun, detail=self.detail)

    def finish(self) -> None:
        """The answer is whole: nothing may have come behind it.

        Where it came before the request was whole, the rest of that would be taken for another request: the
        connection is closed.

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
        """Ends the connection under the thread that uses it; for other threads."""
        if self.socket is not None:
            self.socket.break_off()

    def abort(self) -> None:
        """Closes the connection, so that nobody uses it again."""
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
