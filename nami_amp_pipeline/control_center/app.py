"""Puts the site together: pages, files, errors, and the guard around all of it."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from nami_amp_pipeline import redaction
from nami_amp_pipeline.clock import Clock, system_clock
from nami_amp_pipeline.control_center import words
from nami_amp_pipeline.control_center.guard import LOOPBACK, Guard
from nami_amp_pipeline.control_center.oidc import ProviderRefused
from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.control_center.pages import PAGES
from nami_amp_pipeline.control_center.site import STATIC, Site
from nami_amp_pipeline.control_center.visit import NotAllowed, NotFound
from nami_amp_pipeline.errors import Busy, Misconfigured, NamiAmpError
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.settings import Settings

_LOG: Final = redaction.guarded_logger("nami_amp_pipeline.control_center")


class _Files(StaticFiles):
    """Files that a browser keeps, and asks each time whether they are still the same."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """See the base class."""
        answer = super().file_response(*args, **kwargs)
        answer.headers["Cache-Control"] = "no-cache"
        return answer


def create_app(settings: Settings, options: Options | None = None, *, clock: Clock = system_clock) -> Starlette:
    """The Control Center as an ASGI application.

    Args:
        settings: of the pipeline.
        options: how people come in; by default what the settings say.
        clock: what time it is.

    Raises:
        Misconfigured: a setting cannot be used.
        StoreUnavailable: the state store cannot be reached.
    """
    options = Options.of(settings) if options is None else options
    routes = [route for module in PAGES for route in module.routes]
    navigation = [entry for module in PAGES if (entry := getattr(module, "navigation", None)) is not None]
    site = Site(Operations(settings, clock=clock), options, routes, navigation, clock)
    hosts = {*LOOPBACK, *filter(None, [urlsplit(options.url).hostname])}
    app = Starlette(
        routes=[*routes, Mount("/static", _Files(directory=STATIC), name="static")],
        middleware=[Middleware(Guard, hosts=hosts, is_secure=options.is_secure)],
        exception_handlers={
            NotFound: _not_found,
            NotAllowed: _not_allowed,
            ProviderRefused: _not_signed_in,
            NamiAmpError: _failed,
            HTTPException: _http,
            ClientDisconnect: _gone,
            Exception: _bug,
        },
    )
    app.state.site = site
    return app


def _error(request: Request, status: int, title: str, said: str) -> Response:
    site: Site = request.app.state.site
    return site.render("error.html", status=status, title=title, said=said, visit=None, notice="")


def _not_found(request: Request, error: Exception) -> Response:
    return _error(request, 404, "Not found", f"{error}.")


def _not_allowed(request: Request, error: Exception) -> Response:
    return _error(request, 403, "Not allowed", f"{error}.")


def _not_signed_in(request: Request, error: Exception) -> Response:
    return _error(request, 401, "Not signed in", f"{words.sentence(str(error))}.")


def _failed(request: Request, error: Exception) -> Response:
    """What operations raise: a value that cannot be used, somebody else at work, or something outside that is down."""
    said = words.plain(str(error))
    if isinstance(error, Misconfigured):
        return _error(request, 400, "That cannot be done", words.sentence(said))
    if isinstance(error, Busy):
        return _error(request, 409, "Not now", words.sentence(said))
    _LOG.error("a page could not be answered: %s", error)
    return _error(request, 503, "The pipeline cannot be reached", f"Nothing was changed. {words.sentence(said)}")


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _error(request, 404, "Not found", "There is no page at this address.")
    return _error(request, error.status_code, "That cannot be done", str(error.detail))


def _gone(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("The form is too large, or the connection broke.\n", 413)


def _bug(request: Request, error: Exception) -> Response:
    _LOG.error("a page failed", exc_info=error)
    return _error(
        request, 500, "This is a bug", "Nothing more was changed. The log of the Control Center has the error."
    )
