"""Signing in, with a password or at a provider, and signing out."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from functools import partial
from typing import Final

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from nami_amp_pipeline.control_center.oidc import Begun, ProviderRefused
from nami_amp_pipeline.control_center.options import CALLBACK
from nami_amp_pipeline.control_center.people import OpenId, Passwords, Sessions
from nami_amp_pipeline.control_center.site import Site
from nami_amp_pipeline.control_center.typed import LONGEST_FIELD, unpack
from nami_amp_pipeline.operations.people import SignInRefused

_FIELDS: Final = 5
_LONGEST: Final = 4_096
_BEGUN_SECONDS: Final = 600
_KEPT_PARTS: Final = 4
_ATTEMPTS: Final = CapacityLimiter(2)
"""A password takes time and memory to check: those who guess must not keep the pages of others waiting."""


async def sign_in(request: Request) -> Response:
    """The form, or what becomes of it."""
    site: Site = request.app.state.site
    desk = site.desk
    if not isinstance(desk, Sessions):
        return _unknown(site)
    if request.method == "GET":
        then = local_path(request.query_params.get("then", ""))
        if isinstance(desk, OpenId):
            return site.render("sign_in_elsewhere.html", visit=None, notice=site.notice(request), then=then, typed="")
        said = site.notice(request)
        return site.render("sign_in.html", visit=None, notice=said, then=then, typed="", errors={}, name="")
    if not isinstance(desk, Passwords):
        return _unknown(site)
    form = await request.form(max_files=0, max_fields=_FIELDS, max_part_size=LONGEST_FIELD)
    name, password, then, typed = (str(form.get(field, "")) for field in ("name", "password", "then", "typed"))
    then = local_path(then[:_LONGEST])
    address = desk.address(request)
    try:
        attempt = partial(
            site.operations.people.sign_in, name, password[:_LONGEST], address, instead_of=desk.token(request)
        )
        token = await to_thread.run_sync(attempt, limiter=_ATTEMPTS)
    except SignInRefused as error:
        return site.ask_again(then, typed, errors={"name": str(error)}, name=name[:200])
    answer: Response = RedirectResponse(then, status_code=303)
    if fields := unpack(typed):
        answer = site.render("signed_in_again.html", visit=None, notice="", then=then, fields=fields)
    desk.remember(answer, token)
    return answer


async def go(request: Request) -> Response:
    """Leads to the provider."""
    site: Site = request.app.state.site
    desk = site.desk
    if not isinstance(desk, OpenId):
        return _unknown(site)
    begun = await to_thread.run_sync(desk.provider.begin, limiter=_ATTEMPTS)
    then = local_path(request.query_params.get("then", ""))
    answer = RedirectResponse(begun.url, status_code=303)
    kept = ".".join((begun.state, begun.nonce, begun.verifier, urlsafe_b64encode(then.encode()).decode()))
    answer.set_cookie(
        desk.begun_cookie, kept, max_age=_BEGUN_SECONDS, path="/", secure=desk.is_secure, httponly=True, samesite="lax"
    )
    return answer


async def come_back(request: Request) -> Response:
    """Whoever comes back from the provider has a session, if the answer is to the sign-in of this very browser."""
    site: Site = request.app.state.site
    desk = site.desk
    if not isinstance(desk, OpenId):
        return _unknown(site)
    kept = request.cookies.get(desk.begun_cookie, "").split(".")
    state, code = (request.query_params.get(name, "") for name in ("state", "code"))
    if len(kept) != _KEPT_PARTS:
        raise ProviderRefused("this is not the sign-in that was begun here: begin again")
    begun = Begun("", *kept[:3])
    name = await to_thread.run_sync(partial(desk.provider.finish, begun, state, code), limiter=_ATTEMPTS)
    token = await to_thread.run_sync(desk.open, name, desk.token(request))
    try:
        then = local_path(urlsafe_b64decode(kept[3]).decode())
    except ValueError:
        then = "/"
    answer = RedirectResponse(then, status_code=303)
    desk.remember(answer, token)
    answer.delete_cookie(desk.begun_cookie, path="/", secure=desk.is_secure, httponly=True, samesite="lax")
    return answer


async def sign_out(request: Request) -> Response:
    """Ends the session."""
    site: Site = request.app.state.site
    desk = site.desk
    if not isinstance(desk, Sessions):
        return _unknown(site)
    await to_thread.run_sync(site.operations.people.sign_out, desk.token(request))
    answer = RedirectResponse(site.address("sign-in", done="signed-out"), status_code=303)
    desk.forget(answer)
    return answer


def local_path(text: str) -> str:
    """A path of this site as it is; the first page for anything else, so that no link leads elsewhere from here."""
    is_path = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isascii() and text.isprintable()
    return text if is_path and "\\" not in text else "/"


def _unknown(site: Site) -> Response:
    """Where people do not sign in on a page of this site."""
    said = "The one who signed you in did not say who you are, or is not known here. Ask the operator."
    return site.render("error.html", status=401, title="Not signed in", said=said, visit=None, notice="")


routes: Final = [
    Route("/sign-in", sign_in, methods=["GET", "POST"], name="sign-in"),
    Route("/sign-in/go", go, methods=["GET"], name="sign-in-go"),
    Route(CALLBACK, come_back, methods=["GET"], name="sign-in-callback"),
    Route("/sign-out", sign_out, methods=["POST"], name="sign-out"),
]
