"""The destination ``http``: signature, what answers mean, results of single events, and the commands around it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.delivery.destination import REJECTED, TOO_LARGE, Outcome, Verdict
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer, Request
from nami_amp_pipeline.http_endpoint.signature import ID, SIGNATURE, TIMESTAMP, batch_id, signed
from nami_amp_pipeline.http_endpoint.target import HTTP, IDEMPOTENCY_KEY
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.testing.receiver import Answer, Posted, Receiver
from nami_amp_pipeline_tests.simulation.scripted_answers import API_KEY, Bench, event
from nami_amp_pipeline_tests.support.command_line import event as nami_event
from nami_amp_pipeline_tests.support.command_line import invoke, load_events, one_line, tick
from nami_amp_pipeline_tests.support.control_center import client

SECRET = "a-secret-api-key-0123456789"
USERS = [("u:a", "d:1"), ("u:b",), ("u:a",), ("u:c",)]


# -- signature ---------------------------------------------------------------------------------------------------------


@pytest.mark.contract("5.7.1")
def test_a_signature_is_that_of_standard_webhooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the specification."""
    monkeypatch.setattr("nami_amp_pipeline.http_endpoint.signature.batch_id", lambda _: "msg_loFOjxBNrRLzqYUf")
    body = b'{"event_type":"ping","data":{"success":true}}'
    assert signed(Secret("whsec_plJ3nmyCDGBKInavdOK15jsl"), body, 1_731_705_121.9) == {
        ID: "msg_loFOjxBNrRLzqYUf",
        TIMESTAMP: "1731705121",
        SIGNATURE: "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=",
    }


@pytest.mark.contract("5.7.1")
def test_a_repeat_has_the_same_id_and_a_new_time() -> None:
    key = Secret(SECRET)
    first, again, other = (
        HTTP.headers(key, body, now) for body, now in ((b"{1}", 10.0), (b"{1}", 99.0), (b"{2}", 10.0))
    )
    assert first[ID] == again[ID] == first[IDEMPOTENCY_KEY] == batch_id(b"{1}")
    assert first[ID] != other[ID]
    assert first[TIMESTAMP] != again[TIMESTAMP]
    assert first[SIGNATURE] != again[SIGNATURE]


def test_the_page_shows_how_to_check_a_signature() -> None:
    page = (Path(__file__).parents[1] / "docs" / "http.md").read_text("utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    body = b'{"events":[]}'
    headers = HTTP.headers(Secret(SECRET), body, time.time())
    assert names["is_genuine"](SECRET.encode(), headers, body)
    assert not names["is_genuine"](b"another", headers, body)
    assert not names["is_genuine"](SECRET.encode(), headers, body + b" ")
    assert not names["is_genuine"](SECRET.encode(), HTTP.headers(Secret(SECRET), body, time.time() - 400), body)


@pytest.mark.parametrize("secret", ["plain text", "whsec_not base64", "whsec_"])
def test_any_secret_can_be_used(secret: str) -> None:
    assert signed(Secret(secret), b"{}", 0.0)[SIGNATURE].startswith("v1,")


# -- answers -----------------------------------------------------------------------------------------------------------


def judged(status: int, body: Any = b"", **headers: str) -> Verdict:
    text = body if isinstance(body, bytes) else orjson.dumps(body)
    answer = HttpAnswer(status, text, headers)
    return HTTP.judge(answer, USERS if HTTP.names_events(answer) else (), now=1_000.0)


@pytest.mark.contract("5.7.2")
@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [
        (200, Outcome.DELIVERED, "delivered"),
        (202, Outcome.DELIVERED, "delivered"),
        (204, Outcome.DELIVERED, "delivered"),
        (301, Outcome.HALT, "http_301"),
        (400, Outcome.REFUSED_ONE_OF, REJECTED),
        (409, Outcome.REFUSED_ONE_OF, REJECTED),
        (422, Outcome.REFUSED_ONE_OF, REJECTED),
        (413, Outcome.REFUSED_ONE_OF, TOO_LARGE),
        (401, Outcome.HALT, "http_401"),
        (403, Outcome.HALT, "http_403"),
        (404, Outcome.HALT, "http_404"),
        (410, Outcome.HALT, "http_410"),
        (415, Outcome.HALT, "http_415"),
        (408, Outcome.AGAIN, "http_408"),
        (429, Outcome.AGAIN, "project_throttled"),
        (500, Outcome.AGAIN, "http_500"),
        (503, Outcome.AGAIN, "http_503"),
        (600, Outcome.AGAIN, "http_600"),
    ],
)
def test_a_status_means(status: int, outcome: Outcome, reason: str) -> None:
    found = judged(status)
    assert found.outcome is outcome
    assert found.reason.split(":")[0] == reason
    assert found.maybe_stored == (outcome is Outcome.AGAIN and status != 429)


