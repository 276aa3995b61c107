"""The sandbox on a socket: a small HTTP/1.1 server that can also break connections the way networks do."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Final
from urllib.parse import unquote

from .answers import Answer
from .audit import Flight
from .core import Sandbox
from .settings import BATCH_PATH, MAX_BYTES, V2_PATH

_MAX_HEAD: Final = 64 * 1024
_MAX_BODY: Final = 2 * max(MAX_BYTES.values())
_READ_AHEAD: Final = 2**20
_GONE_POLL_S: Final = 0.02
_PIECE: Final = 2**18
_START_S: Final = 10.0
_STATUSES: Final = frozenset(status.value for status in HTTPStatus)


class _BadRequestError(Exception):
    """What came is not HTTP that this server speaks; the argument is the status to answer."""


@dataclass(frozen=True)
class _Head:
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    keep_alive: bool


class SandboxServer:
    """Serves a sandbox from a thread, for tests and benchmarks.

    Example:
        with SandboxServer(Sandbox()) as server:
            requests.post(server.endpoint, json=...)

    Attributes:
        sandbox: what it serves.
        host: the address it listens on.
        port: the port, known once it is started.
    """

    def __init__(self, sandbox: Sandbox, host: str = "127.0.0.1", port: int = 0) -> None:
        """Prepares; `start` or the ``with`` statement listens.

        Args:
            sandbox: what to serve.
            host: the address to listen on.
            port: the port; 0 takes a free port.
        """
        self.sandbox = sandbox
        self.host = host
        self.port = port
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._failure: OSError | None = None

    @property
    def url(self) -> str:
        """Where the page is, without a slash at the end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def endpoint(self) -> str:
        """The HTTP V2 API."""
        return self.url + V2_PATH

    @property
    def batch_endpoint(self) -> str:
        """The Batch Event Upload API."""
        return self.url + BATCH_PATH

    def start(self) -> None:
        """Listens.

        Raises:
            OSError: the address or port cannot be had.
        """
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="amplitude-sandbox", daemon=True)
        self._thread.start()
        ready.wait(_START_S)
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        """Breaks off what is open and frees the port."""
        if self._loop is not None and self._stop is not None and self._thread is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._loop = None

    def __enter__(self) -> SandboxServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, ready: threading.Event) -> None:
        async def run() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            try:
                await _listen(self.sandbox, self.host, self.port, self._stop, listening)
            except OSError as error:
                self._failure = error
                ready.set()

        def listening(port: int) -> None:
            self.port = port
            ready.set()

        asyncio.run(run())


