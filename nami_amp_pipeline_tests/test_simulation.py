"""Histories of everything that can go wrong, each drawn from a seed; ``torture.py`` runs more of them."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nami_amp_pipeline_tests.simulation import backfills, delivery, identifies, repairs, whole
from nami_amp_pipeline_tests.simulation.network import KINDS

_DELIVERIES, _WHOLES, _BACKFILLS, _IDENTIFIES, _REPAIRS = 200, 60, 50, 50, 40
_SIMULATE: dict[str, Callable[[int], Any]] = {
    "delivery": delivery.simulate,
    "whole": whole.simulate,
    "backfill": backfills.simulate,
    "identify": identifies.simulate,
    "repair": repairs.simulate,
}
_BLOCK = 5
"""Seeds in one test."""

STEPS = {
    "delivery": ("deliver.post", "deliver.answered", "deliver.commit", "deliver.committed", "receipts.commit",
                 "receipts.committed"),
    "whole": ("capture.commit", "capture.committed", "snapshot.commit", "snapshot.committed", "prepare.commit",
              "prepare.committed", "deliver.post", "deliver.commit", "receipts.commit"),
    "backfill": ("backfill.spool", "backfill.prepare", "backfill.prepared", "backfill.flag", "deliver.post"),
    "identify": ("backfill.spool", "backfill.prepare", "backfill.prepared", "backfill.flag", "deliver.post"),
    "repair": ("reconcile.repair", "reconcile.repaired", "deliver.post", "deliver.answered"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def _blocks(histories: int) -> list[Any]:
    """The first seed of each block; only the first block is for the quick tests."""
    return [pytest.param(first, marks=[pytest.mark.slow] * (first > 0)) for first in range(0, histories, _BLOCK)]


@pytest.mark.parametrize("first", _blocks(_DELIVERIES))
@pytest.mark.contract("5.1.1", "5.1.2", "5.1.3", "5.2.1", "5.2.2", "5.3.1")
def test_deliveries(first: int, played: Path) -> None:
    assert _met("delivery", first, played)


@pytest.mark.parametrize("first", _blocks(_WHOLES))
@pytest.mark.contract("4.11", "5.1.1", "5.1.2", "5.2.1")
@pytest.mark.slow
def test_whole_histories(first: int, played: Path) -> None:
    assert _met("whole", first, played)


@pytest.mark.slow
@pytest.mark.parametrize("first", _blocks(_BACKFILLS))
@pytest.mark.contract("5.1.1", "5.1.2", "5.2.2", "7.1.2", "7.1.4", "7.1.7")
def test_backfills_beside_live_delivery(first: int, played: Path) -> None:
    assert _met("backfill", first, played)


@pytest.mark.slow
@pytest.mark.parametrize("first", _blocks(_IDENTIFIES))
@pytest.mark.contract("5.1.1", "5.1.2", "5.2.2", "7.1.6", "7.1.7", "7.1.9", "7.3.1", "7.3.3", "7.3.4", "7.3.5")
def test_identifies_beside_live_delivery(first: int, played: Path) -> None:
    assert _met("identify", first, played)


@pytest.mark.slow
@pytest.mark.parametrize("first", _blocks(_REPAIRS))
@pytest.mark.contract("5.1.1", "5.1.2", "5.2.1", "8.1", "8.2", "8.4", "8.5")
def test_repairs_beside_live_delivery(first: int, played: Path) -> None:
    assert _met("repair", first, played)


@pytest.mark.slow
def test_these_histories_come_to_every_step_and_every_answer(played: Path) -> None:
    """A simulation in which nothing goes wrong any more would hold too."""
    met: Counter[str] = Counter()
    for kind, histories in (
        ("delivery", _DELIVERIES), ("whole", _WHOLES), ("backfill", _BACKFILLS), ("identify", _IDENTIFIES),
        ("repair", _REPAIRS),
    ):  # fmt: skip
        for first in range(0, histories, _BLOCK):
            met.update(_met(kind, first, played))
    wanted = {f"{kind}: ends at {step}" for kind, steps in STEPS.items() for step in steps}
    wanted |= {f"delivery: network {kind}" for kind in KINDS}
    wanted |= {
        f"delivery: answer {outcome}"
        for outcome in ("delivered", "rejected", "too_large", "forbidden", "throttled", "project_throttled", "not_json",
                        "http_500", "http_503", "http_504", "timeout", "reset", "truncated", "no_connection",
                        "redirect", "invalid_api_key")
    }  # fmt: skip
    wanted |= {"delivery: sleeps at deliver.post", "delivery: event sent again", "delivery: event delivered throttled"}
    wanted |= {"backfill: found new", "backfill: found repeat", "backfill: found left_to_live", "backfill: busy"}
    overtaken = "live delivery comes after a file is computed"
    wanted |= {f"backfill: {name}" for name in ("cancelled", "live wants the lease", overtaken)}
    wanted.add(f"identify: {overtaken}")
    wanted |= {
        f"identify: {name}" for name in ("found new", "found unchanged", "skipped superseded", "cancelled",
                                         "live wants the lease", "event as history")
    }  # fmt: skip
    wanted |= {
        f"repair: {name}" for name in ("repaired", "found missing", "found altered", "found twice", "event as history",
                                       "event delivered missing")
    }  # fmt: skip
    wanted |= {"delivery: event dead outcome_unknown", "whole: event as history", "whole: event waiting no_external_id"}
    assert sorted(wanted - met.keys()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), [("delivery", 14), ("delivery", 28), ("delivery", 83), ("whole", 5)])
def test_a_seed_gives_the_same_history_again(kind: str, seed: int) -> None:
    """Else a failing seed would be no bug report."""
    simulate = _SIMULATE[kind]
    assert simulate(seed) == simulate(seed)


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all workers note what a block of histories came to."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "histories"
    folder.mkdir(exist_ok=True)
    return folder


def _met(kind: str, first: int, played: Path) -> Counter[str]:
    """Plays one block of histories, once for all workers; returns what they came to."""
    noted = played / f"{kind}-{first}"
    with noted.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if text := file.read():
            return Counter(json.loads(text))
        met = _play(kind, first)
        file.write(json.dumps(met))
    return met


def _play(kind: str, first: int) -> Counter[str]:
    met: Counter[str] = Counter()
    for seed in range(first, first + _BLOCK):
        try:
            facts = _SIMULATE[kind](seed)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\nagain: python -m nami_amp_pipeline_tests.tools.torture --kind {kind} --seed {seed}"
            ) from error
        met[kind] += 1
        met.update({f"{kind}: {name}": times for name, times in facts.met.items()})
    return met
