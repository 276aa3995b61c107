"""Histories of everything that can go wrong, each drawn from a seed; ``torture.py`` runs more of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from nami_amp_pipeline_tests.simulation import delivery, whole
from nami_amp_pipeline_tests.simulation.network import KINDS

_DELIVERIES, _WHOLES = 300, 100
_MET: Counter[str] = Counter()

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


@pytest.mark.parametrize("first", range(0, _DELIVERIES, 20))
def test_deliveries(first: int) -> None:
    for seed in range(first, first + 20):
        _run(delivery.simulate, "delivery", seed)


@pytest.mark.parametrize("first", range(0, _WHOLES, 20))
def test_whole_histories(first: int) -> None:
    for seed in range(first, first + 20):
        _run(whole.simulate, "whole", seed)


def test_these_histories_come_to_every_step_and_every_answer() -> None:
    """A simulation in which nothing goes wrong any more would hold too."""
    if not _MET["delivery"] or not _MET["whole"]:
        pytest.skip("the histories were not run")
    wanted = {f"{kind}: ends at {step}" for kind, steps in STEPS.items() for step in steps}
    wanted |= {f"delivery: network {kind}" for kind in KINDS}
    wanted |= {
        f"delivery: answer {outcome}"
        for outcome in ("delivered", "rejected", "too_large", "forbidden", "throttled", "project_throttled", "not_json",
                        "http_500", "http_503", "http_504", "timeout", "reset", "truncated", "refused", "redirect",
                        "invalid_api_key")
    }  # fmt: skip
    wanted |= {"delivery: sleeps at deliver.post", "delivery: event sent again", "delivery: event delivered throttled"}
    wanted |= {"delivery: event dead outcome_unknown", "whole: event as history", "whole: event waiting no_external_id"}
    assert sorted(wanted - _MET.keys()) == []


@pytest.mark.parametrize(("kind", "seed"), [("delivery", 14), ("delivery", 28), ("delivery", 83), ("whole", 5)])
def test_a_seed_gives_the_same_history_again(kind: str, seed: int) -> None:
    """Else a failing seed would be no bug report."""
    simulate = {"delivery": delivery.simulate, "whole": whole.simulate}[kind]
    assert simulate(seed) == simulate(seed)


def _run(simulate: object, kind: str, seed: int) -> None:
    assert callable(simulate)
    try:
        facts = simulate(seed)
    except AssertionError as error:
        raise AssertionError(
            f"{error}\nagain: python -m nami_amp_pipeline_tests.tools.torture --kind {kind} --seed {seed}"
        ) from error
    _MET[kind] += 1
    _MET.update({f"{kind}: {name}": times for name, times in facts.met.items()})
