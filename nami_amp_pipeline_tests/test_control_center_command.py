"""``nami-amp control-center`` as a process: where it listens, what it says, how it ends."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import requests

from nami_amp_pipeline_tests.support.command_line import PROGRAM, environment, invoke, one_line


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_comes(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [PROGRAM, "control-center", "--port", "0"], cwd=tmp_path, env=environment(tmp_path), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            url = said.removeprefix("Control Center at ").partition(";")[0]
            assert url.startswith("http://127.0.0.1:"), said
            answer = requests.get(url, timeout=30)
            assert "Control Center" in answer.text
            assert "server" not in answer.headers
            process.send_signal(number)
            _, complaints = process.communicate(timeout=30)
        finally:
            process.kill()
    assert complaints == ""
    assert process.returncode in (-number, 128 + number)


@pytest.mark.contract("6.12")
def test_without_a_sign_in_it_listens_nowhere_else(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "10.1.2.3", "example.com"):
        done = invoke(tmp_path, "control-center", "--host", host, "--port", "0")
        assert done.exit_code == 2
        assert "this machine only" in one_line(done.stderr)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = invoke(tmp_path, "control-center", "--port", str(taken.getsockname()[1]))
    assert done.exit_code == 1
    assert "cannot listen on 127.0.0.1" in one_line(done.stderr)


def test_a_proxy_without_its_address(tmp_path: Path) -> None:
    settings = {"NAMI_AMP_CONTROL_CENTER_SIGN_IN": "proxy"}
    done = invoke(tmp_path, "control-center", "--port", "0", settings=settings)
    assert done.exit_code == 2
    assert "NAMI_AMP_CONTROL_CENTER_PROXIES" in one_line(done.stderr)
