"""A connection's socket that sends nothing too late, waits for nothing too long, and accounts for every byte.

Received bytes that have not been read yet are in one place, :attr:`GuardedSocket.buffer`. A request starts only if it
is empty, and a connection is reused only if nothing followed an answer: so an answer always belongs to the request
before it.
"""

from __future__ import annotations

import io
import re
import select
import socket
import ssl
import time
from contextlib import suppress
from typing import Any

from urllib3.util.ssltransport import SSLTransport

from nami_amp_pipeline.delivery.exchange import Exchange, current
from nami_amp_pipeline.delivery.send_alarm import alarm

IDLE_SECONDS = 5.0
"""A connection that was idle for longer is not reused: the server may be about to close it."""

_RECEIVED_AT_ONCE = 65_536
_SENT_AT_ONCE = 1_048_576
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_INTERIM = re.compile(rb"HTTP/1\.[01] 1(?!01)\d\d[^\n]*\n(?:[^\r\n][^\n]*\n)*\r?\n")
_BEGINNINGS = (b"HTTP/1.1 1", b"HTTP/1.0 1")


class GuardedSocket:
    """A socket for `http.client` that obeys the exchange of its thread.

    Args:
        inner: the connection, TLS included.
        for_proxy: whether it only talks to a proxy so far, so that no byte belongs to a request.

    Attributes:
        buffer: received bytes that have not been read.
        ended: whether the server has closed.
        broke_off: whether the connection ended where a line was expected.
        answers: the number of whole answers so far.
        early: whether a final answer began before the request was sent whole.
    """

    def __init__(self, inner: socket.socket | SSLTransport, *, for_proxy: bool = False) -> None:
        self.buffer = bytearray()
        self.ended = False
        self.broke_off = False
        self.answers = 0
        self.early = False
        self._inner: Any = inner
        self._for_proxy = for_proxy
        # TLS within TLS (an https proxy) cannot be polled: such a connection carries only one request.
        self._can_look = not isinstance(inner, SSLTransport)
        if self._can_look:
            inner.settimeout(0.0)
        self._used_at = time.monotonic()
        self._readers = 0
        self._closing = False

    # -- sending ---------------------------------------------------------------------------------------------------

    def sendall(self, data: Any) -> None:
        """Sends all data; before each piece, checks that it may still be sent and that nothing came unexpectedly.

        Raises:
            LateError: the right to send has expired.
            TimeoutError: the exchange has.
            OutOfStepError: bytes came that belong to no request.
            OSError: the connection broke.
        """
        exchange = current()
        exchange.socket = self
        rest = memoryview(data)
        while rest:
            self.look()
            self._check_early(exchange)
            exchange.left()
            sent = self._send(exchange, rest[:_SENT_AT_ONCE])
            rest = rest[sent:]
            if not sent:
                events = select.POLLOUT if self.buffer else select.POLLOUT | select.POLLIN
                self._wait(events, exchange, sending=True)

    def _send(self, exchange: Exchange, piece: memoryview) -> int:
        with alarm.until(exchange.send_until):
            exchange.check_may_send()
            try:
                if not self._can_look:
                    self._inner.settimeout(exchange.left())
                sent = int(self._inner.send(piece))
            except BlockingIOError:
                return 0
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                exchange.begun = exchange.begun or not self._for_proxy
                return 0
            except OSError:
                exchange.begun = exchange.begun or not self._for_proxy
                exchange.note("reset")
                raise
        exchange.begun = exchange.begun or not self._for_proxy
        return sent

    def _check_early(self, exchange: Exchange) -> None:
        """Checks that only interim answers came before the request was sent whole."""
        if not self.buffer:
            if self.ended and not exchange.begun:
                exchange.note("reset")
                raise ConnectionResetError("the other side has closed")
            return
        if self._for_proxy or not exchange.begun:
            raise exchange.out_of_step()
        if not _is_interim(bytes(self.buffer)):
            if self.answers:  # it may be a second answer to the request before
                raise exchange.out_of_step()
            self.early = True
            raise BrokenPipeError(
                "the answer came before the request was sent"
            )  # the answer is read now; the rest is not sent

    # -- receiving -------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Reads what has arrived, without waiting."""
        if not self._can_look or self.ended:
            return
        try:
            data = self._inner.recv(_RECEIVED_AT_ONCE)
        except _WOULD_BLOCK:
            return
        except OSError:
            data = b""
        self.buffer += data
        self.ended = not data

    def receive(self) -> bool:
        """Waits for more; False at the end.

        Raises:
            TimeoutError: nothing came in time.
            OSError: the connection broke.
        """
        exchange = current()
        while not self.ended:
            left = exchange.left()
            try:
                if not self._can_look:
                    self._inner.settimeout(left)
                data = self._inner.recv(_RECEIVED_AT_ONCE)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, exchange)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait(select.POLLIN, exchange)
            except TimeoutError:
                exchange.note("timeout")
                raise
            except ssl.SSLEOFError:
                self.ended = True
            except OSError:
                exchange.note("reset")
                raise
            else:
                self.ended = not data
                self.buffer += data
                return bool(data)
        return False

    def _wait(self, events: int, exchange: Exchange, *, sending: bool = False) -> None:
        left = exchange.left()
        if sending:
            left = min(left, max(0.0, exchange.send_until - time.monotonic()))
        poll = select.poll()
        poll.register(self._inner.fileno(), events)
        poll.poll(left * 1_000 + 1)

    def answered(self) -> None:
        """A whole answer has been read.

        Raises:
            OutOfStepError: bytes followed it.
        """
        self.look()
        if self.buffer:
            raise current().out_of_step()
        self.answers += 1
        self.early = False
        self._used_at = time.monotonic()

    def is_usable(self) -> bool:
        """Whether it may carry another request: it is fresh and open, and nothing arrived unexpectedly."""
        if self._closing or not self._can_look or time.monotonic() - self._used_at > IDLE_SECONDS:
            return False
        self.look()
        return not self.ended and not self.buffer

    # -- what http.client wants of a socket ------------------------------------------------------------------------

    def makefile(self, _mode: str = "rb", *_args: Any, **_kwargs: Any) -> io.BufferedIOBase:
        """What an answer is read from."""
        self._readers += 1
        return _AnswerReader(self)

    def settimeout(self, _seconds: float | None) -> None:
        """Nothing: the exchange has a deadline, and the socket obeys that."""

    def fileno(self) -> int:
        """The number of the connection."""
        return int(self._inner.fileno())

    def close(self) -> None:
        """Closes it once nobody reads from it: `http.client` closes before it has read an answer that ends with it."""
        self._closing = True
        if self._readers == 0:
            self._inner.close()

    def reader_closed(self) -> None:
        """One that read from it has finished."""
        self._readers -= 1
        if self._closing and self._readers <= 0:
            self._inner.close()

    def kill(self) -> None:
        """Closes it at once."""
        self.break_off()
        self._inner.close()

    def break_off(self) -> None:
        """Ends it under whoever uses it, who then closes it: its number must not be another socket's meanwhile."""
        self._closing = True
        with suppress(OSError, ValueError, TypeError):
            socket.socket.shutdown(self._inner, socket.SHUT_RDWR)


