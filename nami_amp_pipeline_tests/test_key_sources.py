"""Keys come by environment, file or standard input, and are seen in no list of processes, no output and no file."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from nami_amp_pipeline.secrets import Cipher
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import Store
from nami_amp_pipeline.state.integrations import get, halt
from nami_amp_pipeline_tests.support.command_line import API_KEY, PROGRAM, environment, invoke, one_line, working_in
from nami_amp_pipeline_tests.support.nursery import Started

ADD = ("integrations", "add", "radio", "prod", "--endpoint", "us")
SECRET = "a-secret-key-9876543210"


def stored(folder: Path) -> tuple[str, str | None]:
    with working_in(folder):
        settings = Settings.load({})
        store = Store(settings.state_url, lambda: 0.0)
        one = get(store, "radio/prod")
        store.close()
        cipher = Cipher(None, settings.home / "encryption.key")
        secret = cipher.decrypt(one.secret_key).reveal() if one.secret_key else None
        return cipher.decrypt(one.api_key).reveal(), secret


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROGRAM, *arguments], cwd=folder, env=environment(folder, SECRET=SECRET), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def seen_by_others(pid: int) -> str:
    """What ``ps`` shows of a process, once it is the program that was asked for."""
    for _ in range(1_200):
        seen = Path(f"/proc/{pid}/cmdline").read_text()
        if "integrations" in seen:
            return seen + Path(f"/proc/{pid}/comm").read_text()
        time.sleep(0.05)
    raise AssertionError("it did not start")


def open_when_read(fifo: Path) -> int:
    """Opens a pipe for writing as soon as the other end is open."""
    for _ in range(1_200):
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.05)
    raise AssertionError("nobody reads")


@pytest.mark.slow
@pytest.mark.parametrize("source", ["stdin", "file", "env"])
def test_a_key_is_seen_nowhere(tmp_path: Path, source: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # The API key or the secret key comes through a pipe, so that the process can be looked at while it waits.
    given = {
        "stdin": ("--api-key-stdin", "--secret-key-env", "SECRET"),
        "file": ("--api-key-file", str(fifo), "--secret-key-env", "SECRET"),
        "env": ("--api-key-env", "KEY", "--secret-key-file", str(fifo)),
    }[source]
    process = start(tmp_path, *ADD, *given)
    pipe = open_when_read(fifo) if source != "stdin" else None
    seen = seen_by_others(process.pid)
    if pipe is not None:
        os.write(pipe, f"{SECRET if source == 'env' else API_KEY}\n".encode())
        os.close(pipe)
    output, _ = process.communicate(f"{API_KEY}\n" if source == "stdin" else None, timeout=60)
    assert process.returncode == 0, output
    assert stored(tmp_path) == (API_KEY, SECRET)
    fifo.unlink()
    everything = "".join(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file())
    for secret in (API_KEY, SECRET):
        assert secret not in seen + output + everything


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ((), "", "--api-key-env, --api-key-file or --api-key-stdin"),
        (("--api-key-stdin",), "", "standard input is empty"),
        (("--api-key-stdin",), f"{API_KEY}\n{API_KEY}\n", "must be one word"),
        (("--api-key-stdin",), API_KEY * 300, "must be one word"),
        (("--api-key-file", "missing"), "", "cannot read …: No such file"),
        (("--api-key-file", "."), "", "cannot read .: Is a directory"),
        (("--api-key-file", "empty"), "", "empty is empty"),
        (("--api-key-file", "binary"), "", "it is not text"),
        (("--api-key-stdin", "--api-key-env", "KEY"), API_KEY, "give one of --api-key-env, --api-key-file"),
        (("--api-key-stdin", "--secret-key-stdin"), API_KEY, "standard input holds one key only"),
    ],
)
@pytest.mark.slow
def test_what_is_no_key_is_one_line(tmp_path: Path, arguments: tuple[str, ...], stdin: str, message: str) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    done = Started([*ADD, *arguments], tmp_path, environment(tmp_path, SECRET=SECRET), stdin).ended()
    output = done.stdout + done.stderr
    assert done.returncode == 2
    assert message in one_line(output)
    assert API_KEY not in output


def test_keys_and_endpoint_can_be_replaced(tmp_path: Path) -> None:
    assert invoke(tmp_path, *ADD, "--api-key-env", "KEY").exit_code == 0
    with working_in(tmp_path):
        store = Store(Settings.load({}).state_url, lambda: 0.0)
        with store.begin() as tx:
            halt(tx, 1, "invalid_api_key", 1)
    (tmp_path / "new").write_text(" another-api-key \n")
    changed = invoke(
        tmp_path, "integrations", "update", "radio/prod", "--api-key-file", "new", "--secret-key-env", "SECRET",
        "--endpoint", "eu", settings={"SECRET": SECRET},
    )  # fmt: skip
    assert changed.exit_code == 0, changed.output
    assert changed.stdout.splitlines()[0] == "radio/prod: endpoint, API key, secret key changed, version 2."
    assert "nami-amp integrations enable radio/prod" in changed.stdout
    assert stored(tmp_path) == ("another-api-key", SECRET)
    one = get(store, "radio/prod")
    store.close()
    assert (one.endpoint, one.halted_reason) == ("https://api.eu.amplitude.com/2/httpapi", "invalid_api_key")
    assert invoke(tmp_path, "integrations", "update", "radio", "prod", "--api-key-env", "KEY").exit_code == 0
    assert stored(tmp_path) == (API_KEY, SECRET)
    for arguments, message in (
        ((), "nothing to change"),
        (("--endpoint", "https://elsewhere.test/"), "--allow-custom-endpoint"),
        (("radio/other", "--endpoint", "eu"), "name exactly one integration"),
    ):
        refused = invoke(tmp_path, "integrations", "update", "radio/prod", *arguments)
        assert refused.exit_code == 2
        assert message in one_line(refused.stderr)
    assert stored(tmp_path) == (API_KEY, SECRET)
