"""What all requests share: operations, options, templates."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from nami_amp_pipeline import __version__
from nami_amp_pipeline.clock import Clock, micros, system_clock
from nami_amp_pipeline.control_center import words
from nami_amp_pipeline.control_center.notices import notice
from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.control_center.people import Desk, Person
from nami_amp_pipeline.control_center.typed import unpack
from nami_amp_pipeline.operations.api import Operations

_FOLDER: Final = Path(__file__).parent
STATIC: Final = _FOLDER / "static"

_PARAMETER: Final = re.compile(r"{(\w+)(?::\w+)?}")


@dataclass
class Site:
    """What all requests share.

    Attributes:
        operations: in nobody's name; see ``Visit.operations``.
        options: how people sign in, and from where.
        routes: of all pages.
        navigation: (name of the page, label) of what is on the left in an app.
        clock: what time it is.
    """

    operations: Operations
    options: Options
    routes: Sequence[BaseRoute]
    navigation: Sequence[tuple[str, str]]
    clock: Clock = system_clock

    def now(self) -> int:
        """In µs since the epoch."""
        return micros(self.clock)

    @cached_property
    def desk(self) -> Desk:
        """What finds out who visits."""
        return self.options.desk(self.operations)

    def person(self, request: Request) -> Person | None:
        """Who asks; None if nobody is signed in."""
        return self.desk.person(request)

    def to_sign_in(self, request: Request, typed: str = "") -> Response:
        """Leads to the page where people sign in, and from there to the page that was asked for.

        Args:
            request: what was asked without a session.
            typed: what was typed into its form, which then comes back.
        """
        then = f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path
        if "hx-request" in request.headers and request.method != "GET":  # a part of a page, which stays as it is
            return self.render("session_ended.html", status=401, then=then)
        if not typed or not self.desk.asks:
            return RedirectResponse(self.address("sign-in", then=then), status_code=303)
        return self.ask_again(then, typed)

    def ask_again(self, then: str, typed: str, *, status: int = 401, **values: Any) -> Response:
        """The page where people sign in whose session ended while they typed."""
        shown = {"errors": {}, "name": "", **values}
        page = "sign_in.html" if self.desk.by_password else "sign_in_elsewhere.html"
        return self.render(
            page, status=status, visit=None, notice="", then=then, typed=typed, fields=unpack(typed), **shown
        )

    def notice(self, request: Request) -> str:
        """The notice that an address asks for; empty for none."""
        return notice(request.query_params.get("done"), request.query_params.get("n"))

    def address(self, name: str, /, **params: Any) -> str:
        """The path of a page by its name; what is in its path is filled in, the rest becomes the query."""
        path = self._paths[name]
        inside = {match[1] for match in _PARAMETER.finditer(path)}
        filled = _PARAMETER.sub(lambda match: quote(str(params[match[1]]), safe=""), path)
        rest = [(key, value) for key, value in params.items() if key not in inside and value not in (None, "")]
        return f"{filled}?{urlencode(rest, doseq=True)}" if rest else filled

    @cached_property
    def _paths(self) -> dict[str, str]:
        return {route.name: route.path for route in self.routes if isinstance(route, Route)}

    def render(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """A page of a template."""
        text = self._templates.get_template(template).render(now=self.now(), **values)
        return HTMLResponse(text, status_code=status)

    @cached_property
    def _templates(self) -> jinja2.Environment:
        made = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        filters: dict[str, Callable[..., Any]] = {
            "number": words.number,
            "share": words.share,
            "plain": words.plain,
            "parts": words.parts,
            "duration": words.duration,
            "pretty": words.pretty,
            "sentence": words.sentence,
            "spelled": words.spelled,
            "machine": words.machine,
            "relative": words.relative,
        }
        made.filters.update(filters)
        made.globals.update(site=self, address=self.address, version=__version__, counted=words.counted)
        return made
