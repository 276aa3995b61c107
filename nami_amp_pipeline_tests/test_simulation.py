"""Histories of everything that can go wrong, each drawn from a seed; ``torture.py`` runs more of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from nami_amp_pipeline_tests.simulation import delivery, whole
from nami_amp_pipeline_tests.simulation.network import KINDS

_DELIVERIES, _WHOLES = 300, 100
_SIMULATE: dict[str, Callable[[int], Any]] = {"delivery": delivery.simulate, "whole": whole.simulate}
_BLOCK = 5
"""Seeds in one test."""

STEPS = {
    "delivery": ("deliver.post", "deliver.answered", "deliver.commit", "deliver.committed", "receipts.commit",
                 "receipts.committed"),
    "whole": ("capture.commit", "capture.committed", "snapshot.commit", "snapshot.committed", "prepare.commit",
              "prepare.committed", "deliver.post", "deliver.commit", "receipts.commit"),
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
def test_deliveries(first: int) -> None:
    assert _met("delivery", first)


@pytest.mark.parametrize("first", _blocks(_WHOLES))
@pytest.mark.contract("4.11", "5.1.1", "5.1.2", "5.2.1")
def test_whole_histories(first: int) -> None:
    assert _met("whole", first)


@pytest.mark.slow
def test_these_histories_come_to_every_step_and_every_answer() -> None:
    """A simulation in which nothing goes wrong any more would hold too."""
    met: Counter[str] = Counter()
    for kind, histories in (("delivery", _DELIVERIES), ("whole", _WHOLES)):
        for first in range(0, histories, _BLOCK):
            met.update(_met(kind, first))
    wanted = {f"{kind}: ends at {step}" for kind, steps in STEPS.items() for step in steps}
    wanted |= {f"delivery: network {kind}" for kind in KINDS}
    wanted |= {
        f"delivery: answer {outcome}"
        for outcome in ("delivered", "rejected", "too_large", "forbidden", "throttled", "project_throttled", "not_json",
                        "http_500", "http_503", "http_504", "timeout", "reset", "truncated", "no_connection",
                        "redirect", "invalid_api_key")
    }  # fmt: skip
    wanted |= {"delivery: sleeps at deliver.post", "delivery: event sent again", "delivery: event delivered throttled"}
    wanted |= {"delivery: event dead outcome_unknown", "whole: event as history", "whole: event waiting no_external_id"}
    assert sorted(wanted - met.keys()) == []


@pytest.mark.parametrize(("kind", "seed"), [("delivery", 14), ("delivery", 28), ("delivery", 83), ("whole", 5)])
def test_a_seed_gives_the_same_history_again(kind: str, seed: int) -> None:
    """Else a failing seed would be no bug report."""
    simulate = _SIMULATE[kind]
    assert simulate(seed) == simulate(seed)


@cache
def _met(kind: str, first: int) -> Counter[str]:
    """Plays one block of histories, once in this process; returns what they came to."""
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
