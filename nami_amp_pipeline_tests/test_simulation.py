"""Histories of everything that can go wrong, each drawn from a seed; ``torture.py`` runs more of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from nami_amp_pipeline_tests.simulation import delivery, whole

_DELIVERIES, _WHOLES = 180, 40


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


@pytest.mark.parametrize(("kind", "seed"), [("delivery", 14), ("delivery", 28), ("delivery", 83), ("delivery", 126)])
def test_a_seed_gives_the_same_history_again(kind: str, seed: int) -> None:
    """Else a failing seed would be no bug report."""
    assert kind == "delivery"
    assert delivery.simulate(seed) == delivery.simulate(seed)


def _run(simulate: object, kind: str, seed: int) -> None:
    assert callable(simulate)
    try:
        simulate(seed)
    except AssertionError as error:
        raise AssertionError(
            f"{error}\nagain: python -m nami_amp_pipeline_tests.torture --kind {kind} --seed {seed}"
        ) from error