def test_retry_after_is_waited_for() -> None:
    assert judged(429).delay == 30.0
    for status in (429, 503):
        found = judged(status, **{"retry-after": "7"})
        assert (found.delay, found.whole_project) == (7.0, True)
    assert judged(503).delay is None


@pytest.mark.contract("5.7.3")
def test_results_name_events() -> None:
    found = judged(200, {"results": ["accepted", {"status": "rejected", "reason": "no"}, {"status": "retry"}]})
    assert found.outcome is Outcome.DELIVERED
    assert found.dead == {1: REJECTED}
    assert found.said == {1: '{"status":"rejected","reason":"no"}'}
    assert found.pauses == {"u:a": ("throttled", 30.0)}
    assert found.paused == {2}, "the first event of that user is stored, and the last of another user too"


def test_results_may_be_given_by_index() -> None:
    found = judged(207, {"results": [{"index": 3, "status": "rejected"}]})
    assert (found.outcome, found.dead) == (Outcome.DELIVERED, {3: REJECTED})


def test_results_of_a_refusal_say_nothing_of_the_others() -> None:
    found = judged(422, {"results": [{"index": 3, "status": "rejected"}, {"index": 0, "status": "retry"}]})
    assert (found.outcome, found.dead, found.paused) == (Outcome.REFUSED_SOME, {3: REJECTED}, frozenset({0, 2}))
    assert judged(422, {"results": []}).outcome is Outcome.REFUSED_ONE_OF


def test_a_batch_of_which_all_is_to_be_sent_again_is_sent_again() -> None:
    found = judged(200, {"results": ["retry"] * 4}, **{"retry-after": "5"})
    assert (found.outcome, found.delay, found.maybe_stored) == (Outcome.AGAIN, 5.0, False)


@pytest.mark.contract("5.7.3")
@pytest.mark.parametrize(
    "results",
    [
        "accepted", {"0": "accepted"}, ["taken"], [{"status": "rejected", "index": 4}], [None], [{"index": 1}],
        [{"status": "accepted", "index": 0}, {"status": "accepted", "index": 0}], ["accepted"] * 5,
        [{"status": "accepted", "index": True}],
    ],
)  # fmt: skip
def test_results_that_cannot_be_read_are_no_delivery(results: Any) -> None:
    found = judged(200, {"results": results})
    assert (found.outcome, found.maybe_stored) == (Outcome.AGAIN, True)
    assert found.reason.startswith("bad_results: ")


def test_a_text_that_only_looks_like_results_is_none() -> None:
    assert judged(200, b'<html>"results"').outcome is Outcome.DELIVERED
    assert judged(500, {"results": ["accepted"] * 4}).outcome is Outcome.AGAIN


# -- delivery ----------------------------------------------------------------------------------------------------------


class Wire:
    """Answers as a test says, and remembers what came."""

    def __init__(self, bench: Bench, answer: Callable[[list[str]], HttpAnswer | NoAnswer]) -> None:
        self.posted: list[list[str]] = []
        self._bench, self._answer = bench, answer
        self._came: list[tuple[int, HttpAnswer | NoAnswer]] = []

    def start(self, number: int, request: Request) -> None:
        name, at = request.headers[ID], request.headers[TIMESTAMP]
        made = hmac.new(API_KEY.encode(), f"{name}.{at}.".encode() + request.body, hashlib.sha256).digest()
        assert request.headers[SIGNATURE] == f"v1,{base64.b64encode(made).decode()}"
        assert not request.may_compress
        ids = [one["insert_id"] for one in orjson.loads(request.body)["events"]]
        self.posted.append(ids)
        self._came.append((number, self._answer(ids)))

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        self._bench.time.true += 0.01 if self._came else seconds + 1e-6
        came, self._came = self._came, []
        return came

    def close(self) -> None:
        return


