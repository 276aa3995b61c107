"""The sandbox itself, without a network: a request goes in, the answer comes out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import orjson

from .answers import Answer, accepted_answer, json_answer, refusal
from .audit import Audit, Flight, Flights
from .batches import Batch, Damage
from .control import Control
from .export import Span, credentials, export, exportable_until, nothing_found, span_of
from .failures import failure, refusal_of_events, refusal_of_findings, spoiled, throttled
from .faults import Fault, Faults, RequestFacts
from .gc_pause import paused_collector
from .hosts import region_of, serves
from .journal import Entry, Journal
from .losses import check_loses, lose, lose_held, restored
from .projects import Projects
from .request_log import RequestLog
from .settings import EXPORT_PATH, MAX_BYTES, Options, Project, key_digest, key_hint
from .store import ProjectStore
from .uploads import Upload, read_upload
from .validation import Columns, Validator, normal_columns


class Sandbox:
    """A local Amplitude: ``POST /2/httpapi``, ``POST /batch``, ``GET /api/2/export`` and its own ``/sandbox`` pages.

    Thread-safe. It does no input or output but the journal's, reads the time from ``clock`` only and draws from ``rng``
    only, so the same requests at the same times get the same answers.

    Attributes:
        audit: what the senders did.
        faults: the rules that make it misbehave.
        options: how strict it is.
        requests: the newest requests with their answers.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        projects: Mapping[str, Project] | None = None,
        *,
        refused_keys: Collection[str] = (),
        options: Options | None = None,
        rng: random.Random | None = None,
        journal: Path | None = None,
        any_key: bool | None = None,
        names: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        """Starts empty, or with what the journal holds.

        Args:
            clock: seconds since the epoch.
            projects: the known projects by API key.
            refused_keys: keys that are answered ``Invalid API key`` in any case.
            options: how strict to be.
            rng: draws the faults that have no seed of their own; a fixed seed by default.
            journal: NDJSON file that keeps the accepted events from one start to the next.
            any_key: whether any other key makes a project of its own; by default if no projects are given.
            names: gives the names of projects by the SHA-256 of their API key; asked when a project without a name is
                shown.

        Raises:
            OSError: the journal cannot be opened.
        """
        self.options = options or Options()
        self.audit = Audit()
        self.faults = Faults(rng or random.Random(0))  # noqa: S311 - chooses faults, nothing secret
        self.requests = RequestLog(self.options.keep_request_events)
        self._clock = clock
        is_open = projects is None if any_key is None else any_key
        self._projects = Projects(projects, any_key=is_open, refused_keys=refused_keys, names=names)
        self._validator = Validator(self.options)
        self._flights = Flights()
        self._lock = RLock()
        self._control = Control(self)
        self._journal = Journal(journal) if journal is not None else None
        if self._journal is not None:
            for entry in self._journal.entries():
                self._restore(entry)

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"", query: str = "") -> Answer:
        """Answers a request that comes and goes at once.

        Args:
            method: such as ``POST``.
            path: without the query.
            headers: names in any case.
            body: as it came, compressed or not.
            query: without the question mark.
        """
        flight = self.arrive()
        try:
            return self.answer(flight, method, path, headers, body, query)
        finally:
            self.depart(flight)

    def arrive(self, alive: Callable[[], bool] | None = None) -> Flight:
        """A request begins to come in; for servers and simulations in which requests take time.

        Args:
            alive: tells whether the client still waits for its answer.
        """
        with self._lock:
            return self._flights.arrive(alive)

    def depart(self, flight: Flight) -> None:
        """The answer of a request leaves, or its client is gone."""
        with self._lock:
            self._flights.depart(flight)

    def answer(
        self, flight: Flight, method: str, path: str, headers: Mapping[str, str], body: bytes = b"", query: str = ""
    ) -> Answer:
        """Answers a request that has come in whole; arguments as for `handle`."""
        named = {name.lower(): value for name, value in headers.items()}
        if path in (*MAX_BYTES, EXPORT_PATH) and not serves(named, path):
            return refusal(404, "Invalid request path", "another of Amplitude's hosts serves this path")
        if path in MAX_BYTES and method == "POST":
            return self._upload(flight, path, named, body)
        if path == EXPORT_PATH and method == "GET":
            return self._export(named, query)
        answer = self._control.answer(method, path, named, body, query)
        if answer is not None:
            return answer
        return refusal(400 if method == "POST" else 404, "Invalid request path")

    def clear(self) -> None:
        """Forgets all events, users, rates and audit counts; projects, options and faults stay."""
        with self._lock:
            self._projects.clear()
            self.audit = Audit()
            self.requests = RequestLog(self.options.keep_request_events)
            if self._journal is not None:
                self._journal.clear()

    def close(self) -> None:
        """Closes the journal."""
        with self._lock:
            if self._journal is not None:
                self._journal.close()

    def stores(self) -> list[ProjectStore]:
        """The projects that have taken events, in the order of their first one. Hold `locked` to read them."""
        return list(self._projects)

    def empty_projects(self) -> list[tuple[int, Project, str]]:
        """The known projects that have taken no event: number, project, and what of its key may be shown."""
        return list(self._projects.empty())

    def learn_names(self) -> None:
        """Looks for the names of the projects that have none."""
        self._projects.learn_names(self._clock())

    def lose_held(self, rule: Fault) -> int:
        """Loses, cuts or doubles events that are stored already, once.

        Args:
            rule: which events, and what becomes of them.

        Returns:
            How many events it happened to.

        Raises:
            FaultError: the rule is of a kind that does nothing of that.
        """
        check_loses(rule)
        with self._lock:
            happened = 0
            for store in self.stores():
                damage = lose_held(rule, self.faults, store, self.audit)
                self._write(store, None, damage)
                happened += len(damage)
            return happened

    @property
    def locked(self) -> RLock:
        """The lock under which everything changes."""
        return self._lock

    def _upload(self, flight: Flight, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if self.options.blind:
            answer = accepted_answer(body.count(b'"event_type"'), len(body), int(self._clock() * 1000), 0)
        else:
            with paused_collector():
                read = read_upload(path, headers, body)
                with self._lock:
                    now = self._clock()
                    upload = read if isinstance(read, Upload) else None
                    answer, columns = self._judge(flight, read, now) if isinstance(read, Upload) else (read, None)
                    self.requests.note(upload, columns, answer, path, now)
                del read, upload, columns
        with self._lock:
            self.audit.requests += 1
            self.audit.bytes_received += len(body)
            self.audit.requests_by_status[answer.transport or str(answer.status)] += 1
        return _delayed(answer, self.options.latency_ms / 1000)

    def _judge(self, flight: Flight, upload: Upload, now: float) -> tuple[Answer, Columns | None]:
        events = upload.events if upload.events is not None else []
        self.audit.events_received += len(events)
        columns = None
        if events and upload.min_id_length is not None:
            columns = self._validator.quick(events, upload.min_id_length)
        if upload.api_key is not None:
            self._watch_concurrency(flight, upload.api_key, events, columns)
        facts = RequestFacts(upload.path, upload.api_key, events)
        fault = self.faults.first("before", facts)
        answer = (
            failure(fault[0], upload.api_key) if fault is not None else self._take(upload, events, columns, facts, now)
        )
        is_taken = answer.accepted or answer.status == 200
        if not is_taken and upload.api_key is not None and self._projects.is_known(upload.api_key, upload.region):
            self._store(upload.api_key).repeats.note_refused(events)
        return _delayed(answer, self.faults.delay(facts)), columns

    def _watch_concurrency(self, flight: Flight, api_key: str, events: list[Any], columns: Columns | None) -> None:
        identities = columns.identities() if columns is not None else _raw_identities(events)
        for identity in self._flights.identify(flight, api_key, identities):
            self.audit.concurrent_same_user.note({"project": key_hint(api_key), "identity": identity})

    def _take(
        self, upload: Upload, events: list[Any], columns: Columns | None, facts: RequestFacts, now: float
    ) -> Answer:
        """Checks the request in Amplitude's order, and takes its events."""
        if upload.api_key is None:
            return refusal(400, "Request missing required field", missing_field="api_key")
        if upload.events is None or (not events and self.options.empty_events == 400):
            return refusal(400, "Request missing required field", missing_field="events")
        if not self._projects.is_known(upload.api_key, upload.region):
            return refusal(400, f"Invalid API key: {upload.api_key}")
        if upload.min_id_length is None:
            return refusal(400, "Invalid JSON request body", "options.min_id_length must be a positive integer")
        if not events:
            return accepted_answer(0, len(upload.body), int(now * 1000), 0)
        body = upload.body
        if columns is None:
            findings, columns, stripped = self._validator.full(events, upload.min_id_length)
            if columns is None:
                return refusal_of_findings(findings, self.options)
            if stripped:
                body = orjson.dumps({"events": events})
        fault = self.faults.first("events", facts)
        if fault is not None:
            return refusal_of_events(fault[0], fault[1], columns, upload.path, self.options)
        store = self._store(upload.api_key)
        if self.options.throttle:
            verdict = store.throttle.judge(now, upload.path, columns.users, columns.devices)
            if verdict:
                return throttled(verdict, columns)
        admission = store.admit(
            events, columns, body, path=upload.path, received_at=now, client_upload_time=upload.client_upload_time
        )
        accepted = 0
        if admission.batch is not None:
            accepted = admission.batch.count
            damage = lose(self.faults, facts, store, admission.batch, self.audit)
            self._write(store, admission.batch, damage)
        self.audit.accepted += accepted
        self.audit.duplicates += admission.duplicates
        ingested = len(events) if self.options.dup_counts_in_events_ingested else accepted
        answer = accepted_answer(ingested, len(upload.body), int(now * 1000), accepted)
        later = self.faults.first("after", facts)
        return answer if later is None else spoiled(answer, later[0])

    def _store(self, api_key: str) -> ProjectStore:
        return self._projects.of_key(api_key, self.options, self.audit)

    def _export(self, headers: Mapping[str, str], query: str) -> Answer:
        given = credentials(headers)
        if given is None:
            return Answer(401, {"WWW-Authenticate": 'Basic realm="export"'})
        api_key, secret_key = given
        if not self._projects.may_export(api_key, secret_key, region_of(headers)):
            return json_answer(403, {"error": "Forbidden"})
        span = span_of(query)
        if isinstance(span, Answer):
            return span
        facts = RequestFacts(EXPORT_PATH, api_key, (), span.hours)
        with self._lock:
            fault = self.faults.first("before", facts)
            delay = self.faults.delay(facts) + self.options.latency_ms / 1000
        answer = failure(fault[0], api_key) if fault is not None else self._exported(api_key, span)
        with self._lock:
            later = self.faults.first("after", facts)
        if later is not None:
            # A fault is of a body in memory.
            answer = spoiled(replace(answer, body=answer.read(), file=None), later[0])
        return _delayed(answer, delay)

    def _exported(self, api_key: str, span: Span) -> Answer:
        options, until = self.options, exportable_until(self._clock(), self.options)
        with self._lock:
            store = self._projects.find(key_digest(api_key))
            if store is None:
                return nothing_found()
            if store.kept_after() >= span.first:
                return refusal(504, "Gateway Timeout", "the sandbox does not keep the events of these hours any more")
            replay = store.take_replay(span.first)
        answer = export(store.project_id, replay, Span(span.first, min(span.after, until)), options)
        if answer.status != 400:
            with self._lock:
                store.give_replay(replay)
        return answer

    def _write(self, store: ProjectStore, batch: Batch | None, damage: Mapping[int, Damage]) -> None:
        """Adds what was taken, and what became of it, to the journal."""
        if self._journal is None:
            return
        project = (store.digest, store.hint, store.project_id)
        if batch is not None:
            events = batch.events()
            self._journal.append(Entry(*project, batch.path, batch.received_at, batch.client_upload_time, events))
        if damage:
            changes = {str(number): changed.to_json() for number, changed in damage.items()}
            self._journal.append(Entry(*project, "", self._clock(), None, [], changes))

    def _restore(self, entry: Entry) -> None:
        """Takes in what the journal tells as if it happened now, except that events count as received then."""
        store = self._projects.of_journal(entry.key_digest, entry.key_hint, entry.project_id, self.options, self.audit)
        if entry.damage:
            restored(store, entry.damage, self.audit)
            return
        admission = store.admit(
            entry.events,
            normal_columns(entry.events),
            orjson.dumps({"events": entry.events}),
            path=entry.path,
            received_at=entry.received_at,
            client_upload_time=entry.client_upload_time,
        )
        self.audit.accepted += admission.batch.count if admission.batch is not None else 0


def _raw_identities(events: list[Any]) -> set[str]:
    """Who the events are of, where they are not known to be good."""
    found = set()
    for event in events:
        if isinstance(event, dict):
            user, device = event.get("user_id"), event.get("device_id")
            if isinstance(user, str):
                found.add(user.strip())
            elif isinstance(device, str):
                found.add(f"device {device.strip()}")
    return found


def _delayed(answer: Answer, seconds: float) -> Answer:
    return replace(answer, delay_s=answer.delay_s + seconds) if seconds else answer
