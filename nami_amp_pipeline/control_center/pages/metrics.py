"""``/metrics``: the figures of all integrations for Prometheus, for this machine, and for whoever shows a token."""

from __future__ import annotations

import hmac
from typing import Final

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from nami_amp_pipeline import redaction
from nami_amp_pipeline.control_center.guard import LOOPBACK, METRICS, host_of
from nami_amp_pipeline.control_center.options import is_loopback
from nami_amp_pipeline.control_center.site import Site
from nami_amp_pipeline.errors import NamiAmpError

_AT_ONCE: Final = CapacityLimiter(1)
_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


async def show(request: Request) -> Response:
    """The figures; they hold names of apps and integrations, and numbers."""
    site: Site = request.app.state.site
    if not _is_local(request) and not _shows(request, site.options.metrics_token):
        said = "The figures are for this machine, and for whoever shows the token of the settings.\n"
        return PlainTextResponse(said, 401, {"WWW-Authenticate": "Bearer"})
    from nami_amp_pipeline.operations.metrics import CONTENT_TYPE

    try:
        figures = await to_thread.run_sync(site.operations.metrics, limiter=_AT_ONCE)
    except NamiAmpError as error:  # Prometheus wants no page
        return PlainTextResponse(f"{redaction.clean(str(error))}\n", 503)
    return Response(figures, headers={"Content-Type": CONTENT_TYPE})


def _is_local(request: Request) -> bool:
    """Whether a program of this machine asks by this machine's name: a proxy on it asks for others, by another name."""
    peer = request.client.host if request.client else ""
    is_own_name = host_of(request.headers.get("host", "")) in LOOPBACK
    return is_loopback(peer) and is_own_name and not any(name in request.headers for name in _FORWARDED)


def _shows(request: Request, token: str) -> bool:
    kind, _, shown = request.headers.get("authorization", "").partition(" ")
    return bool(token) and kind.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), token.encode())


routes: Final = [Route(METRICS, show, methods=["GET"], name="metrics")]
