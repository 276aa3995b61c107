"""What a destination must do, as tests: the real engine posts to a real receiver that has bad days.

```python
class TestMine(DestinationSuite):
    destination = MINE
```
"""

from __future__ import annotations

import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Final

import orjson
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.delivery.destination import Destination
from nami_amp_pipeline.delivery.request_threads import ThreadedWire
from nami_amp_pipeline.delivery.transport import HttpAnswer, HttpTransport, NoAnswer
from nami_amp_pipeline.destinations import DESTINATIONS, SHARED_FIELDS, own_fields
from nami_amp_pipeline.operations.connection import check_connection
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.stages.pipeline import deliver_integrations
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import NewIntegration, all_integrations, set_enabled
from nami_amp_pipeline.state.own_fields import check, given_to, with_defaults
from nami_amp_pipeline.testing.receiver import CUT, Answer, Fault, Memory, Posted, Receiver
from nami_amp_pipeline.testing.workbench import NOON, Workbench

KEY: Final = "whsec_c3VpdGUta2V5LW9mLXRoZS1yZWNlaXZlcg=="
"""The key of the suite's integration, which nothing that is stored or logged may hold."""

LONG_TEXT: Final = "c2VjcmV0LW9mLWEtZmllbGQtb2YtaXRzLW93bg"
"""Ends the secrets of its own fields, which nothing may hold either."""

MOST_RUNS: Final = 20
EVENTS: Final = 120
USERS: Final = 9

_PATIENCE: Final = 1.0
"""Seconds that an answer may take."""

_ODD_TEXTS: Final = ("plain", 'with "quotes" and \\ and \n line', "ä 🦆 \u2028", "x" * 3_000, "", "</script>")
_FAULTS: Final[Sequence[Fault]] = ("", "error", "cut_stored", "busy", "", "cut", "cut_stored", "")


class _HastyWire(ThreadedWire):
    """Posts for real; where nothing is under way, the time until the next request passes at once."""

    def __init__(self, transport: HttpTransport, bench: Workbench) -> None:
        super().__init__(transport)
        self._bench = bench

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        """See :class:`Wire`."""
        if self._under_way:
            return super().wait(seconds)
        self._bench.now += timedelta(seconds=seconds)
        return []