def results(ids: Sequence[str], **other: str) -> HttpAnswer:
    return HttpAnswer(200, orjson.dumps({"results": [other.get(ident, "accepted") for ident in ids]}))


def delivered(bench: Bench, answer: Callable[[list[str]], HttpAnswer | NoAnswer]) -> Wire:
    with bench.context.store.begin() as tx:
        tx.execute(sa.update(tables.integrations).values(destination="http"))
    wire = Wire(bench, answer)
    integrations = registry.all_integrations(bench.context.store)
    pipeline.deliver_integrations(bench.context, integrations, wire=wire, rng=random.Random(1))
    return wire


@pytest.mark.contract("5.7.3")
def test_what_is_accepted_is_not_sent_again_for_what_is_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.prepare([event(number) for number in range(8)])
    wire = delivered(bench, lambda ids: results(ids, e3="rejected", e6="rejected"))
    assert wire.posted == [[f"e{number}" for number in range(8)]]
    dead = bench.exceptions("dead")
    said = {ident: (row.reason, row.answer, row.unknown_since) for ident, row in dead.items()}
    assert said == dict.fromkeys(("e3", "e6"), (REJECTED, '{"status":"rejected"}', None))
    assert bench.status().delivered == 6
    with bench.context.store.reading() as tx:
        (file,) = tx.execute(sa.select(tables.outboxes.c.receipts_file)).scalars()
        (request,) = tx.execute(sa.select(tables.requests)).all()
    receipts = bench.context.folder.path(file)
    import pyarrow.parquet as pq

    states = dict(zip(*(pq.read_table(receipts)[name].to_pylist() for name in ("id", "state")), strict=True))
    assert {ident for ident, state in states.items() if state == "dead"} == {"e3", "e6"}
    assert set(states.values()) == {"dead", "delivered"}
    assert (request.outcome, request.events) == ("delivered", 8)


@pytest.mark.contract("5.7.3")
def test_an_event_that_is_to_come_again_holds_its_user_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=4, run_retry_seconds=600.0)
    users = ["a", "b", "a", "b", "a", "b", "a"]
    bench.prepare([event(number, user) for number, user in enumerate(users)])
    told = iter([{"e2": "retry"}])
    wire = delivered(bench, lambda ids: results(ids, **next(told, {})))
    assert wire.posted[0] == ["e0", "e1", "e2", "e3"]
    assert wire.posted[1] == ["e5"], "of the paused user nothing goes with the others"
    assert [ident for ids in wire.posted[2:] for ident in ids] == ["e2", "e4", "e6"]
    assert (bench.status().delivered, bench.exceptions("dead")) == (7, {})


def test_held_events_may_be_refused_one_by_one_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path, run_retry_seconds=600.0)
    bench.prepare([event(number, "a") for number in range(5)])
    told = iter([{"e0": "retry", "e1": "retry", "e2": "retry", "e3": "retry"}, {"e1": "rejected", "e2": "retry"}])
    wire = delivered(bench, lambda ids: results(ids, **next(told, {})))
    assert wire.posted[0] == [f"e{number}" for number in range(5)]
    assert bench.exceptions("dead").keys() == {"e1"}
    assert (bench.status().delivered, bench.status().pending) == (4, 0)


def test_a_search_goes_on_beside_results(tmp_path: Path) -> None:
    """A refusal without names, then one with names: what was named is not looked for any more."""
    bench = Bench(tmp_path, run_retry_seconds=600.0)
    bench.prepare([event(number) for number in range(8)])

    def answer(ids: list[str]) -> HttpAnswer:
        if len(ids) > 4:
            return HttpAnswer(422, b"")
        return results(ids, e2="rejected")

    delivered(bench, answer)
    assert bench.exceptions("dead").keys() == {"e2"}
    assert bench.status().delivered == 7


