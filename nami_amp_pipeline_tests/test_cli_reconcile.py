"""``nami-amp reconcile``: a line for each day, one object with --json, and a repair that asks before it sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from nami_amp_pipeline_tests.support.command_line import invoke
from nami_amp_pipeline_tests.support.held_by_amplitude import Held, held_by_amplitude

pytestmark = pytest.mark.slow_cases


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Held]:
    """Events that were delivered two days ago, by the clock of this machine; two are lost since."""
    at = datetime.now().astimezone().replace(hour=12, minute=20) - timedelta(days=2)
    with held_by_amplitude(tmp_path / ".nami-amp", open_at=at) as made:
        made.load(20)
        made.add()
        made.tick()
        made.later(days=2)
        yield made


def lose(world: Held) -> list[str]:
    lost = sorted(event["insert_id"] for event in world.held())[:2]
    world.damage("lost_after_200", lost)
    return lost


@pytest.mark.contract("8.2", "6.3")
@pytest.mark.slow
def test_a_clean_day_is_a_line_and_0(world: Held, tmp_path: Path) -> None:
    total = len(world.held())
    done = invoke(tmp_path, "reconcile", "radio/main", "--from", "2d")
    assert done.exit_code == 0, done.stderr
    assert f": Amplitude holds {total:,} of {total:,}\n" in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.contract("8.7", "6.4")
@pytest.mark.slow
def test_json_has_days_and_ids(world: Held, tmp_path: Path) -> None:
    total, lost = len(world.held()), lose(world)
    done = invoke(tmp_path, "reconcile", "radio/main", "--from", "3d", "--to", "2d", "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["integration"] == "radio/main"
    first, second = found["days"]
    assert first["delivered"] == first["held"] == 0
    assert {name: second[name] for name in ("delivered", "held", "identical", "altered", "missing", "twice")} == {
        "delivered": total, "held": total - 2, "identical": total - 2, "altered": 0, "missing": 2, "twice": 0,
    }  # fmt: skip
    assert sorted(found["missing"]) == lost
    assert (found["altered"], found["twice"], found["repaired"]) == ([], [], 0)
    assert "truncated" not in found


@pytest.mark.contract("8.5")
@pytest.mark.slow
def test_a_repair_says_what_it_would_do_and_needs_a_yes(world: Held, tmp_path: Path) -> None:
    lose(world)
    done = invoke(tmp_path, "reconcile", "radio/main", "--from", "2d", "--repair")
    assert done.exit_code == 2, done.stderr + done.stdout
    assert "give --yes to send 2 missing events (" in done.stderr
    done = invoke(tmp_path, "reconcile", "radio/main", "--from", "2d", "--repair", "--yes", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["repaired"] == 2
    done = invoke(tmp_path, "reconcile", "radio/main", "--from", "2d")
    assert done.exit_code == 0


@pytest.mark.contract("8.6", "6.3")
def test_without_a_secret_key_it_is_one_line_and_2(tmp_path: Path) -> None:
    with held_by_amplitude(tmp_path / ".nami-amp") as world:
        world.add(secret_key=None)
        done = invoke(tmp_path, "reconcile", "radio/main", "--json")
        assert done.exit_code == 2
        assert len(done.stderr.splitlines()) == 1
        assert "--secret-key-env VAR" in done.stderr
        assert "--source" in json.loads(done.stdout)["error"]
        done = invoke(tmp_path, "reconcile", "radio/main", "--source", str(world.exported_nothing(tmp_path / "x")))
        assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("radio",), "write APP/NAME"),
        (("radio/other",), "radio/other"),
        (("radio/main", "--from", "2d", "--to", "3d"), "--to is before that of --from"),
        (("radio/main", "--from", "2099-01-01"), "still to come"),
        (("radio/main", "--source", "/nowhere/at/all"), "no such folder"),
        (("radio/main", "--source", "s3://"), "s3"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_2(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    with held_by_amplitude(tmp_path / ".nami-amp") as world:
        world.add()
        done = invoke(tmp_path, "reconcile", *arguments)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
