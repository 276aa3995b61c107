"""Every command that the program or its pages quote is run, on a home where it has something to do."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import pytest
from click.testing import Result

from nami_amp_pipeline_tests.support.command_line import API_KEY, PROGRAM, environment, invoke, working_in
from nami_amp_pipeline_tests.support.night import SETTINGS, night, night_event
from nami_amp_pipeline_tests.support.quoted_commands import quoted, words_of
from nami_amp_pipeline_tests.support.scene import WARNINGS
from nami_amp_pipeline_tests.support.service import wait_for
from nami_amp_pipeline_tests.support.webhook import Webhook

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

COMMANDS = {words_of(command).strip(): where for command, where in quoted().items()}
"""Without remarks, each with a place where it is quoted."""

ELSEWHERE = {
    "nami-amp demo": "test_demo.py runs it to its end, which takes most of a minute",
    "nami-amp reconcile radio/prod --from 2026-09-01 --source s3://": "there is no such bucket",
    "nami-amp backfills pause": "only a backfill under way can be paused, as test_backfill.py does",
    "nami-amp control-center users": "test_control_center_people.py does, with passwords from standard input",
    "nami-amp control-center": "it serves until it is ended; test_control_center_browser.py asks it for pages",
    "nami-amp metrics --otlp": "test_telemetry.py takes what is exported",
    "nami-amp integrations add my-app main --endpoint us --api-key-stdin": "test_key_sources.py gives it a key",
    "nami-amp dev": "test_dev.py starts and ends it with all its processes; --open would open somebody's browser",
}
"""Commands whose help alone is shown here, and why; their options are checked by that too."""

LASTING = {
    command: "Local Amplitude at http" if "sandbox" in command else "need you"
    for command in COMMANDS
    if (command.startswith("nami-amp sandbox") and "--list" not in command) or "--watch" in command
}
"""Commands that go on until somebody ends them, and what they say first."""

FILLED_IN = {
    "identify --plan 4": "identify --plan 5", "identify --plan X": "identify --plan 5",
    "--plan X": "--plan 3", "backfills cancel X": "backfills cancel 3", "backfills resume X": "backfills resume 3",
    "backfills cancel ID": "backfills cancel 3", "backfills resume ID": "backfills resume 3",
    "--from TIME": "--from 2026-09-01", "--to TIME": "--to 2026-09-02", "--from T": "--from 2026-09-01",
    "--to T": "--to 2026-09-02", "--from …": "--from 2026-09-01", "--to …": "--to 2026-09-02",
    "/var/lib/node_exporter/nami.prom": "nami.prom",
    "--from X": "--from yesterday", "--to X": "--to now",
    "DAY": "2026-09-01", "{key}": "radio/fussy",
    "--api-key-env VAR": "--api-key-env KEY", "--secret-key-env VAR": "--secret-key-env KEY",
    "apply PLAN": "apply plan.json", "--out PLAN": "--out plan.json",
    "APP/NAME": "radio/fussy", "KEY": "radio/fussy", "X": "radio/fussy", "EVENT_ID": "event-1", "EXTERNAL_ID": "bo",
    "USER": "bo", "PROPERTY VALUE": "namiml_active_entitlements premium",
    "--api-key-file …": "--api-key-file key.txt", "/run/secrets/amplitude": "key.txt",
    "--endpoint …": "--endpoint eu", "--events …": "--events all", "SECONDS": "5", "TIME": "2026-09-01T00:00:00Z",
}  # fmt: skip
"""What stands for something, and what it stands for here."""

NAMES = (
    "dead-letters dismiss", "dead-letters retry", "integrations add", "integrations update",
    "integrations update APP/NAME", "integrations release",
    "load", "trace", "reconcile", "reconcile --repair", "preview", "backfill",
    "trace --json", "audience", "deliveries",
    "identify", "backfills",
)  # fmt: skip
"""Quoted as the name of a command that wants more; their help is shown."""

ALLOWED = {
    "run": {1}, "status": {1}, "trace": {3, 4, 5}, "doctor": {1}, "integrations test": {1}, "dead-letters retry": {1},
    "dead-letters dismiss": {2}, "keys forget": {2}, "integrations remove": {2},
}  # fmt: skip
"""What else than 0 they may end with in this home: bad news, or that nobody could be asked."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """The home of a bad night, with what examples of the pages name, and settings for it."""
    with night(tmp_path_factory.mktemp("night")) as scene, Webhook() as webhook:
        settings = {
            **SETTINGS, "NAMI_AMP_ALERT_WEBHOOK_URL": webhook.url, "AMPLITUDE_KEY": API_KEY,
            "AMPLITUDE_API_KEY": API_KEY, "SHOP_SECRET": API_KEY, "SHOP_TOKEN": API_KEY,
            "RADIO_KEY": API_KEY, "RADIO_SECRET": API_KEY,
        }  # fmt: skip
        scene.fall()
        shown = scene.run("integrations", "show", "radio/fussy").stdout
        endpoint = re.search(r"http://127\.0\.0\.1:\d+\S*", shown)
        assert endpoint, shown
        for app, name in (
            ("my-app", "main"),
            ("my-app", "prod"),
            ("my-app", "shop"),
            ("fit", "main"),
            ("radio-nami", "broken"),
            ("radio", "prod"),
            ("radio", "main"),
        ):
            where = ("--destination", "http") if name == "shop" else ("--allow-custom-endpoint",)
            done = invoke(
                scene.folder, "integrations", "add", app, name, "--endpoint", endpoint[0], *where,
                "--api-key-env", "OWN_KEY", settings={**settings, "OWN_KEY": f"key-of-{app}-{name}-0123456789"},
            )  # fmt: skip
            assert done.exit_code == 0, done.output
        assert scene.run("run").exit_code == 1
        for name in ("fussy", "prod"):
            done = invoke(
                scene.folder, "integrations", "update", f"radio/{name}", "--secret-key-env", "KEY", settings=settings
            )
            assert done.exit_code == 0, done.output
        for _ in range(3):
            scene.run("backfill", "radio/fussy", "--from", "2026-09-01", "--to", "2026-09-02", "--dry-run")
        for _ in range(2):
            scene.run("identify", "radio/fussy", "--dry-run")
        (scene.folder / "exports").mkdir()
        (scene.folder / "exports" / "1_2026-09-01_0#0.json.gz").write_bytes(gzip.compress(b""))
        lines = b"\n".join(night_event(number, "dee") for number in (200, 201)) + b"\n"
        (scene.folder / "events.ndjson").write_bytes(lines)
        for number in (1, 2):
            (scene.folder / f"events-{number}.ndjson.gz").write_bytes(gzip.compress(lines))
        (scene.folder / "key.txt").write_text(API_KEY)
        apps = {"my-app": {"integrations": {"as-code": {"endpoint": "us", "api_key": {"env": "OWN_KEY"}}}}}
        (scene.folder / "integrations.yaml").write_text(json.dumps({"version": 1, "apps": apps}))
        settings["OWN_KEY"] = "key-of-my-app-as-code-0123456789"
        for words in (("apply", "integrations.yaml", "--yes"), ("plan", "integrations.yaml", "--out", "plan.json")):
            done = invoke(scene.folder, "integrations", *words, settings=settings)
            assert done.exit_code == 0, done.output
        yield scene.folder, settings


@pytest.fixture
def home(prepared: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(prepared[0], tmp_path / "home"))


def arguments_of(command: str, home: Path, number: str) -> list[str]:
    """The words behind ``nami-amp``, filled in, and with the files that a shell would put for a pattern."""
    text = command.removeprefix("nami-amp").strip()
    if any(command.startswith(name) for name in ELSEWHERE):
        return [*text.split(), "--help"]
    if text in NAMES:
        return [*text.replace("APP/NAME", "radio/fussy").split(), "--help"]
    for placeholder, value in FILLED_IN.items():
        text = re.sub(rf"(?<!-key-env )(?<![\w/.-]){re.escape(placeholder)}(?![\w/.-])", value, text)
    text = re.sub(r"\bID\b", number, text)
    words = []
    for word in shlex.split(text):
        with working_in(home):
            words += sorted(glob(word)) if "*" in word and ".ndjson" in word else [word]
    return words


def run(prepared: tuple[Path, dict[str, str]], home: Path, *arguments: str) -> Result:
    return invoke(home, *arguments, settings=prepared[1])


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - LASTING.keys()))
def test_it_runs(command: str, prepared: tuple[Path, dict[str, str]], home: Path) -> None:
    listed = run(prepared, home, "dead-letters", "list", "--reason", "rejected", "--limit", "1").stdout
    words = arguments_of(command, home, listed.splitlines()[1].split("\t")[0])
    if words[:2] == ["integrations", "add"] and "--help" not in words:
        run(prepared, home, "integrations", "remove", "/".join(words[2:4]), "--yes")
    if words[:2] == ["integrations", "export"]:
        (home / "integrations.yaml").unlink()
    done = run(prepared, home, *words)
    allowed = next((codes for name, codes in ALLOWED.items() if " ".join(words).startswith(name)), set())
    assert done.exit_code in {0, *allowed}, f"{COMMANDS[command]}: {words}: {done.output}"
    assert not re.search("this is a bug|Traceback|No such|Usage: .*\n.*Error", done.output), done.output
    if done.exit_code == 2:  # it asks a person, and there is none
        assert "nami-amp: give --yes to " in done.stderr
        assert run(prepared, home, *words, "--yes").exit_code == 0


@pytest.mark.parametrize("command", sorted(LASTING))
def test_what_lasts_starts_and_ends(command: str, prepared: tuple[Path, dict[str, str]], home: Path) -> None:
    said, errors = home / "said.txt", home / "errors.txt"
    words: list[str | Path] = [PROGRAM, *command.split()[1:]]
    with said.open("wb") as out, errors.open("wb") as err:
        started = subprocess.Popen(
            [*words, *(("--port", "0") if "sandbox" in words else ())], cwd=home,
            env=environment(home, **prepared[1]), stdout=out, stderr=err, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def text() -> str:
        return said.read_text() + errors.read_text()

    try:
        wait_for(lambda: LASTING[command] in text(), text)
        started.send_signal(signal.SIGINT)
        assert started.wait(30) in (0, 130), text()
        assert "Traceback" not in text()
    finally:
        if started.poll() is None:
            os.kill(started.pid, signal.SIGKILL)
            started.wait()


def test_what_is_not_run_here_is_quoted_somewhere() -> None:
    for name in ELSEWHERE:
        assert any(command.startswith(name) for command in COMMANDS)
    assert {"nami-amp sandbox", "nami-amp status --watch"} <= LASTING.keys()
    assert len(COMMANDS) > 60