class Whimsical:
    """Stores by insert id, has bad days, rejects what it always rejects, and puts users off until later."""

    def __init__(self, seed: int) -> None:
        self.stored: list[str] = []
        self.twice_answered: set[str] = set()
        self._accepted: set[str] = set()
        self._rng = random.Random(seed)

    def __call__(self, ids: list[str]) -> HttpAnswer | NoAnswer:
        rng = self._rng
        drawn = rng.random()
        if drawn < 0.08:
            return HttpAnswer(500, b"")
        if drawn < 0.14:
            return NoAnswer("reset", maybe_stored=True)
        if drawn < 0.2:
            return HttpAnswer(422, b"")  # of a mood: no event is to blame
        put_off: set[int] = set()
        said = []
        for ident in ids:
            user = int(ident[1:]) % 7
            if user in put_off or rng.random() < 0.1:
                put_off.add(user)  # and what is behind it too, or the order would break
                said.append("retry")
            elif int(ident[1:]) % 13 == 0:
                said.append("rejected")
            else:
                said.append("accepted")
        accepted = [ident for ident, word in zip(ids, said, strict=True) if word == "accepted"]
        self.twice_answered |= self._accepted & set(accepted)
        self.stored += [ident for ident in accepted if ident not in self.stored]
        if rng.random() < 0.1:
            return NoAnswer("reset", maybe_stored=True)
        self._accepted |= set(accepted)
        return HttpAnswer(200, orjson.dumps({"results": said}))


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_said_of_single_events_each_has_one_end(seed: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_lanes=3, batch_events=12, run_retry_seconds=600.0)
    bench.prepare([event(number, f"user{number % 7}") for number in range(150)], lanes=2)
    receiver = Whimsical(seed)
    for _ in range(5):
        delivered(bench, receiver)
        if not bench.status().pending:
            break
    never = {f"e{number}" for number in range(0, 150, 13)}
    dead = bench.exceptions("dead")
    assert bench.status().pending == 0
    assert never <= dead.keys()
    assert bench.status().delivered == 150 - len(dead)
    assert set(receiver.stored) >= {f"e{number}" for number in range(150)} - dead.keys()
    assert not receiver.twice_answered, "what it said that it has is not sent again"
    for user in range(7):
        mine = [int(ident[1:]) for ident in receiver.stored if int(ident[1:]) % 7 == user]
        assert mine == sorted(mine)


# -- commands ----------------------------------------------------------------------------------------------------------


def signed_again(posted: Posted) -> str:
    text = f"{posted.headers[ID]}.{posted.headers[TIMESTAMP]}.".encode() + posted.body
    return f"v1,{base64.b64encode(hmac.new(SECRET.encode(), text, hashlib.sha256).digest()).decode()}"


class Shop:
    """A receiver that stores events by insert id, and refuses what it is told to."""

    def __init__(self) -> None:
        self.events: dict[str, Any] = {}
        self.status = 200
        self.bad: set[str] = set()
        self.receiver = Receiver(self._answer)
        self.url = self.receiver.url

    def _answer(self, posted: Posted) -> Answer:
        if self.status != 200:
            return Answer(self.status, f"no: {SECRET}".encode())
        events = orjson.loads(posted.body)["events"]
        assert posted.headers[SIGNATURE] == signed_again(posted), "whatever is posted is signed"
        no = {"status": "rejected", "reason": "no such product"}
        said = [no if one["insert_id"] in self.bad else "accepted" for one in events]
        self.events |= {one["insert_id"]: one for one, word in zip(events, said, strict=True) if word == "accepted"}
        return Answer(200, orjson.dumps({"results": said}))


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.receiver.close()
    assert not shop.receiver.broken


def add(folder: Path, url: str, *more: str) -> None:
    done = invoke(
        folder, "integrations", "add", "radio", "shop", "--destination", "http", "--endpoint", url,
        "--api-key-env", "KEY", "--start-from", "beginning", *more,
    )  # fmt: skip
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_an_integration_of_it_from_end_to_end(tmp_path: Path, shop: Shop) -> None:
    add(tmp_path, shop.url)
    load_events(tmp_path, *(nami_event(number) for number in range(6)))
    shop.bad = {"event-4"}
    shop.status = 500
    (now,) = tick(tmp_path, "run-0")
    assert now.pending == 6
    preview = invoke(tmp_path, "preview", "radio/shop", "--json")
    shop.status = 200
    (now,) = tick(tmp_path, "run-1")
    assert (now.delivered, now.dead_letters) == (5, {"rejected": 1})
    assert shop.events.keys() == {f"event-{number}" for number in (0, 1, 2, 3, 5)}
    assert shop.events["event-1"]["user_properties"]["namiml_in_trial_period"] is True
    assert orjson.loads(preview.stdout)["events"][0] == shop.events["event-0"]

    trace = orjson.loads(invoke(tmp_path, "trace", "event-4", "--json").stdout)
    assert "rejected" in orjson.dumps(trace).decode()
    status = invoke(tmp_path, "status")
    assert "The HTTP endpoint rejected 1 event" in status.stdout
    assert "Amplitude" not in status.stdout
    letter = invoke(tmp_path, "dead-letters", "show", "event-4").stdout
    assert "he HTTP endpoint rejected the event for what it holds (no such product)" in letter
    assert "Posted event" in letter
    assert "Amplitude" not in letter
    shop.bad = set()
    assert invoke(tmp_path, "dead-letters", "retry", "--integration", "radio/shop").exit_code == 0
    (now,) = tick(tmp_path, "run-2")
    assert (now.delivered, now.dead_letters) == (6, {})


