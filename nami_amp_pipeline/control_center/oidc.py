"""Sign-in at an OpenID Connect provider: the authorization code flow with PKCE, and what is checked of its answer."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import requests

from nami_amp_pipeline.errors import Misconfigured, NamiAmpError

_SECONDS: Final = 10.0
_KEPT_SECONDS: Final = 300.0
_LEEWAY_SECONDS: Final = 60
_ALGORITHMS: Final = ["RS256", "ES256", "PS256"]
"""Of a provider's own key pair: a shared secret, or none at all, would prove nothing."""

_MOST_CHARACTERS: Final = 200


class ProviderRefused(NamiAmpError):
    """The provider did not say who it is, or what it said cannot be believed."""


@dataclass(frozen=True)
class Begun:
    """A sign-in under way; the browser keeps it until it comes back.

    Attributes:
        url: where the browser goes.
        state: comes back in the address: the answer is to this very sign-in.
        nonce: comes back in the token: the token was made for it.
        verifier: proves to the provider that who began it also ends it.
    """

    url: str
    state: str
    nonce: str
    verifier: str


@dataclass
class Provider:
    """An OpenID Connect provider.

    Attributes:
        issuer: its address.
        client_id: of this site there.
        client_secret: of this site there.
        redirect_uri: where it sends people back to.
    """

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    redirect_uri: str
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _known: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict, repr=False)

    def begin(self) -> Begun:
        """A new sign-in.

        Raises:
            ProviderRefused: the provider does not answer.
            Misconfigured: what it takes is not installed.
        """
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        url, _ = self._session().create_authorization_url(
            self._configuration()["authorization_endpoint"], state=state, nonce=nonce, code_verifier=verifier
        )
        return Begun(url, state, nonce, verifier)

    def finish(self, begun: Begun, state: str, code: str) -> str:
        """The name of whoever came back.

        Args:
            begun: as the browser has kept it.
            state: from the address.
            code: from the address.

        Raises:
            ProviderRefused: it is an answer to another sign-in, or cannot be believed.
        """
        if not state or not code or not secrets.compare_digest(state.encode(), begun.state.encode()):
            raise ProviderRefused("this is not the sign-in that was begun here: begin again")
        from authlib.integrations.base_client import OAuthError

        try:
            answer = self._session().fetch_token(
                self._configuration()["token_endpoint"],
                code=code,
                code_verifier=begun.verifier,
                grant_type="authorization_code",
                timeout=_SECONDS,
            )
        except (OAuthError, requests.RequestException, ValueError) as error:
            raise ProviderRefused(f"the provider gave no token ({type(error).__name__}): begin again") from None
        return self._name(str(answer.get("id_token", "")), begun.nonce)

    def _name(self, token: str, nonce: str) -> str:
        from joserfc import jwt
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        keys = self._json(self._configuration()["jwks_uri"])
        try:
            claims = jwt.decode(token, KeySet.import_key_set({"keys": keys["keys"]}), algorithms=_ALGORITHMS).claims
            jwt.JWTClaimsRegistry(
                leeway=_LEEWAY_SECONDS,
                iss={"essential": True, "value": self._configuration()["issuer"]},
                aud={"essential": True, "value": self.client_id},
                exp={"essential": True},
                nonce={"essential": True, "value": nonce},
            ).validate(claims)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise ProviderRefused(f"the provider's token cannot be believed ({type(error).__name__})") from None
        if claims.get("azp", self.client_id) != self.client_id:
            raise ProviderRefused("the provider's token is for another site")
        return _name_in(claims)

    def _session(self) -> Any:
        try:
            from authlib.integrations.requests_client import OAuth2Session
        except ImportError:
            raise Misconfigured("sign-in with OpenID Connect needs: pip install 'nami-amp-pipeline[oidc]'") from None
        return OAuth2Session(
            self.client_id,
            self.client_secret,
            scope="openid email profile",
            redirect_uri=self.redirect_uri,
            code_challenge_method="S256",
        )

    def _configuration(self) -> Mapping[str, Any]:
        found = self._json(f"{self.issuer}/.well-known/openid-configuration")
        if str(found.get("issuer", "")).rstrip("/") != self.issuer:
            raise ProviderRefused(
                "the provider calls itself by another address than NAMI_AMP_CONTROL_CENTER_OIDC_ISSUER"
            )
        return found

    def _json(self, url: str) -> Mapping[str, Any]:
        """What an address of the provider holds, kept for five minutes."""
        with self._lock:
            at, found = self._known.get(url, (0.0, {}))
            if found and time.monotonic() - at < _KEPT_SECONDS:
                return found
            try:
                answer = requests.get(url, timeout=_SECONDS, allow_redirects=False)
                answer.raise_for_status()
                found = dict(answer.json())
            except (requests.RequestException, ValueError) as error:
                raise ProviderRefused(f"the provider cannot be reached ({type(error).__name__})") from None
            self._known[url] = (time.monotonic(), found)
            return found


def _name_in(claims: Mapping[str, Any]) -> str:
    """The address of the person if the provider has checked it, else its own id; other names are what people choose."""
    names = ("email", "sub") if claims.get("email_verified") is True else ("sub",)
    for name in names:
        text = str(claims.get(name, "")).strip()
        if text and len(text) <= _MOST_CHARACTERS and text.isprintable():
            return text
    raise ProviderRefused("the provider's token names nobody")
