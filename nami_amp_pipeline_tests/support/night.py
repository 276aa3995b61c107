"""A bad night: a wrong key, an outage, a throttled user, 31 rejected events, and then no warehouse; with real parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
from click.testing import Result

from nami_amp_pipeline.sandbox import Fault, Options, Sandbox, SandboxServer
from nami_amp_pipeline_tests.support.command_line import invoke, load_events

REJECTED = 31
KEYS = {"wrong": "wrong-key-9876543210fedcba", "outage": "outage-0123456789abcdef012",
        "slow": "slow-key-0123456789abcdef01", "fussy": "fussy-key-0123456789abcdef0"}  # fmt: skip
SETTINGS = {"NAMI_AMP_RUN_RETRY_SECONDS": "0", **{f"{name.upper()}_KEY": key for name, key in KEYS.items()}}


def night_event(number: int, user: str, *, bad: bool = False) -> bytes:
    """A line of Nami's webhook; Amplitude will reject the event if it is bad."""
    return orjson.dumps(
        {
            "id": f"event-{number}",
            "event_type": "user.subscription.purchased",
            "created_date": f"2026-09-01T00:{number // 60 % 60:02d}:{number % 60:02d}Z",
            "user_id": f"nami-{user}",
            "external_ids": [{"key": "external_id", "type": "string", "value": user}],
            "mark": "bad" if bad else "good",
        }
    )


@dataclass
class Night:
    """The scene.

    Attributes:
        folder: where everything is.
        sandbox: Amplitude.
    """

    folder: Path
    sandbox: Sandbox

    def run(self, *arguments: str) -> Result:
        """A command."""
        return invoke(self.folder, *arguments, settings=SETTINGS)

    def fall(self) -> None:
        """Everything goes wrong but the warehouse."""
        self.sandbox.faults.add(
            Fault("503", api_key=KEYS["outage"]),
            Fault("throttle_user", api_key=KEYS["slow"], user_id="bo"),
            Fault("poison", api_key=KEYS["fussy"], text='"mark":"bad"', field_name="event_properties"),
        )
        lines = [night_event(number, "ana", bad=True) for number in range(1, REJECTED + 1)]
        lines += [night_event(100, "bo"), night_event(101, "cy")]
        load_events(self.folder, *lines)

    def lose_the_warehouse(self) -> None:
        """The file of the warehouse is gone."""
        (self.folder / ".nami-amp" / "warehouse.duckdb").rename(self.folder / "away.duckdb")


@contextmanager
def night(folder: Path) -> Iterator[Night]:
    """Four integrations of one app with one Amplitude, before anything happened."""
    sandbox = Sandbox(refused_keys=[KEYS["wrong"]], options=Options(throttle=False))
    with SandboxServer(sandbox) as server:
        scene = Night(folder, sandbox)
        for name in KEYS:
            done = scene.run(
                "integrations", "add", "radio", name, "--endpoint", server.endpoint, "--allow-custom-endpoint",
                "--api-key-env", f"{name.upper()}_KEY", "--start-from", "beginning",
            )  # fmt: skip
            assert done.exit_code == 0, done.output
        yield scene
