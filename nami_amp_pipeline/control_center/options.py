"""How people come in: by which address, and how they sign in."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from nami_amp_pipeline.control_center.oidc import Provider
from nami_amp_pipeline.control_center.people import Desk, Network, Nobody, OpenId, Passwords, Proxy
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.settings import PREFIX, Settings
from nami_amp_pipeline.settings.kinds import networks

CALLBACK: Final = "/sign-in/callback"
"""Where the provider sends people back to."""

_HOW: Final = f"{PREFIX}CONTROL_CENTER_SIGN_IN"


@dataclass(frozen=True)
class Options:
    """How people come in; see the settings of these names.

    Attributes:
        url: the address that people open; empty for any of this machine's own.
        sign_in: ``none``, ``password``, ``proxy`` or ``oidc``.
        proxies: addresses of the proxies that say who signed in, or where requests come from.
        proxy_header: in which they say it.
        editors: who may change something then.
        issuer, client_id, client_secret: of the OpenID Connect provider.
        endpoints: addresses besides Amplitude's that the operator lets people choose; what ends with ``/*`` stands for
            all that begin so, which can be typed for other destinations.
        contact: where people on the free plan are led to; empty for nowhere.
        metrics_token: whoever shows it may read the figures from elsewhere; empty for nobody.
    """

    url: str = ""
    sign_in: str = "none"
    proxies: tuple[Network, ...] = ()
    proxy_header: str = "X-Forwarded-User"
    editors: frozenset[str] = frozenset()
    issuer: str = ""
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    endpoints: tuple[str, ...] = ()
    contact: str = ""
    metrics_token: str = field(default="", repr=False)

    @staticmethod
    def of(settings: Settings) -> Options:
        """What the settings say."""
        return Options(
            url=settings.control_center_url,
            sign_in=settings.control_center_sign_in,
            proxies=tuple(networks(settings.control_center_proxies)),
            proxy_header=settings.control_center_proxy_header,
            editors=frozenset(_parts(settings.control_center_editors)),
            issuer=settings.control_center_oidc_issuer,
            client_id=settings.control_center_oidc_client_id,
            client_secret=settings.control_center_oidc_client_secret or "",
            endpoints=tuple(_parts(settings.control_center_endpoints)),
            contact=settings.control_center_contact,
            metrics_token=settings.control_center_metrics_token or "",
        )

    @property
    def is_secure(self) -> bool:
        """Whether browsers come by https."""
        return urlsplit(self.url).scheme == "https"

    @property
    def addresses(self) -> list[str]:
        """The endpoints that can be chosen as they are, without patterns."""
        return [address for address in self.endpoints if not address.endswith("*")]

    def allows(self, url: str) -> bool:
        """Whether people may send events to an address that they typed.

        Without a sign-in, whoever comes is at this machine, and could use the command line as well.
        """
        if self.sign_in == "none" or url in self.endpoints:
            return True
        folders = [pattern.removesuffix("*") for pattern in self.endpoints if pattern.endswith("/*")]
        return any(url.startswith(folder) for folder in folders)

    @property
    def allowed_addresses(self) -> str:
        """What people may type, as a sentence without its full stop."""
        if self.sign_in == "none":
            return "Any address can be given"
        if self.endpoints:
            return f"The operator allows {', '.join(self.endpoints)}"
        return f"The operator allows addresses by {PREFIX}CONTROL_CENTER_ENDPOINTS, and has allowed none"

    def desk(self, operations: Operations) -> Desk:
        """What finds out who visits."""
        if self.sign_in == "password":
            return Passwords(operations, self.is_secure, proxies=self.proxies)
        if self.sign_in == "oidc":
            provider = Provider(self.issuer, self.client_id, self.client_secret, f"{self.url}{CALLBACK}")
            return OpenId(operations, self.is_secure, provider=provider, editors=self.editors)
        if self.sign_in == "proxy":
            return Proxy(self.proxies, self.proxy_header, self.editors)
        return Nobody()

    def check(self, host: str) -> None:
        """Sees to it that nobody comes in unasked.

        Args:
            host: the address to listen on.

        Raises:
            Misconfigured: somebody could.
        """
        if self.sign_in == "proxy" and not self.proxies:
            raise Misconfigured(
                f"{_HOW}=proxy needs {PREFIX}CONTROL_CENTER_PROXIES: without the addresses of the proxies, everybody "
                "could say to be anybody"
            )
        if self.sign_in == "oidc" and not all((self.issuer, self.client_id, self.client_secret, self.url)):
            raise Misconfigured(
                f"{_HOW}=oidc needs {PREFIX}CONTROL_CENTER_URL, and the provider's {PREFIX}CONTROL_CENTER_OIDC_ISSUER, "
                "_CLIENT_ID and _CLIENT_SECRET"
            )
        issuer = urlsplit(self.issuer)
        if issuer.hostname is not None and issuer.scheme != "https" and not is_loopback(issuer.hostname):
            raise Misconfigured(f"{PREFIX}CONTROL_CENTER_OIDC_ISSUER must begin with https://")
        outside = urlsplit(self.url).hostname
        if self.sign_in == "none" and not (is_loopback(host) and (outside is None or is_loopback(outside))):
            raise Misconfigured(
                f"without a sign-in the Control Center is for this machine only, not for {self.url or host}: set {_HOW}"
            )
        if not is_loopback(host) and outside is None:
            raise Misconfigured(
                f"to listen on {host}, the Control Center needs {PREFIX}CONTROL_CENTER_URL: its address for people"
            )
        if outside is not None and not is_loopback(outside) and not self.is_secure:
            raise Misconfigured(f"{PREFIX}CONTROL_CENTER_URL must begin with https://: keys and passwords go there")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
