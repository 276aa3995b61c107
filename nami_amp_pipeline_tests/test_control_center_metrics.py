"""The page ``/metrics`` of the Control Center: who may read it, and that it holds no secret."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from nami_amp_pipeline.control_center.app import create_app
from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.integrations import NewIntegration
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline_tests.support.control_center import served

KEY = "0123456789abcdef0123456789abcdef"
TOKEN = "a token of many characters"
URL = "https://amp.example.com"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(home=tmp_path, control_center_metrics_token=TOKEN)
    with Operations(made) as operations:
        operations.add(NewIntegration("radio", "main", "us", Secret(KEY)))
    return made


def ask(settings: Settings, peer: str = "127.0.0.1", options: Options | None = None, **headers: str) -> tuple[int, str]:
    options = Options(sign_in="password", url=URL, metrics_token=TOKEN) if options is None else options
    pages = TestClient(create_app(settings, options), base_url="http://localhost", client=(peer, 1))
    answer = pages.get("/metrics", headers={name.replace("_", "-"): value for name, value in headers.items()})
    return answer.status_code, answer.text


def test_prometheus_on_this_machine_reads_the_figures_of_a_real_server(settings: Settings) -> None:
    with served(settings, Options.of(settings)) as url, urllib.request.urlopen(f"{url}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {"app": "radio", "integration": "main", "state": "idle"} in [
        sample.labels for sample in families["nami_amp_state"].samples if sample.value == 1
    ]
    assert KEY not in text
    assert TOKEN not in text


def test_behind_a_sign_in_this_machine_needs_no_session_and_others_need_the_token(settings: Settings) -> None:
    assert ask(settings)[0] == 200
    assert ask(settings, "::1", Host="[::1]:8770")[0] == 200
    assert ask(settings, "10.0.0.9")[0] == 401
    assert ask(settings, "10.0.0.9", Authorization=f"Bearer {TOKEN}", Host="10.0.0.5:8770")[0] == 200
    assert ask(settings, "10.0.0.9", Authorization="Bearer another token of many", Host="10.0.0.5")[0] == 401
    assert ask(settings, "10.0.0.9", Authorization=f"Basic {TOKEN}")[0] == 401


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Host", "amp.example.com"),
        ("X_Forwarded_For", "203.0.113.9"),
        ("Forwarded", "for=203.0.113.9"),
        ("Via", "1.1 p"),
    ],
)
def test_a_proxy_on_this_machine_does_not_open_them_to_everybody(settings: Settings, name: str, value: str) -> None:
    assert ask(settings, "127.0.0.1", None, **{name: value})[0] == 401


def test_without_a_token_nobody_else_reads_them(settings: Settings) -> None:
    options = Options(sign_in="password", url=URL)
    assert ask(settings, "10.0.0.9", options, Authorization="Bearer ")[0] == 401
    assert ask(settings, "10.0.0.9", options)[0] == 401


def test_other_pages_still_want_their_own_name(settings: Settings) -> None:
    pages = TestClient(create_app(settings), base_url="http://10.0.0.5")
    assert pages.get("/").status_code == 421
    assert pages.post("/metrics").status_code == 421


def test_a_token_that_is_easily_guessed_is_refused() -> None:
    with pytest.raises(Misconfigured, match="METRICS_TOKEN"):
        Settings.load({"NAMI_AMP_CONTROL_CENTER_METRICS_TOKEN": "short"})