class _AnswerReader(io.BufferedIOBase):
    """Reads from a guarded socket's buffer, and nowhere else."""

    def __init__(self, guard: GuardedSocket) -> None:
        self._guard = guard

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        buffer = self._guard.buffer
        while size is None or size < 0 or len(buffer) < size:
            if not self._guard.receive():
                break
        return self._take(len(buffer) if size is None or size < 0 else size)

    def read1(self, size: int = -1, /) -> bytes:
        buffer = self._guard.buffer
        if not buffer:
            self._guard.receive()
        return self._take(len(buffer) if size < 0 else size)

    def readinto(self, into: Any, /) -> int:
        data = self.read(len(into))
        into[: len(data)] = data
        return len(data)

    def peek(self, _size: int = 0, /) -> bytes:
        if not self._guard.buffer:
            self._guard.receive()
        return bytes(self._guard.buffer)

    def readline(self, size: int | None = -1, /) -> bytes:
        buffer = self._guard.buffer
        most = size if size is not None and size >= 0 else 2**31
        seen = 0
        while (end := buffer.find(b"\n", seen)) < 0 and len(buffer) < most:
            seen = len(buffer)
            if not self._guard.receive():
                self._guard.broke_off = True
                return self._take(most)
        return self._take(min(most, end + 1 if end >= 0 else most))

    def _take(self, size: int) -> bytes:
        buffer = self._guard.buffer
        taken = bytes(buffer[:size])
        del buffer[:size]
        return taken

    def close(self) -> None:
        if not self.closed:
            self._guard.reader_closed()
        super().close()


def _is_interim(text: bytes) -> bool:
    """Whether what came is interim answers only, the last of them perhaps not whole yet."""
    while found := _INTERIM.match(text):
        text = text[found.end() :]
    return any(text.startswith(beginning[: len(text)]) for beginning in _BEGINNINGS)
