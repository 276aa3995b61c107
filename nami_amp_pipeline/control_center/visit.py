"""One request of a person: whose it is, what it asks, and how it is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from nami_amp_pipeline.contract import APP_ID, INTEGRATION_NAME
from nami_amp_pipeline.control_center.people import Person
from nami_amp_pipeline.control_center.typed import LONGEST_FIELD, pack
from nami_amp_pipeline.operations.apps import App
from nami_amp_pipeline.operations.integrations import Integration
from nami_amp_pipeline.operations.standing import Standing

if TYPE_CHECKING:
    from nami_amp_pipeline.control_center.site import Site
    from nami_amp_pipeline.operations.api import Operations

_MOST_FIELDS: Final = 400
_END_OF_NUMBERS: Final = 2**63
"""The store counts no further."""


class NotFound(Exception):
    """There is no such page, app or integration; the message says which."""


class NotAllowed(Exception):
    """The person may see this, and not do it; the message says why."""


@dataclass
class Visit:
    """One request.

    Attributes:
        request: Starlette's.
        site: what all requests share.
        person: who asks.
        form: what a POST brought; empty for a GET.
    """

    request: Request
    site: Site
    person: Person
    form: FormData = field(default_factory=FormData)

    @cached_property
    def operations(self) -> Operations:
        """All that can be asked and done, in the name of the person."""
        return self.site.operations.named(self.person.name)

    @property
    def query(self) -> QueryParams:
        """The parameters of the address."""
        return self.request.query_params

    @property
    def is_post(self) -> bool:
        """Whether something is to be done."""
        return self.request.method == "POST"

    @property
    def may_change(self) -> bool:
        """Whether the person may change anything."""
        return self.person.may_change

    @property
    def now(self) -> int:
        """In µs since the epoch."""
        return self.site.now()

    def text(self, name: str) -> str:
        """A field of the form as text; empty if it is not there, or is a file."""
        value = self.form.get(name, "")
        return value if isinstance(value, str) else ""

    def texts(self, name: str) -> list[str]:
        """All values of a field of the form."""
        return [value for value in self.form.getlist(name) if isinstance(value, str)]

    @cached_property
    def app_id(self) -> str:
        """The app of the address; empty on pages that are of none.

        Raises:
            NotFound: it cannot be the id of an app.
        """
        app_id: str = self.request.path_params.get("app", "")
        if app_id and not APP_ID.fullmatch(app_id):
            raise NotFound("There is no such app")
        return app_id

    @cached_property
    def app(self) -> App:
        """The app of the address; one without integrations counts as paid.

        Raises:
            NotFound: it cannot be one, or the address names none.
        """
        if not self.app_id:
            raise NotFound("There is no such app")
        return self.operations.app(self.app_id) or App(self.app_id, "paid", 0, None)

    @cached_property
    def key(self) -> str:
        """``<app_id>/<name>`` of the integration of the address.

        Raises:
            NotFound: the address names none.
        """
        name = self.request.path_params.get("integration", "")
        if not self.app_id or not INTEGRATION_NAME.fullmatch(name):
            raise NotFound("There is no such integration")
        return f"{self.app_id}/{name}"

    @property
    def number(self) -> int:
        """The number in the address.

        Raises:
            NotFound: nothing can have it.
        """
        number: int = self.request.path_params["number"]
        if number >= _END_OF_NUMBERS:
            raise NotFound("There is nothing of that number")
        return number

    @cached_property
    def integration(self) -> Integration:
        """The integration of the address.

        Raises:
            NotFound: there is none of that name.
        """
        found = next((row for row in self.of_app if row.key == self.key), None)
        if found is None:
            raise NotFound(f"There is no integration {self.key}")
        return found

    @cached_property
    def of_app(self) -> list[Integration]:
        """All integrations of the app."""
        return self.operations.integrations_of(self.app_id)

    @cached_property
    def standings(self) -> list[Standing]:
        """How the app's integrations stand, in their order."""
        return self.operations.standings(self.of_app)

    @cached_property
    def standing(self) -> Standing:
        """How the integration of the address stands."""
        key = self.integration.key
        return next(standing for standing in self.standings if standing.integration == key)

    def address(self, name: str, /, **params: Any) -> str:
        """The path of a page by its name; what is in its path is filled in, the rest becomes the query."""
        return self.site.address(name, **params)

    def render(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """A page."""
        said = "" if self.is_post else self.site.notice(self.request)
        return self.site.render(template, status=status, visit=self, notice=said, **values)

    def redirect(self, name: str, /, *, done: str = "", n: int | None = None, **params: Any) -> Response:
        """Leads to a page by its name, after something was done.

        Args:
            name: of the page.
            done: the notice to show there, of :data:`nami_amp_pipeline.control_center.notices.NOTICES`.
            n: the number in the notice.
            params: of the address.
        """
        if done:
            params["done"] = done
        if n is not None:
            params["n"] = n
        return RedirectResponse(self.address(name, **params), status_code=303)


Handler = Callable[[Visit], Response]


def page(path: str, handler: Handler, *, name: str) -> Route:
    """A route that shows something to everybody who is signed in."""
    return _route(path, handler, name, ["GET"])


def action(path: str, handler: Handler, *, name: str, keeps: bool = False) -> Route:
    """A route whose GET shows a form or a question, and whose POST does something and is for editors.

    Args:
        path: with its parameters.
        handler: answers both.
        name: of the page.
        keeps: whether what was typed comes back after a session has ended meanwhile: such a handler shows the form as
            it is, and does nothing, for the act :data:`~nami_amp_pipeline.control_center.typed.TYPED`.
    """
    return _route(path, handler, name, ["GET", "POST"], keeps=keeps)


def _route(path: str, handler: Handler, name: str, methods: list[str], *, keeps: bool = False) -> Route:
    async def endpoint(request: Request) -> Response:
        site: Site = request.app.state.site
        form = FormData()
        if request.method == "POST":
            form = await request.form(max_files=0, max_fields=_MOST_FIELDS, max_part_size=LONGEST_FIELD)

        def answer() -> Response:
            person = site.person(request)
            if person is None:
                return site.to_sign_in(request, pack(form) if keeps else "")
            if request.method == "POST" and not person.may_change:
                raise NotAllowed("You can look at everything here. To change something, ask an editor")
            return handler(Visit(request, site, person, form))

        return await run_in_threadpool(answer)

    return Route(path, endpoint, methods=methods, name=name)
