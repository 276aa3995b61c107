"""A made-up event on the command line, and what is known of an app for a forecast."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from nami_amp_pipeline import contract
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.newest_events import newest_events
from nami_amp_pipeline.sandbox import Sandbox, SandboxServer
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline_tests.support.command_line import API_KEY, add, event, invoke, load_events, one_line, tick


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox()) as server:
        yield server


@pytest.mark.parametrize("event_type", contract.event_type_names())
def test_amplitude_takes_a_test_event_of_each_type(tmp_path: Path, sandbox: SandboxServer, event_type: str) -> None:
    add(tmp_path, sandbox.endpoint, "--rename", "device.impression=Paywall shown")
    done = invoke(tmp_path, "integrations", "send-test-event", "radio/prod", "--event", event_type, "--json")
    assert done.exit_code == 0, done.output
    answer = orjson.loads(done.stdout)
    assert answer["ok"]
    assert answer["status"] == 200
    assert answer["event"]["user_id"] == answer["user_id"]
    named = "Paywall shown" if event_type == "device.impression" else event_type
    assert answer["event"]["event_type"] == named
    has_state = event_type.startswith("user.")
    assert ("user_properties" in answer["event"]) == has_state
    assert API_KEY not in done.output
    plain = invoke(tmp_path, "integrations", "send-test-event", "radio", "prod", "--event", event_type)
    assert "Amplitude took it" in plain.stdout


def test_without_an_answer_it_says_so(tmp_path: Path) -> None:
    add(tmp_path, "http://127.0.0.1:1/2/httpapi")
    done = invoke(tmp_path, "integrations", "send-test-event", "radio/prod")
    assert done.exit_code == 1
    assert "no answer" in one_line(done.stderr)


def test_what_is_known_of_an_app_is_what_was_read(tmp_path: Path, sandbox: SandboxServer) -> None:
    add(tmp_path, sandbox.endpoint)
    with Operations(Settings(home=tmp_path / ".nami-amp")) as operations:
        before = operations.app_numbers("radio")
        assert (before.events, before.users, before.identified_share) == (0, 0, None)
        assert before.a_month(contract.event_type_names()) == 0
        load_events(tmp_path, event(1), event(2), event(3, user="u2", external=None, event_type="device.impression"))
        tick(tmp_path, "first")
        numbers = operations.app_numbers("radio")
    assert dict(numbers.by_type) == {"user.subscription.purchased": 2, "device.impression": 1}
    assert (numbers.users, numbers.identified, numbers.is_sample) == (1, 1, False)
    assert (numbers.captured, numbers.unidentified) == (3, 1)
    assert numbers.a_month(["device.impression"]) == 30  # one a day


@pytest.mark.slow
def test_the_preview_shows_both_sides_and_records_nothing(tmp_path: Path, sandbox: SandboxServer) -> None:
    add(tmp_path, sandbox.endpoint, "--exclude", "customer_journey_state")
    load_events(tmp_path, event(1), event(2, user="u2", external=None), event(3, user="u3", external="null"))
    counts = tick(tmp_path, "first")
    home = tmp_path / ".nami-amp"
    files = sorted(path for path in (home / "data").rglob("*") if path.is_file())
    with Operations(Settings(home=home)) as operations:
        found = operations.newest_events("radio/prod")
        assert dict(found.verdicts) == {"sent": 1, "skipped": 1, "refused": 1}
        assert found.reasons == {("sent", ""): 1, ("skipped", "no_external_id"): 1, ("refused", "reserved_user_id"): 1}
        by_verdict = {shown.verdict: shown for shown in found.events}
        sent = orjson.loads(by_verdict["sent"].amplitude or "")
        assert sent["insert_id"] == by_verdict["sent"].id
        assert "namiml_in_trial_period" not in sent.get("user_properties", {})
        assert "customer_journey_state" not in orjson.loads(by_verdict["sent"].nami or "")
        assert by_verdict["skipped"].amplitude is None
        (mine,) = operations.newest_events("radio/prod", user="e1").events
        assert mine.user_id == "u1"
        assert operations.newest_events("radio/prod", event_type="device.impression").events == []
        assert operations.newest_events("radio/prod", verdict="refused").events == [by_verdict["refused"]]
        context = operations._whole()
        assert newest_events(context, operations.integrations()[0]).events == found.events
    assert sorted(path for path in (home / "data").rglob("*") if path.is_file()) == files
    assert tick(tmp_path, "second") == counts


def test_shares_of_properties(tmp_path: Path, sandbox: SandboxServer) -> None:
    add(tmp_path, sandbox.endpoint)
    load_events(tmp_path, *(event(number, user=f"u{number}") for number in range(4)))
    tick(tmp_path, "first")
    with Operations(Settings(home=tmp_path / ".nami-amp")) as operations:
        shares = operations.property_shares("radio")
        assert operations.property_shares("empty").users == 0
    assert (shares.users, shares.is_sample) == (4, False)
    assert [share.property for share in shares.properties] == list(contract.PROPERTIES)
    for share in shares.properties:
        assert sum(value.users for value in share.values) <= 4 * share.known
