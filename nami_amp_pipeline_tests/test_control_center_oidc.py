"""Sign-in at an OpenID Connect provider: whom it names comes in, nobody else does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline_tests.support.control_center import client, listening

pytestmark = pytest.mark.slow_cases

SECRET = "the-secret-of-the-client-0123456789"
KEY = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})
OTHER_KEY = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})


@dataclass
class FakeProvider:
    """A provider that says what a test wants.

    Attributes:
        url: where it is.
        claims: that differ from what is right.
        key: that signs.
        algorithm: of the signature.
        asked: the forms that were sent for a token.
    """

    url: str = ""
    claims: dict[str, Any] = field(default_factory=dict)
    key: RSAKey = field(default_factory=lambda: KEY)
    nonce: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self.configuration),
                Route("/keys", self.keys),
                Route("/token", self.token, methods=["POST"]),
            ]
        )

    async def configuration(self, _request: Request) -> JSONResponse:
        ends = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        return JSONResponse({"issuer": self.url, **{name: f"{self.url}/{path}" for name, path in ends.items()}})

    async def keys(self, _request: Request) -> JSONResponse:
        return JSONResponse({"keys": [KEY.as_dict(private=False)]})

    async def token(self, request: Request) -> JSONResponse:
        self.asked.append(dict(await request.form()))
        right = {
            "iss": self.url, "aud": "client", "exp": int(time.time()) + 60, "nonce": self.nonce, "sub": "user-7",
            "email": "ana@example.com", "email_verified": True,
        }  # fmt: skip
        claims = {name: value for name, value in {**right, **self.claims}.items() if value is not None}
        return JSONResponse(
            {
                "access_token": "x",
                "token_type": "Bearer",
                "id_token": jwt.encode({"alg": "RS256", "kid": "one"}, claims, self.key),
            }
        )


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    fake = FakeProvider()
    with listening(fake.app()) as url:
        fake.url = url
        yield fake


@pytest.fixture
def pages(tmp_path: Path, provider: FakeProvider) -> TestClient:
    options = Options(
        sign_in="oidc", url="http://localhost", issuer=provider.url, client_id="client", client_secret=SECRET,
        editors=frozenset({"ana@example.com"}),
    )  # fmt: skip
    options.check("127.0.0.1")
    return client(tmp_path, options)


def go(pages: TestClient, provider: FakeProvider, then: str = "/") -> dict[str, str]:
    """Begins a sign-in; what the provider is told."""
    answer = pages.get(f"/sign-in/go?then={then}", follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith(f"{provider.url}/authorize?")
    told = {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["location"]).query).items()}
    provider.nonce = told["nonce"]
    return told


def come_back(pages: TestClient, state: str, code: str = "the-code") -> Any:
    return pages.get(f"/sign-in/callback?state={state}&code={code}", follow_redirects=False)


def test_whom_the_provider_names_comes_in(pages: TestClient, provider: FakeProvider) -> None:
    assert pages.get("/apps/radio/trace", follow_redirects=False).headers["location"].startswith("/sign-in?then=")
    assert "/sign-in/go?then=%2Fapps%2Fradio%2Ftrace" in pages.get("/apps/radio/trace").text
    told = go(pages, provider, "/apps/radio/trace")
    assert told["redirect_uri"] == "http://localhost/sign-in/callback"
    assert told["code_challenge_method"] == "S256"
    answer = come_back(pages, told["state"])
    assert (answer.status_code, answer.headers["location"]) == (303, "/apps/radio/trace")
    assert provider.asked[0]["code"] == "the-code"
    assert len(provider.asked[0]["code_verifier"]) > 40
    page = pages.get("/apps/radio/integrations/amplitude/new").text
    assert "ana@example.com" in page
    assert "<fieldset disabled>" not in page
    assert come_back(pages, told["state"]).status_code == 401  # an answer counts once
    pages.post("/sign-out")
    assert pages.get("/", follow_redirects=False).status_code == 303


def test_who_is_no_editor_any_more_changes_nothing(tmp_path: Path, pages: TestClient, provider: FakeProvider) -> None:
    come_back(pages, go(pages, provider)["state"])
    options = Options(
        sign_in="oidc", url="http://localhost", issuer=provider.url, client_id="client", client_secret=SECRET
    )  # fmt: skip
    later = client(tmp_path, options)
    later.cookies = pages.cookies
    page = later.get("/apps/radio/integrations/amplitude/new").text
    assert "ana@example.com" in page
    assert "<fieldset disabled>" in page


@pytest.mark.parametrize(
    ("claims", "name"),
    [({"email_verified": False}, "user-7"), ({"email_verified": None}, "user-7"), ({"email": "bo@example.com"}, "bo@")],
)
def test_who_is_no_editor_is_a_viewer(
    pages: TestClient, provider: FakeProvider, claims: dict[str, Any], name: str
) -> None:
    provider.claims = {"preferred_username": "ana@example.com", **claims}
    told = go(pages, provider)
    assert come_back(pages, told["state"]).status_code == 303
    page = pages.get("/apps/radio/integrations/amplitude/new").text
    assert name in page
    assert "<fieldset disabled>" in page


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example"}, {"aud": "another"}, {"exp": 1}, {"exp": None}, {"nonce": "of another sign-in"},
        {"nonce": None}, {"azp": "another"}, {"sub": "", "email_verified": False},
    ],
)  # fmt: skip
def test_a_token_for_something_else_lets_nobody_in(
    pages: TestClient, provider: FakeProvider, claims: dict[str, Any]
) -> None:
    provider.claims = claims
    answer = come_back(pages, go(pages, provider)["state"])
    assert answer.status_code == 401
    assert "nami-amp" not in {name for name, value in pages.cookies.items() if value}


def test_a_token_of_another_key_lets_nobody_in(pages: TestClient, provider: FakeProvider) -> None:
    provider.key = OTHER_KEY
    assert come_back(pages, go(pages, provider)["state"]).status_code == 401


def test_an_answer_to_another_browser_lets_nobody_in(tmp_path: Path, pages: TestClient, provider: FakeProvider) -> None:
    told = go(pages, provider)
    assert come_back(pages, "another state").status_code == 401
    assert come_back(pages, told["state"], code="").status_code == 401
    pages.cookies.clear()
    assert come_back(pages, told["state"]).status_code == 401
    assert provider.asked == []


def test_a_provider_that_does_not_answer(tmp_path: Path) -> None:
    options = Options(
        sign_in="oidc", url="http://localhost", issuer="http://127.0.0.1:1", client_id="c", client_secret="s"
    )
    answer = client(tmp_path, options).get("/sign-in/go", follow_redirects=False)
    assert answer.status_code == 401
    assert "cannot be reached" in answer.text


def test_what_it_needs_before_it_starts() -> None:
    whole = {"sign_in": "oidc", "url": "https://amp.example.com", "issuer": "https://login.example.com"}
    Options(**whole, client_id="c", client_secret=SECRET).check("0.0.0.0")  # type: ignore[arg-type]
    with pytest.raises(Misconfigured, match="OIDC_ISSUER"):
        Options(**whole).check("0.0.0.0")  # type: ignore[arg-type]
    plain = {**whole, "issuer": "http://login.example.com"}
    with pytest.raises(Misconfigured, match="https://"):
        Options(**plain, client_id="c", client_secret=SECRET).check("0.0.0.0")  # type: ignore[arg-type]
    assert SECRET not in repr(Options(**whole, client_secret=SECRET))  # type: ignore[arg-type]