class DestinationSuite:
    """Subclass it with a destination, and override what its receiver does otherwise. Each test has a new home.

    Attributes:
        destination: what is tested.
        values: of its own fields, by name, where neither a default nor the first choice will do, or a secret any text.
    """

    destination: ClassVar[Destination]
    values: ClassVar[Mapping[str, str]] = {}

    # -- the receiver ------------------------------------------------------------------------------------------------

    def events_of(self, body: bytes) -> list[Any]:
        """The events of a request, in order."""
        found: list[Any] = orjson.loads(body)["events"]
        return found

    def id_of(self, event: Any) -> str:
        """What the receiver knows an event by: Nami's id."""
        return str(event["insert_id"])

    def accepting(self, ids: Sequence[str]) -> Answer:
        """The answer that all events are accepted."""
        del ids
        return Answer()

    def rejecting(self, ids: Sequence[str], bad: Sequence[int]) -> tuple[Answer, Sequence[int]]:
        """The answer that events are rejected for what they hold, and which events it stores all the same.

        Args:
            ids: of the request.
            bad: places in the request; at least one.
        """
        del ids, bad
        return Answer(400, b'{"error": "an event is no good"}'), ()

    def rejecting_key(self) -> Answer:
        """The answer to an unknown key."""
        return Answer(401, b'{"error": "unknown key"}')

    # -- the bench ---------------------------------------------------------------------------------------------------

    def setup_method(self) -> None:
        """Opens a home and a receiver."""
        name = self.destination.name
        self._before = DESTINATIONS.get(name)
        DESTINATIONS[name] = self.destination
        self.user_of = {f"e{number:03}": f"user-{number % USERS}" for number in range(EVENTS)}
        self.memory = Memory(self.user_of)
        self.ids: list[str] = []
        self.bad: set[str] = set()
        self.most_bytes = 0
        self.faults: Callable[[], Fault] = lambda: ""
        self.instead: Answer | None = None
        self.receiver = Receiver(self._answer)
        self.bench = self._opened()

    def teardown_method(self) -> None:
        """Closes both."""
        self.bench.close()
        self.receiver.close()
        if self._before is None:
            del DESTINATIONS[self.destination.name]
        else:
            DESTINATIONS[self.destination.name] = self._before

    def _opened(self) -> Workbench:
        new = NewIntegration(
            "app",
            "main",
            self.receiver.url,
            api_key=Secret(KEY),
            user_id_kind="nami_user_id",
            allow_custom_endpoint=True,
            destination=self.destination.name,
            fields=self._own()[0],
            secret_fields=self._own()[1],
        )
        settings = {"batch_events": 20, "max_lanes": 3, "http_timeout_seconds": _PATIENCE}
        return Workbench(integration=new, settings=settings)

    def _own(self) -> tuple[dict[str, str], dict[str, Secret]]:
        """Values of the fields that it has of its own, and of the secrets among them: each has one."""
        clear, secrets = dict[str, str](), dict[str, Secret]()
        for number, (name, field) in enumerate(own_fields(self.destination).items()):
            if field.is_secret:
                secrets[name] = Secret(self.values.get(name, f"{number}-{LONG_TEXT}"))
            elif (value := self.values.get(name, next(iter(field.choices), field.default))) is not None:
                clear[name] = value
        return clear, secrets

    def _bound(self) -> Destination:
        """It, with the values of its own fields."""
        return given_to(self.destination, *self._own())

    def _answer(self, posted: Posted) -> Answer:
        if self.instead is not None:
            return self.instead
        parsed = self.events_of(posted.body)
        events = {self.id_of(event): orjson.dumps(event) for event in parsed}
        assert len(events) == len(parsed), "a request has an event twice"
        users = self.memory.begin(events, posted.body)
        try:
            return self._outcome(events, len(posted.body))
        finally:
            self.memory.end(users)

    def _outcome(self, events: Mapping[str, bytes], size: int) -> Answer:
        if self.most_bytes and size > self.most_bytes:
            return Answer(413, b"")
        fault = self.faults()
        if fault == "error":
            return Answer(500, b"")
        if fault == "busy":
            return Answer(429, b"", {"Retry-After": "0"})
        if fault == "cut":
            return Answer(CUT)
        ids = list(events)
        bad = [place for place, ident in enumerate(ids) if ident in self.bad]
        answer, stored = self.rejecting(ids, bad) if bad else (self.accepting(ids), range(len(ids)))
        self.memory.store({ids[place]: events[ids[place]] for place in stored})
        if fault == "cut_stored":
            return Answer(CUT)
        return (
            Answer(answer.status, answer.body, answer.headers, after=_PATIENCE * 1.5)
            if fault == "late_stored"
            else answer
        )

    def _have_bad_days(self, seed: int) -> None:
        """Makes everything go wrong that can: each kind within eight requests, in an order that a seed gives."""
        rng = random.Random(seed)  # noqa: S311 - a schedule
        left: list[Fault] = []

        def draw() -> Fault:
            if not left:
                left.extend(rng.sample(_FAULTS, len(_FAULTS)))
            return left.pop()

        self.faults = draw

    def load(self, events: int = EVENTS) -> None:
        """Loads the first events, and prepares them."""
        ids = self.ids = list(self.user_of)[:events]
        self.bench.load_all(
            pa.table(
                {
                    "id": ids,
                    "app_id": ["app"] * events,
                    "event_type": ["user.subscription.renewed"] * events,
                    "user_id": [self.user_of[ident] for ident in ids],
                    "created_date": pa.array(
                        [NOON - timedelta(minutes=events - number) for number in range(events)],
                        pa.timestamp("us", tz="UTC"),
                    ),
                    "payload": [
                        orjson.dumps({"note": _ODD_TEXTS[number % len(_ODD_TEXTS)], "n": number}).decode()
                        for number in range(events)
                    ],
                }
            )
        )
        self.bench.prepare()

    def deliver(self, runs: int = MOST_RUNS) -> IntegrationStatus:
        """Runs the last stage until nothing is pending, it halts, or so many runs are over."""
        context = self.bench.context
        for _ in range(runs):
            transport = HttpTransport(context.settings.http_timeout_seconds)
            deliver_integrations(
                context,
                all_integrations(context.store),
                wire=_HastyWire(transport, self.bench),
                rng=random.Random(5),  # noqa: S311 - jitter
            )
            now = self.status()
            if not now.pending or now.is_halted:
                break
        if self.receiver.broken:
            raise self.receiver.broken[0]
        return self.status()

    def deliver_once(self) -> IntegrationStatus:
        """Runs the last stage once, and waits for nothing that takes long."""
        context = self.bench.context
        patient, context.settings = context.settings, context.settings.replace(run_retry_seconds=0.0)
        try:
            return self.deliver(1)
        finally:
            context.settings = patient

    def status(self) -> IntegrationStatus:
        """How the integration stands."""
        context = self.bench.context
        (found,) = status(context, all_integrations(context.store))
        return found

    def dead(self) -> dict[str, str]:
        """The dead letters: reason by id."""
        table = tables.exceptions
        with self.bench.context.store.reading() as tx:
            query = sa.select(table.c.event_id, table.c.reason).where(table.c.state == "dead")
            return dict(tx.execute(query).tuples().all())

    def _all_is_well(self, *, dead: set[str] | None = None) -> None:
        """Each event is stored once, in the order of its user, or is a dead letter; and counts say so."""
        ids, gone, now = self.ids, dead or set(), self.status()
        assert self.memory.complaints == []
        assert set(self.dead()) == gone
        assert self.memory.texts.keys() == set(ids) - gone
        for user in set(self.user_of.values()):
            mine = [ident for ident in ids if self.user_of[ident] == user and ident not in gone]
            assert [ident for ident in self.memory.order if self.user_of[ident] == user] == mine, "order of a user"
        assert (now.pending, now.delivered) == (0, len(ids) - len(gone))
        assert now.captured == now.delivered + sum(now.skipped.values()) + sum(now.dead_letters.values())

    # -- what it says of itself --------------------------------------------------------------------------------------

    def test_it_says_what_it_is(self) -> None:
        """Name, fields and limits can be used."""
        it = self.destination
        assert it.name.isidentifier()
        assert it.title
        fields = {field.name: field for field in it.fields}
        assert len(fields) == len(it.fields), "each name once"
        assert {"endpoint", "api_key"} <= fields.keys()
        for field in fields.values():
            assert field.label
            assert field.help.endswith(".")
            assert re.fullmatch(r"[a-z][a-z0-9_]{0,40}", field.name)
            is_own = field.name not in SHARED_FIELDS
            assert is_own or field.is_secret == (field.name != "endpoint")
            assert is_own or not (field.choices or field.pattern)
            assert not (is_own and field.is_secret and (field.choices or field.default is not None))
        clear, secrets = self._own()
        check(it, clear, dict(secrets))
        check(it, with_defaults(it, {}) | clear, dict(secrets))  # a default can be used
        limits = it.limits(self.receiver.url)
        assert limits.events > 0
        frame = self._bound().frame(Secret(KEY))
        assert limits.size > len(frame.head) + len(frame.tail)
        assert limits.events_per_second > 0
        assert limits.recognises_repeats >= timedelta(hours=12), "a repeat after a night must be recognised"
        assert it.answers
        assert it.repair("http_401")

    def test_a_probe_tells_a_key_from_none(self) -> None:
        """And stores nothing."""
        own = self._own()[1].values()
        ask = (self.receiver.url, Secret(KEY), self.bench.settings, self._bound(), own)
        self.instead = self.accepting([])
        assert check_connection(*ask)[0]
        self.instead = self.rejecting_key()
        is_ok, said = check_connection(*ask)
        assert not is_ok
        assert KEY not in said
        assert "\n" not in said
        assert not self.memory.texts

    # -- delivery ----------------------------------------------------------------------------------------------------

    def test_each_event_arrives_once_and_in_order(self) -> None:
        """Without any trouble."""
        self.load()
        self.deliver()
        self._all_is_well()
        limits = self.destination.limits(self.receiver.url)
        assert max(map(len, self.memory.bodies)) <= limits.size
        assert max(len(self.events_of(body)) for body in self.memory.bodies) <= min(20, limits.events)

    def test_troubles_change_nothing(self) -> None:
        """Errors, broken connections before and after storing, and throttling, in any order."""
        self._have_bad_days(7)
        self.load()
        self.deliver()
        self._all_is_well()

    def test_what_was_answered_too_late_comes_again_as_the_same_bytes(self) -> None:
        """Once each way of not knowing the outcome: too late, and cut off."""
        script: list[Fault] = ["late_stored", "cut_stored"]
        self.faults = lambda: script.pop(0) if script else ""
        self.load()
        self.deliver()
        self._all_is_well()
        repeated = [body for body, times in Counter(self.memory.bodies).items() if times > 1]
        assert len(repeated) >= 2, "what has an unknown outcome is sent again, as it was"

    def test_rejected_events_are_dead_letters(self) -> None:
        """Each of them, and no other."""
        self.bad = {"e005", "e006", "e050", "e051", "e110", "e119"}
        self.load()
        self.deliver()
        self._all_is_well(dead=self.bad)
        assert all(self.dead().values()), "a dead letter has a reason"

    def test_rejections_and_troubles_together(self) -> None:
        """What is rejected is rejected however often it is asked."""
        self._have_bad_days(11)
        self.bad = {"e004", "e077", "e078", "e100"}
        self.load()
        self.deliver()
        self._all_is_well(dead=self.bad)

    def test_a_receiver_that_takes_less_gets_less(self) -> None:
        """413 splits a batch; no event is lost for it."""
        self.most_bytes = 12_000
        self.load()
        self.deliver()
        self._all_is_well()

    def test_a_rejected_key_halts_and_loses_nothing(self) -> None:
        """And it goes on where it stopped."""
        self.load(20)
        self.instead = self.rejecting_key()
        now = self.deliver()
        assert now.is_halted
        assert (now.pending, self.dead()) == (20, {})
        self.instead = None
        set_enabled(self.bench.context.store, "app/main", enabled=True)
        self.deliver()
        self._all_is_well()

    def test_a_receiver_that_is_down_loses_nothing(self) -> None:
        """Whatever it answers meanwhile."""
        self.load(30)
        for status_ in (500, 502, 503, 504):
            self.instead = Answer(status_, b"<html>down</html>", {"Content-Type": "text/html"})
            assert self.deliver_once().pending == 30
        self.instead = None
        self.bench.now += timedelta(hours=1)
        assert self.deliver().delivered == 30
        assert self.memory.complaints == []

    # -- what must not leave, and what must stay the same ------------------------------------------------------------

    def test_no_secret_is_in_what_is_kept(self) -> None:
        """Although the receiver repeats all that it was sent."""
        heard: list[str] = []
        listener = logging.Handler(logging.DEBUG)
        listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger().addHandler(listener)
        secrets = [KEY, KEY[6:], *(secret.reveal() for secret in self._own()[1].values())]
        echo = " ".join(["no:", *secrets, *(orjson.dumps(secret).decode() for secret in secrets)]).encode()
        try:
            self.load(6)
            rng = random.Random(3)  # noqa: S311 - a schedule
            answers = [Answer(500, echo), Answer(400, echo), Answer(413, echo), self.rejecting_key()]
            for _ in range(6):
                picked = rng.choice(answers)
                self.instead = Answer(picked.status, picked.body + echo, {"X-Key": secrets[-1]})
                self.deliver_once()
                self.bench.now += timedelta(minutes=10)
                set_enabled(self.bench.context.store, "app/main", enabled=True)
        finally:
            logging.getLogger().removeHandler(listener)
        kept = b"".join(path.read_bytes() for path in self.bench.settings.home.rglob("*") if path.is_file())
        for form in secrets:
            assert form.encode() not in kept
            assert form not in "\n".join(heard)

    def test_the_same_events_give_the_same_bytes(self) -> None:
        """In another home, another process' stead."""
        self.load()
        once = self.bench.bodies()
        assert len(once) == EVENTS
        self.bench.close()
        self.bench = self._opened()
        self.load()
        assert self.bench.bodies() == once