def serve(
    sandbox: Sandbox,
    host: str = "127.0.0.1",
    port: int = 8765,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves a sandbox until SIGINT or SIGTERM; for the command line, on the main thread.

    Args:
        sandbox: what to serve.
        host: the address to listen on.
        port: the port; 0 takes a free port.
        on_ready: called with the page's address once it answers.

    Raises:
        OSError: the address or port cannot be had.
    """

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        server = SandboxServer(sandbox, host, port)

        def listening(actual: int) -> None:
            server.port = actual
            if on_ready is not None:
                on_ready(server.url)

        await _listen(sandbox, host, port, stop, listening)

    asyncio.run(run())


async def _listen(
    sandbox: Sandbox, host: str, port: int, stop: asyncio.Event, listening: Callable[[int], None]
) -> None:
    connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(_Connection(sandbox, reader, writer).run())
        connections[task] = writer
        task.add_done_callback(lambda done: connections.pop(done, None))

    server = await asyncio.start_server(accept, host, port, limit=_READ_AHEAD, backlog=1024)
    listening(server.sockets[0].getsockname()[1])
    await stop.wait()
    server.close()
    # One that was never begun cannot close its socket itself.
    for task, writer in connections.items():
        task.cancel()
        writer.transport.abort()
    await asyncio.gather(*connections, return_exceptions=True)
    await server.wait_closed()


class _Connection:
    """One client's connection, for as many requests as it likes to send, one after the other."""

    def __init__(self, sandbox: Sandbox, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._sandbox = sandbox
        self._reader = reader
        self._writer = writer

    async def run(self) -> None:
        """Answers until the connection ends."""
        try:
            while await self._exchange():
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # The client is gone, which is a matter of course here: there is nobody to tell.
        finally:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def _exchange(self) -> bool:
        """One request and its answer. Returns whether the connection goes on."""
        try:
            head = await self._read_head()
            if head is None:
                return False
            flight = self._sandbox.arrive(self._client_waits)
            try:
                body = await self._read_body(head)
                answer = await self._answer(flight, head, body)
                if answer.transport == "trickle":
                    await self._trickle(answer)
                elif answer.delay_s and not await self._wait(answer.delay_s):
                    answer.close()
                    return False
            finally:
                # Before the answer is written: a client may send its next request the moment it has this one's answer.
                self._sandbox.depart(flight)
        except _BadRequestError as error:
            await self._send(Answer(error.args[0]), keep_alive=False)
            return False
        with contextlib.closing(answer):
            return await self._finish(answer, keep_alive=head.keep_alive)

    async def _finish(self, answer: Answer, *, keep_alive: bool) -> bool:
        """Sends an answer, or breaks the connection as it says. Returns whether the connection goes on."""
        if answer.transport is None:
            await self._send(answer, keep_alive=keep_alive)
            return keep_alive
        if answer.transport == "reset_before_response":
            self._reset()
        elif answer.transport == "truncated_body":
            await self._send(answer, keep_alive=False, share=0.5)
        return False

    async def _answer(self, flight: Flight, head: _Head, body: bytes) -> Answer:
        asked = (flight, head.method, head.path, head.headers, body, head.query)
        if head.path in MAX_BYTES:
            return self._sandbox.answer(*asked)
        # An export can take seconds, and uploads must not wait for it.
        return await asyncio.to_thread(self._sandbox.answer, *asked)

    async def _read_head(self) -> _Head | None:
        try:
            raw = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                return None
            raise _BadRequestError(400) from error
        except asyncio.LimitOverrunError as error:
            raise _BadRequestError(431) from error
        if len(raw) > _MAX_HEAD:
            raise _BadRequestError(431)
        request, *lines = raw.decode("latin-1")[:-4].split("\r\n")
        parts = request.split(" ")
        if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise _BadRequestError(400)
        headers = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise _BadRequestError(400)
            headers[name.lower()] = value.strip()
        method, target, version = parts
        path, _, query = target.partition("?")
        wish = headers.get("connection", "").lower()
        keep_alive = "close" not in wish if version == "HTTP/1.1" else "keep-alive" in wish
        return _Head(method, unquote(path), query, headers, keep_alive)

    async def _read_body(self, head: _Head) -> bytes:
        length, encoding = head.headers.get("content-length"), head.headers.get("transfer-encoding")
        if length is None and encoding is None:
            return b""
        if length is not None and (encoding is not None or not (length.isascii() and length.isdecimal())):
            raise _BadRequestError(400)
        if length is not None and int(length) > _MAX_BODY:
            raise _BadRequestError(413)
        if head.headers.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if length is not None:
            return await self._reader.readexactly(int(length))
        if encoding is None or encoding.lower() != "chunked":
            raise _BadRequestError(501)
        return await self._read_chunks()

    async def _read_chunks(self) -> bytes:
        body = bytearray()
        while True:
            line = (await self._reader.readuntil(b"\r\n"))[:-2].partition(b";")[0].strip()
            try:
                size = int(line, 16)
            except ValueError as error:
                raise _BadRequestError(400) from error
            if size < 0 or len(body) + size > _MAX_BODY:
                raise _BadRequestError(413)
            if size == 0:
                while await self._reader.readuntil(b"\r\n") != b"\r\n":
                    pass
                return bytes(body)
            body += (await self._reader.readexactly(size + 2))[:-2]

    def _client_waits(self) -> bool:
        return not self._reader.at_eof() and not self._writer.is_closing()

    async def _wait(self, seconds: float) -> bool:
        """Lets time pass while the client waits. Returns whether it still does."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self._client_waits():
            left = until - loop.time()
            if left <= 0:
                return True
            await asyncio.sleep(min(left, _GONE_POLL_S))
        return False

    async def _send(self, answer: Answer, *, keep_alive: bool, share: float = 1.0) -> None:
        """Writes an answer, or that share of its body."""
        for status in answer.interim:
            self._writer.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n\r\n".encode())
            await self._writer.drain()
        self._writer.write(_head_of(answer, keep_alive=keep_alive))
        left = int(answer.length() * share)
        if answer.file is None:
            self._writer.write(answer.body[:left])
        while answer.file is not None and left:
            piece = answer.file.read(min(left, _PIECE))
            left -= len(piece)
            self._writer.write(piece)
            await self._writer.drain()
        await self._writer.drain()

    async def _trickle(self, answer: Answer) -> None:
        self._writer.write(_head_of(answer, keep_alive=False))
        pause = answer.delay_s / max(len(answer.body), 1)
        for place in range(len(answer.body)):
            if not await self._wait(pause):
                return
            self._writer.write(answer.body[place : place + 1])
            await self._writer.drain()

    def _reset(self) -> None:
        """Makes the close that follows a TCP reset."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


def _head_of(answer: Answer, *, keep_alive: bool) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase if answer.status in _STATUSES else ''}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    if answer.status != 204:
        lines.append(f"Content-Length: {answer.length()}")
    lines.append("Connection: " + ("keep-alive" if keep_alive else "close"))
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
