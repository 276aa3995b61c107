"""A program in front of a server that can be killed without the server's data: it passes bytes on, slowly.

``python front.py PORT TARGET`` listens on one port of this machine and passes on to another. It writes ``+`` for each
connection that begins and ``-`` for each that ended properly, so that whoever kills it knows what was under way. It
imports nothing of the project, so that it is back at once.
"""

from __future__ import annotations

import asyncio
import sys

_BYTES = 2_048
_PAUSE_SECONDS = 0.01
"""Bodies of some kilobytes are under way for a tenth of a second, as over a real network."""


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(_BYTES):
        sink.write(data)
        await sink.drain()
        await asyncio.sleep(_PAUSE_SECONDS)
    sink.write_eof()


async def _serve(port: int, target: int) -> None:
    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        _say("+")
        try:
            far_source, far_sink = await asyncio.open_connection("127.0.0.1", target)
            there = asyncio.create_task(_pump(source, far_sink))
            await _pump(far_source, sink)
            there.cancel()
            far_sink.close()
        except OSError:
            pass
        finally:
            sink.close()
            _say("-")

    server = await asyncio.start_server(pass_on, "127.0.0.1", port)
    await server.serve_forever()


def _say(sign: str) -> None:
    sys.stdout.write(sign)
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