@pytest.mark.contract("2.24")
def test_commands_show_and_change_it(tmp_path: Path, shop: Shop) -> None:
    add(tmp_path, shop.url)
    shown = orjson.loads(invoke(tmp_path, "integrations", "show", "radio/shop", "--json").stdout)
    assert (shown["destination"], shown["endpoint"]) == ("http", shop.url)
    text = invoke(tmp_path, "integrations", "show", "radio/shop").stdout
    assert "Signing secret" in text
    assert "API key" not in text
    assert "Destination" in invoke(tmp_path, "integrations", "list").stdout
    tested = invoke(tmp_path, "integrations", "test")
    assert (tested.exit_code, tested.stdout) == (0, f"radio/shop: ok: {shop.url} accepts the key\n")
    assert not shop.events
    sent = invoke(tmp_path, "integrations", "send-test-event", "radio/shop")
    assert sent.exit_code == 0, sent.output
    assert "The HTTP endpoint took it" in sent.stdout or "the HTTP endpoint took it" in sent.stdout
    assert len(shop.events) == 1
    assert "ok       endpoint: " + shop.url in invoke(tmp_path, "doctor").stdout
    moved = invoke(tmp_path, "integrations", "update", "radio/shop", "--endpoint", "https://shop.test/in")
    assert moved.exit_code == 0, moved.output
    shop.status = 401
    assert invoke(tmp_path, "integrations", "update", "radio/shop", "--endpoint", shop.url).exit_code == 0
    refused = invoke(tmp_path, "integrations", "test", "radio/shop")
    assert refused.exit_code == 1
    assert "does not accept the key (401)" in refused.stderr
    assert SECRET not in refused.output


