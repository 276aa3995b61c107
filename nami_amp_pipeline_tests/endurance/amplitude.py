"""The local Amplitude in a process of its own, as strict as it can be; everything it took stands in a journal."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
import requests

from nami_amp_pipeline.sandbox import Options, Sandbox, serve
from nami_amp_pipeline.sandbox.settings import V2_PATH, key_digest

_SECONDS = 60.0


class OwnProcess:
    """Starts it, asks it over HTTP, and ends it.

    Args:
        journal: the file that holds what it took; None keeps none.
        latency_ms: how long its answers take.
        refused_key: a key that it does not know.
    """

    def __init__(self, journal: Path | None, *, latency_ms: float = 0.0, refused_key: str = "") -> None:
        self._journal = journal
        self._command = [sys.executable, "-m", __name__, "--latency-ms", str(latency_ms), "--refused-key", refused_key]
        if journal is not None:
            self._command += ["--journal", str(journal)]
        self.url = ""

    def __enter__(self) -> OwnProcess:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        assert self.url, "the local Amplitude did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()

    @property
    def endpoint(self) -> str:
        """The HTTP V2 API."""
        return self.url + V2_PATH

    def audit(self) -> dict[str, Any]:
        """What it noticed about the sender."""
        return self._ask("GET", "audit")

    def misbehave(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Adds fault rules."""
        self._ask("POST", "faults", orjson.dumps(list(rules)))

    def fired(self) -> dict[str, int]:
        """How often each rule happened, by kind; those that stored the events all the same are told apart."""
        found: Counter[str] = Counter()
        for rule in self._ask("GET", "faults")["rules"]:
            found[rule["kind"] + "+stored" * bool(rule.get("stored"))] += rule["fired"]
        return dict(found)

    def behave(self) -> None:
        """Removes all fault rules."""
        self._ask("DELETE", "faults")

    def forget(self) -> None:
        """Forgets all events and counts."""
        requests.delete(f"{self.url}/sandbox/data", timeout=_SECONDS).raise_for_status()

    def taken(self, api_key: str) -> Counter[str]:
        """How often it took each ``insert_id`` with this key; 1 each, if all is well."""
        return self.taken_by_digest()[key_digest(api_key)]

    def taken_by_digest(self) -> dict[str, Counter[str]]:
        """The same, of all keys, by their SHA-256."""
        assert self._journal is not None
        found: dict[str, Counter[str]] = defaultdict(Counter)
        with self._journal.open("rb") as lines:
            for line in lines:
                entry = orjson.loads(line)
                found[entry["key_digest"]].update(event["insert_id"] for event in entry["events"])
        return found

    def _ask(self, method: str, name: str, body: bytes | None = None) -> dict[str, Any]:
        answer = requests.request(method, f"{self.url}/sandbox/{name}", data=body, timeout=_SECONDS)
        answer.raise_for_status()
        content: dict[str, Any] = answer.json()
        return content


def main() -> None:
    """Serves until it is told to end; says where, first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--refused-key", default="")
    given = parser.parse_args()
    options = Options(throttle=False, latency_ms=given.latency_ms)
    sandbox = Sandbox(options=options, journal=given.journal, refused_keys={given.refused_key} - {""})

    def ready(url: str) -> None:
        sys.stdout.write(url + "\n")
        sys.stdout.flush()

    serve(sandbox, port=0, on_ready=ready)


if __name__ == "__main__":
    main()
