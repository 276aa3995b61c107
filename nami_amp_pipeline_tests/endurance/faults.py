"""Sample events delivered to an Amplitude that fails in every way at once: nothing lost, twice or out of order."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nami_amp_pipeline.sandbox import Fault
from nami_amp_pipeline.sandbox.faults import RequestFacts
from nami_amp_pipeline_tests.endurance.amplitude import OwnProcess
from nami_amp_pipeline_tests.endurance.report import Report
from nami_amp_pipeline_tests.endurance.scene import Scene, event_ids, key_of, load_sample

APPS = ("radio-nami", "fit-nami")
POISON_SHARE = 0.0005
INDEXES = ("all", "first", "none")
BATCHES = (100, 250, 500, 1_000)
_MOST_RUNS = 60
_NOTICED = ("accepted_more_than_once", "order_violations", "concurrent_same_user", "changed_repeats")

Rule = Mapping[str, Any]


def rules(rng: random.Random, batch: int, indexes: str, share: float, pauses: int) -> list[Rule]:
    """Each of these meets 3 to 5 % of the requests that come so far.

    A 403 or 413 for a single event would rightly make it a dead letter, so they only meet larger requests.
    """

    def often(kind: str, **more: object) -> Rule:
        return {"kind": kind, "probability": rng.uniform(0.03, 0.05), "seed": rng.randrange(2**31), **more}

    return [
        often("reset_before_response"),
        often("closed_without_answer"),
        often("html_502"),
        often("html_400"),
        often("403", min_events=2),
        often("413", min_events=max(2, batch // 2)),
        often("project_429", retry_after=1, times=pauses),
        {"kind": "poison", "share": share, "seed": rng.randrange(2**31), "indexes": indexes},
        {"kind": "throttle_user", "share": 0.08 / batch, "probability": 0.5, "seed": rng.randrange(2**31)},
        often("reset_before_response", stored=True),
        often("closed_without_answer", stored=True),
        often("stored_then_500"),
        often("stored_then_502"),
        often("stored_then_504"),
        often("truncated_body"),
        often("empty_body"),
    ]


def poisoned(given: list[Rule], ids: set[str]) -> set[str]:
    """The events that the sandbox refuses, by its own rule."""
    (rule,) = [Fault(**rule) for rule in given if rule["kind"] == "poison"]
    ordered = sorted(ids)
    hit = rule.matches(RequestFacts("", None, [{"insert_id": event_id} for event_id in ordered])) or []
    return {ordered[index] for index in hit}


def run(
    report: Report, folder: Path, *, rows: int, seeds: int, first_seed: int = 1, share: float = POISON_SHARE
) -> None:
    """Runs each seed over the same warehouse."""
    warehouse = folder / "events.duckdb"
    load_sample(warehouse, rows, APPS)
    due = {app_id: event_ids(warehouse, app_id) for app_id in APPS}
    total: Counter[str] = Counter()
    report.line(f"faults: {rows:,} rows, {sum(map(len, due.values())):,} events, {seeds} seeds from {first_seed}")
    for seed in range(first_seed, first_seed + seeds):
        with OwnProcess(folder / f"{seed}.ndjson") as amplitude:
            total += _one(report, folder / str(seed), warehouse, due, amplitude, seed, share)
        (folder / f"{seed}.ndjson").unlink()
    report.line(f"together: {_listed(total)}")


def _one(
    report: Report,
    home: Path,
    warehouse: Path,
    due: Mapping[str, set[str]],
    amplitude: OwnProcess,
    seed: int,
    share: float,
) -> Counter[str]:
    rng = random.Random(seed)
    batch, indexes = rng.choice(BATCHES), INDEXES[seed % len(INDEXES)]
    given = rules(rng, batch, indexes, share, pauses=sum(map(len, due.values())) // 25_000 + 1)
    amplitude.misbehave(given)
    scene = Scene(home, warehouse, report, {"BATCH_EVENTS": batch, "RUN_RETRY_SECONDS": 1})
    for app_id in due:
        scene.add(app_id, amplitude.endpoint)
    scene.read()
    began, runs = time.perf_counter(), 0
    while runs < _MOST_RUNS and scene.pending():
        runs += 1
        scene.deliver()
        scene.clock.skip(31)  # for the users that wait 30 s
    seconds = time.perf_counter() - began
    where = f"seed {seed}"
    report.zero(where, still_pending=scene.pending())
    report.check(all(one.state == "enabled" for one in scene.numbers()), f"{where}: an integration stands still")
    poison = dead = 0
    taken = amplitude.taken_by_digest()
    accepted = Counter[str]()
    for app_id, ids in due.items():
        refused = poisoned(given, ids)
        letters = scene.dead(app_id)
        got = amplitude.taken(key_of(app_id))
        accepted += got
        report.zero(
            f"{where}, {app_id}",
            lost=len(ids - refused - got.keys()),
            not_due=len(got.keys() - (ids - refused)),
            twice=sum(got.values()) - len(got),
            poison_without_a_dead_letter=len(refused - set(letters)),
            dead_letters_that_are_none=len(set(letters) - refused),
            dead_letters_twice=len(letters) - len(set(letters)),
        )
        poison, dead = poison + len(refused), dead + len(letters)
    numbers = scene.numbers()
    report.zero(where, skipped=sum(sum(one.skipped.values()) for one in numbers), other_projects=len(taken) - len(due))
    report.check(sum(one.delivered for one in numbers) == accepted.total(), f"{where}: delivered is not accepted")
    audit = amplitude.audit()
    report.zero(where, **{name: audit[name] for name in _NOTICED})
    report.check(audit["accepted"] == accepted.total(), f"{where}: the audit and the journal differ")
    fired = amplitude.fired()
    report.check(set(fired.values()).isdisjoint({0}) or sum(map(len, due.values())) < 50_000, f"{where}: {fired}")
    scene.close()
    report.line(
        f"{where}: batches of {batch}, lists of {indexes}: {audit['accepted']:,} accepted once, {poison} poison, "
        f"{dead} dead letters, {audit['duplicates']:,} sent again, {audit['requests']:,} requests, {runs} runs, "
        f"{seconds:.0f} s"
    )
    report.line(f"  {_listed(fired)}")
    faults = sum(fired.values())
    return Counter(accepted=audit["accepted"], poison=poison, dead=dead, sent_again=audit["duplicates"]) + Counter(
        requests=audit["requests"], faults=faults, runs=runs
    )


def search_cost(
    report: Report, folder: Path, *, rows: int, share: float = 0.002, batches: Sequence[int] = (64, 256, 1_000)
) -> None:
    """Requests that it takes to find a refused event that no list names.

    log2 of the batch for the halving, rounded up, and one more: what followed the refused event goes by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    warehouse = folder / "events.duckdb"
    load_sample(warehouse, rows, APPS[:1])
    ids = event_ids(warehouse, APPS[0])
    for batch in batches:
        rule: Rule = {"kind": "poison", "share": share, "seed": 11, "indexes": "none"}
        poison = poisoned([rule], ids)
        without = _requests(report, folder / f"{batch}-without", warehouse, batch, [], set())
        found = _requests(report, folder / f"{batch}-with", warehouse, batch, [rule], poison)
        each, halvings = (found - without) / max(1, len(poison)), math.log2(batch)
        report.check(
            each <= math.ceil(halvings) + 1, f"{each:.2f} requests more for each refused event in batches of {batch}"
        )
        report.line(
            f"search: batches of {batch}: {without} requests without, {found} with {len(poison)} refused events: "
            f"{each:.2f} more for each; log2 + 1 is {halvings + 1:.2f}"
        )


def _requests(report: Report, home: Path, warehouse: Path, batch: int, given: list[Rule], poison: set[str]) -> int:
    with OwnProcess(None) as amplitude:
        amplitude.misbehave(given)
        scene = Scene(home, warehouse, report, {"BATCH_EVENTS": batch})
        scene.add(APPS[0], amplitude.endpoint)
        scene.read()
        scene.deliver()
        report.zero(f"search, batches of {batch}", still_pending=scene.pending())
        report.check(set(scene.dead(APPS[0])) == poison, "the search found other events")
        scene.close()
        return int(amplitude.audit()["requests"])


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items())