def test_a_refused_key_halts_it_in_words_of_its_own(tmp_path: Path, shop: Shop) -> None:
    add(tmp_path, shop.url)
    load_events(tmp_path, nami_event(1))
    shop.status = 403
    (now,) = tick(tmp_path, "run-1")
    assert now.is_halted
    said = invoke(tmp_path, "status").stdout
    assert "the address or the key is not accepted" in said
    assert "--api-key-env VAR" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--endpoint", "http://shop.test/in"), "plain http is only allowed for loopback addresses"),
        (("--endpoint", "us"), "the endpoint must be a URL such as https://host/events"),
        (("--endpoint", "https://x:y@shop.test/"), "must not hold a user name or password"),
        ((), "give the endpoint by --endpoint"),
        (("--endpoint", "https://shop.test/", "--secret-key-env", "KEY"), "the HTTP endpoint has no secret key"),
        (("--endpoint", "https://shop.test/", "--destination", "htpp"), "unknown destination 'htpp'"),
    ],
)
def test_what_cannot_be_set_is_said_in_a_line(tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    done = invoke(
        tmp_path, "integrations", "add", "radio", "shop", "--destination", "http", "--api-key-env", "KEY", *more
    )
    assert done.exit_code == 2
    assert said in one_line(done.stderr)


def test_without_a_key_it_asks_for_the_signing_secret(tmp_path: Path) -> None:
    done = invoke(
        tmp_path, "integrations", "add", "radio", "shop", "--destination", "http", "--endpoint", "https://x.y/"
    )
    assert "give the signing secret by --api-key-env" in one_line(done.stderr)


def test_one_secret_at_two_addresses_is_no_shared_key(tmp_path: Path, shop: Shop) -> None:
    add(tmp_path, shop.url)
    again = ("integrations", "add", "radio", "other", "--destination", "http", "--api-key-env", "KEY", "--endpoint")
    refused = invoke(tmp_path, *again, shop.url)
    assert "radio/shop has the same API key" in one_line(refused.stderr)
    assert invoke(tmp_path, *again, f"{shop.url}/other").exit_code == 0
    moved = invoke(tmp_path, "integrations", "update", "radio/other", "--endpoint", shop.url)
    assert "radio/shop has the same API key" in one_line(moved.stderr)


@pytest.mark.contract("2.25")
def test_what_it_cannot_do_is_said_in_a_line(tmp_path: Path, shop: Shop) -> None:
    add(tmp_path, shop.url)
    identify = invoke(tmp_path, "identify", "radio/shop", "--dry-run")
    assert "the HTTP endpoint takes events only, so there is no identify" in one_line(identify.stderr)
    compared = invoke(tmp_path, "reconcile", "radio/shop", "--from", "2026-09-01", "--to", "2026-09-02")
    assert "does not tell which events it holds" in one_line(compared.stderr)


@pytest.mark.slow
def test_a_backfill_goes_through_it(tmp_path: Path, shop: Shop) -> None:
    load_events(tmp_path, nami_event(1), nami_event(2))
    add(tmp_path, shop.url, "--start-from", "now")
    tick(tmp_path, "run-1")
    assert not shop.events
    done = invoke(tmp_path, "backfill", "radio/shop", "--from", "2026-09-01", "--to", "2026-09-02")
    assert done.exit_code == 0, done.output
    assert shop.events.keys() == {"event-1", "event-2"}


def test_as_code(tmp_path: Path, shop: Shop) -> None:
    add(tmp_path, shop.url)
    exported = invoke(tmp_path, "integrations", "export").stdout
    assert "destination: http" in exported
    assert "allow_custom_endpoint" not in exported
    file = tmp_path / "integrations.yaml"
    file.write_text(exported.replace("env: RADIO_SHOP_API_KEY", "env: KEY"))
    same = invoke(tmp_path, "integrations", "plan", str(file), "--detailed-exitcode")
    assert same.exit_code == 2, same.output  # it becomes managed by the file
    assert invoke(tmp_path, "integrations", "apply", str(file), "--yes").exit_code == 0
    assert invoke(tmp_path, "integrations", "plan", str(file), "--detailed-exitcode").exit_code == 0
    file.write_text(file.read_text().replace("shop:", "second:").replace(shop.url, f"{shop.url}/2"))
    added = invoke(tmp_path, "integrations", "apply", str(file), "--yes")
    assert added.exit_code == 0, added.output
    assert "gets the events" in added.stdout
    shown = orjson.loads(invoke(tmp_path, "integrations", "show", "radio/second", "--json").stdout)
    assert (shown["destination"], shown["endpoint"]) == ("http", f"{shop.url}/2")
    file.write_text(
        file.read_text().replace("destination: http", "destination: amplitude\n        allow_custom_endpoint: true")
    )
    turned = invoke(tmp_path, "integrations", "plan", str(file))
    assert "destination: it is http, and stays so" in turned.stderr
    file.write_text(file.read_text().replace("destination: amplitude", "destination: pigeon"))
    assert "unknown destination 'pigeon'" in invoke(tmp_path, "integrations", "plan", str(file)).stderr


@pytest.mark.slow
def test_the_control_center_shows_it(tmp_path: Path, shop: Shop) -> None:
    home = tmp_path / ".nami-amp"
    add(tmp_path, shop.url, "--exclude", "email")
    load_events(tmp_path, nami_event(1))
    tick(tmp_path, "run-1")
    pages = client(home)
    page = pages.get("/apps/radio/integrations/shop")
    assert page.status_code == 200
    assert shop.url in page.text
    assert "Signing secret" in page.text
    assert SECRET not in page.text
    for address in ("", "/shop/preview", "/shop/test-event", "/shop/switch", "/shop/remove"):
        assert pages.get(f"/apps/radio/integrations{address}").status_code == 200, address
    assert f"HTTP endpoint, {shop.url.split('/')[2]}" in pages.get("/apps/radio/integrations").text
    sent = pages.post("/apps/radio/integrations/shop/test-event", data={"event_type": "device.impression"})
    assert "The HTTP endpoint took it" in sent.text
