"""Who visits, and how the site finds out: nobody asks, a session after a password, or what a proxy says."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from starlette.requests import Request
from starlette.responses import Response

from nami_amp_pipeline.control_center.oidc import Provider
from nami_amp_pipeline.operations.api import Operations, actor
from nami_amp_pipeline.operations.people import Role

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MOST_CHARACTERS: Final = 200
_LONGEST_HEADER: Final = 2_000


@dataclass(frozen=True)
class Person:
    """Who visits.

    Attributes:
        name: as changes are recorded under.
        role: see :data:`Role`.
        can_sign_out: whether there is a session to end.
    """

    name: str
    role: Role
    can_sign_out: bool = False

    @property
    def may_change(self) -> bool:
        """Whether this person may change anything."""
        return self.role == "editor"


class Desk(Protocol):
    """Finds out who visits."""

    @property
    def asks(self) -> bool:
        """Whether people sign in on a page of this site."""

    @property
    def by_password(self) -> bool:
        """Whether they do it with a password."""

    def person(self, request: Request) -> Person | None:
        """Who asks; None if that is not known."""


@dataclass(frozen=True)
class Nobody:
    """Everybody on this machine is the one who started the Control Center."""

    asks: bool = False
    by_password: bool = False

    def person(self, request: Request) -> Person | None:
        """See :class:`Desk`."""
        del request
        return Person(actor(), "editor")


@dataclass(frozen=True)
class Sessions:
    """A session that began on a page of this site.

    Attributes:
        operations: know the sessions.
        is_secure: whether browsers come by https.
    """

    operations: Operations
    is_secure: bool
    asks: bool = True
    by_password: bool = False

    @property
    def cookie(self) -> str:
        """The cookie's name: with ``__Host-`` a browser takes it by https only, and from this very host only."""
        return "__Host-nami-amp" if self.is_secure else "nami-amp"

    def token(self, request: Request) -> str:
        """What the browser shows; empty if it shows nothing."""
        return request.cookies.get(self.cookie, "")[:_MOST_CHARACTERS]

    def person(self, request: Request) -> Person | None:
        """See :class:`Desk`."""
        token = self.token(request)
        found = self.operations.people.session(token) if token else None
        return None if found is None else Person(*found, can_sign_out=True)

    def remember(self, response: Response, token: str) -> None:
        """Has the browser show a session from now on, until it is closed."""
        response.set_cookie(self.cookie, token, path="/", secure=self.is_secure, httponly=True, samesite="lax")

    def forget(self, response: Response) -> None:
        """Has the browser forget its session."""
        response.delete_cookie(self.cookie, path="/", secure=self.is_secure, httponly=True, samesite="lax")


@dataclass(frozen=True)
class Passwords(Sessions):
    """One that began with a password.

    Attributes:
        proxies: addresses of the proxies whose word on where a request comes from counts.
    """

    by_password: bool = True
    proxies: Sequence[Network] = ()

    def address(self, request: Request) -> str:
        """Where a request comes from: failed sign-ins are counted by it.

        A listed proxy says it in the last entry of ``X-Forwarded-For``, behind which further listed proxies may stand;
        of everybody else the header counts nothing.
        """
        address = request.client.host if request.client else ""
        said = ",".join(request.headers.getlist("x-forwarded-for"))[-_LONGEST_HEADER:].split(",")
        for entry in reversed(said):
            if not _is_among(address, self.proxies):
                break
            try:
                address = str(_plain(ipaddress.ip_address(entry.strip().strip("[]"))))
            except ValueError:
                break
        return address


@dataclass(frozen=True)
class OpenId(Sessions):
    """One that began at an OpenID Connect provider.

    Attributes:
        provider: says who people are.
        editors: the names of those who may change something; ``*`` stands for all.
    """

    provider: Provider = field(kw_only=True)
    editors: frozenset[str] = field(kw_only=True)

    @property
    def begun_cookie(self) -> str:
        """The cookie of a sign-in under way."""
        return f"{self.cookie}-begun"

    def open(self, name: str, instead_of: str = "") -> str:
        """A session for whom the provider named; returns what the browser is to show. Its session until now ends."""
        return self.operations.people.open_session(name, _role(name, self.editors), instead_of=instead_of)

    def person(self, request: Request) -> Person | None:
        """See :class:`Desk`. The role is that of the settings now: who is no editor any more changes nothing."""
        token = self.token(request)
        found = self.operations.people.session(token, is_vouched=True) if token else None
        return None if found is None else Person(found[0], _role(found[0], self.editors), can_sign_out=True)


@dataclass(frozen=True)
class Proxy:
    """What a proxy in front of the site says, if the connection comes from it.

    Attributes:
        proxies: their addresses. Any other machine could say whatever it wants.
        header: names the person.
        editors: the names of those who may change something; ``*`` stands for all.
    """

    proxies: Sequence[Network]
    header: str
    editors: frozenset[str]
    asks: bool = False
    by_password: bool = False

    def person(self, request: Request) -> Person | None:
        """See :class:`Desk`."""
        names = request.headers.getlist(self.header)
        if not self._is_proxy(request) or len(names) != 1:
            return None
        name = names[0].strip()
        if not name or len(name) > _MOST_CHARACTERS or not name.isprintable():
            return None
        return Person(name, _role(name, self.editors))

    def _is_proxy(self, request: Request) -> bool:
        """Whether the other end of the socket is one of the proxies; no header has a say in it."""
        return _is_among(request.client.host if request.client else "", self.proxies)


def _is_among(address: str, networks: Sequence[Network]) -> bool:
    try:
        peer = _plain(ipaddress.ip_address(address))
    except ValueError:
        return False
    return any(peer in network for network in networks)


def _plain(address: Address) -> Address:
    """An IPv4 address that is written as an IPv6 one as itself."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _role(name: str, editors: frozenset[str]) -> Role:
    return "editor" if editors & {name, "*"} else "viewer"
