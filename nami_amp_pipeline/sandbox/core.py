"""The sandbox itself, without a network: a request goes in, the answer comes out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from threading import RLock
from typing import Any

import orjson

from .answers import Answer, accepted_answer, json_answer, refusal
from .audit import Audit, Flight, Flights
from .control import Control
from .export import credentials, export
from .failures import failure, refusal_of_events, spoiled, throttled
from .faults import Faults, RequestFacts
from .gc_pause import paused_collector
from .journal import Entry, Journal
from .settings import EXPORT_PATH, MAX_BYTES, Options, Project, key_digest, key_hint
from .store import Batch, ProjectStore
from .uploads import Upload, read_upload
from .validation import Columns, Findings, Validator, normal_columns

_FIRST_PROJECT_ID = 100_001


class Sandbox:
    """A local Amplitude: ``POST /2/httpapi``, ``POST /batch``, ``GET /api/2/export`` and its own ``/sandbox`` pages.

    Thread-safe. It does no input or output but the journal's, reads the time from ``clock`` only and draws from ``rng``
    only, so the same requests at the same times get the same answers.

    Attributes:
        audit: what the senders did.
        faults: the rules that make it misbehave.
        options: how strict it is.
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
    ) -> None:
        """Starts empty, or with what the journal holds.

        Args:
            clock: seconds since the epoch.
            projects: the known projects by API key; None takes any key and makes a project of it.
            refused_keys: keys that are answered ``Invalid API key`` in any case.
            options: how strict to be.
            rng: draws the faults that have no seed of their own; a fixed seed by default.
            journal: NDJSON file that keeps the accepted events from one start to the next.

        Raises:
            OSError: the journal cannot be opened.
        """
        self.options = options or Options()
        self.audit = Audit()
        self.faults = Faults(rng or random.Random(0))  # noqa: S311 - chooses faults, nothing secret
        self._clock = clock
        self._projects = projects
        self._refused_keys = frozenset(refused_keys)
        self._validator = Validator(self.options)
        self._flights = Flights()
        self._stores: dict[str, ProjectStore] = {}
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
            self._stores.clear()
            self.audit = Audit()
            if self._journal is not None:
                self._journal.clear()

    def close(self) -> None:
        """Closes the journal."""
        with self._lock:
            if self._journal is not None:
                self._journal.close()

    def stores(self) -> list[ProjectStore]:
        """The projects that have taken events, in the order of their first one. Hold `locked` to read them."""
        return [store for store in self._stores.values() if store.accepted]

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
                    answer = read if isinstance(read, Answer) else self._judge(flight, read, self._clock())
                del read
        with self._lock:
            self.audit.requests += 1
            self.audit.bytes_received += len(body)
            self.audit.requests_by_status[answer.transport or str(answer.status)] += 1
        delay = self.options.latency_ms / 1000
        return answer if not delay else _delayed(answer, delay)

    def _judge(self, flight: Flight, upload: Upload, now: float) -> Answer:
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
        if (
            not answer.accepted
            and answer.status != 200
            and upload.api_key is not None
            and self._is_known(upload.api_key)
        ):
            self._store(upload.api_key).note_refused(events)
        delay = self.faults.delay(facts)
        return answer if not delay else _delayed(answer, delay)

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
        if not self._is_known(upload.api_key):
            return refusal(400, f"Invalid API key: {upload.api_key}")
        if upload.min_id_length is None:
            return refusal(400, "Invalid JSON request body", "options.min_id_length must be a positive integer")
        if not events:
            return accepted_answer(0, len(upload.body), int(now * 1000), 0)
        body = upload.body
        if columns is None:
            findings, columns, stripped = self._validator.full(events, upload.min_id_length)
            if columns is None:
                return self._found(findings)
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
            self._write(store, admission.batch)
        self.audit.accepted += accepted
        self.audit.duplicates += admission.duplicates
        ingested = len(events) if self.options.dup_counts_in_events_ingested else accepted
        answer = accepted_answer(ingested, len(upload.body), int(now * 1000), accepted)
        later = self.faults.first("after", facts)
        return answer if later is None else spoiled(answer, later[0])

    def _found(self, findings: Findings) -> Answer:
        """The 400 for events that are not good."""
        if findings.not_objects:
            return refusal(400, "Invalid event JSON")
        lists = {
            "events_with_missing_fields": findings.missing,
            "events_with_invalid_fields": findings.invalid,
            "events_with_invalid_id_lengths": findings.id_lengths,
        }
        if findings.missing:
            error = "Request missing required field"
        elif findings.invalid or not findings.id_lengths:
            error = "Invalid field values on some events"
        else:
            error = "Invalid id length for user_id or device_id"
        if self.options.index_mode == "none":
            return refusal(400, error)
        first_only = self.options.index_mode == "first"
        named = {
            name: {blamed: indexes[:1] if first_only else indexes for blamed, indexes in by_field.items()}
            for name, by_field in lists.items()
            if by_field
        }
        reason = "" if named else "an id that Amplitude reserves"
        return json_answer(400, {"code": 400, "error": error, **named}, reason=reason)

    def _export(self, headers: Mapping[str, str], query: str) -> Answer:
        given = credentials(headers)
        if given is None:
            return Answer(401, {"WWW-Authenticate": 'Basic realm="export"'})
        api_key, secret_key = given
        known = self._projects.get(api_key) if self._projects is not None else None
        wrong_secret = known is not None and known.secret_key is not None and known.secret_key != secret_key
        if not self._is_known(api_key) or wrong_secret or not secret_key:
            return json_answer(403, {"error": "Forbidden"})
        with self._lock:
            store = self._stores.get(key_digest(api_key))
            batches = list(store.batches) if store is not None else []
            project_id = store.project_id if store is not None else 0
        answer = export(project_id, batches, query, self._clock(), self.options)
        return _delayed(answer, self.options.latency_ms / 1000)

    def _is_known(self, api_key: str) -> bool:
        return api_key not in self._refused_keys and (self._projects is None or api_key in self._projects)

    def _store(self, api_key: str) -> ProjectStore:
        digest = key_digest(api_key)
        store = self._stores.get(digest)
        if store is None:
            known = self._projects.get(api_key) if self._projects is not None else None
            project = known or Project(_FIRST_PROJECT_ID + int(digest[:8], 16) % 800_000)
            store = self._stores[digest] = ProjectStore(
                project.id, project.name, key_hint(api_key), digest, self.options, self.audit
            )
        return store

    def _write(self, store: ProjectStore, batch: Batch) -> None:
        if self._journal is not None:
            self._journal.append(
                Entry(
                    store.digest,
                    store.hint,
                    store.project_id,
                    batch.path,
                    batch.received_at,
                    batch.client_upload_time,
                    batch.events(),
                )
            )

    def _restore(self, entry: Entry) -> None:
        """Takes in events of the journal as if they came now, except that they count as received then."""
        store = self._stores.get(entry.key_digest)
        if store is None:
            names = {key_digest(key): project.name for key, project in (self._projects or {}).items()}
            store = self._stores[entry.key_digest] = ProjectStore(
                entry.project_id,
                names.get(entry.key_digest, ""),
                entry.key_hint,
                entry.key_digest,
                self.options,
                self.audit,
            )
        columns = normal_columns(entry.events)
        admission = store.admit(
            entry.events,
            columns,
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
    return Answer(
        answer.status, answer.headers, answer.body, answer.transport, answer.delay_s + seconds, answer.accepted
    )
