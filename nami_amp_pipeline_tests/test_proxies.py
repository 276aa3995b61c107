"""Proxies, certificates, ``.netrc`` and redirects, with real proxies between real servers."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from proxy import Proxy

from nami_amp_pipeline.alerts import webhook
from nami_amp_pipeline.delivery.http_session import without_password
from nami_amp_pipeline.delivery.transport import HttpAnswer, HttpTransport, NoAnswer, Request
from nami_amp_pipeline.operations import doctor
from nami_amp_pipeline_tests.support.raw_server import GOOD, answer, raw_server, send
from nami_amp_pipeline_tests.support.tls import certificate, copied

pytestmark = pytest.mark.slow_cases

_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC")
PASSWORD = "quite-secret"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextmanager
def small_proxy(*, wants: str = "", refuses: bytes = b"", behind: bytes = b"") -> Iterator[tuple[int, list[bytes]]]:
    """A proxy of a few lines: its port, and the heads of what it was asked.

    Args:
        wants: credentials, as ``user:password``.
        refuses: what it answers instead of connecting.
        behind: bytes that it sends behind its answer to CONNECT.
    """
    heads: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(near: socket.socket) -> None:
        with suppress(OSError, ValueError, IndexError), near:
            head = near.recv(65_536)
            heads.append(head)
            token = base64.b64encode(wants.encode())
            if wants and b"Basic " + token not in head:
                near.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            if refuses:
                near.sendall(refuses)
                return
            host, _, port = head.split(b" ")[1].decode().removeprefix("http://").split("/")[0].partition(":")
            with socket.create_connection((host, int(port))) as far:
                if head.startswith(b"CONNECT"):
                    near.sendall(b"HTTP/1.1 200 Connection established\r\nVia: small\r\n\r\n" + behind)
                else:
                    far.sendall(head)
                back = threading.Thread(target=copied, args=(far, near), daemon=True)
                back.start()
                copied(near, far)
                back.join(5)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], heads
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def post(url: str, body: bytes = b"{}", times: int = 1) -> HttpAnswer | NoAnswer:
    transport = HttpTransport(3.0)
    try:
        for _ in range(times):
            got = transport.post(Request(url, body))
        return got
    except NoAnswer as error:
        return error
    finally:
        transport.close()


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_https_goes_through_the_proxy_and_the_proxy_sees_no_key(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = certificate(tmp_path, "server")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    with (
        small_proxy(wants=f"me:{PASSWORD}") as (port, heads),
        raw_server(send(GOOD, close=False), tls=file) as (
            url,
            requests,
        ),
    ):
        monkeypatch.setenv(name, f"http://me:{PASSWORD}@127.0.0.1:{port}")
        got = post(url, b'{"api_key":"secret"}', times=3)
    assert isinstance(got, HttpAnswer)
    assert len(requests) == 3
    assert [head.split(b"\r\n")[0].split(b" ")[0] for head in heads] == [b"CONNECT"], "one tunnel for three requests"
    assert not any(b"Proxy-Authorization" in request for request in requests), "the password is the proxy's alone"


def test_plain_http_goes_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_proxy() as (port, heads), raw_server(send(GOOD)) as (url, requests):
        monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{port}")
        assert isinstance(post(url), HttpAnswer)
    assert heads[0].startswith(b"POST http://127.0.0.1:")
    assert len(requests) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_others_use_too(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """proxy.py, as it is installed."""
    file = certificate(tmp_path, "server") if scheme == "https" else None
    if file is not None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    arguments = ["--hostname", "127.0.0.1", "--port", "0", "--num-workers", "1", "--num-acceptors", "1"]
    with Proxy(arguments) as proxy, raw_server(send(GOOD, close=False), tls=file) as (url, requests):
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://127.0.0.1:{proxy.flags.port}")
        got = post(url, b"x" * 300_000)
    assert isinstance(got, HttpAnswer), got
    assert got.status == 200
    assert len(requests) == 1


@pytest.mark.parametrize("excepted", ["127.0.0.1", "localhost,127.0.0.0/8", "*"])
def test_no_proxy(excepted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_proxy() as (port, heads), raw_server(send(GOOD)) as (url, _):
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("NO_PROXY", excepted)
        assert isinstance(post(url), HttpAnswer)
    assert heads == []


@pytest.mark.parametrize(
    "refuses",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nno",
        b"HTTP/1.1 200", b"SSH-2.0\r\n", b"\r\n", b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
    ],
)  # fmt: skip
def test_a_proxy_that_lets_nothing_through(refuses: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = certificate(tmp_path, "server")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    with small_proxy(refuses=refuses) as (port, _), raw_server(send(GOOD), tls=file) as (url, requests):
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:{PASSWORD}@127.0.0.1:{port}")
        got = post(url)
    assert isinstance(got, NoAnswer)
    assert (got.kind, got.maybe_stored) == ("proxy", False)
    assert PASSWORD not in got.detail
    assert not requests


def test_bytes_behind_a_proxys_answer_are_not_taken_for_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = certificate(tmp_path, "server")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    with small_proxy(behind=GOOD) as (port, _), raw_server(send(GOOD), tls=file) as (url, requests):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        got = post(url)
    assert isinstance(got, NoAnswer)
    assert not got.maybe_stored
    assert not requests


def test_a_socks_proxy_and_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("socks5://127.0.0.1:1", "http://127.0.0.1:1", "http://[broken"):
        monkeypatch.setenv("HTTP_PROXY", address)
        got = post("http://127.0.0.1:2/")
        assert isinstance(got, NoAnswer)
        assert not got.maybe_stored


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_private_authority(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = certificate(tmp_path, "mine"), certificate(tmp_path, "other")
    with raw_server(send(GOOD), tls=mine) as (url, requests):
        got = post(url)
        assert isinstance(got, NoAnswer)
        assert (got.kind, got.maybe_stored) == ("tls", False)
        for bundle, takes in ((other, False), (mine, True), (tmp_path / "missing.pem", False)):
            monkeypatch.setenv(name, str(bundle))
            assert isinstance(post(url), HttpAnswer) is takes
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(mine))  # wins over the other one
        monkeypatch.setenv("CURL_CA_BUNDLE", str(other))
        assert isinstance(post(url), HttpAnswer)
        assert isinstance(post(url.replace("localhost", "127.0.0.1")), NoAnswer), "the name is checked"
    assert len(requests) == 2


def test_netrc_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\ndefault login me password hunter2\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with raw_server(send(GOOD)) as (url, requests):
        post(url)
        webhook.post(url, "hello")
    assert len(requests) == 2
    assert not any(b"authorization" in request.lower() for request in requests)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed_and_no_cookie_is_kept(status: int) -> None:
    with raw_server(send(GOOD)) as (other, others):
        moved = answer(status, b"", b"Location: " + other.encode(), b"Set-Cookie: a=b")
        with raw_server(send(moved, close=False)) as (url, requests):
            got = post(url, times=2)
            assert isinstance(got, HttpAnswer)
            assert got.status == status
            with pytest.raises(webhook.WebhookFailed, match=str(status)):
                webhook.post(url, "hello")
    assert others == []
    assert not any(b"cookie" in request.lower() for request in requests)


@pytest.mark.parametrize(
    "url",
    ["http://example.com/hook", "http://10.0.0.1/hook", "ftp://127.0.0.1/", "http://127.0.0.1.example/", "nothing",
     "http://[::1", "http://localhost.example/"],
)  # fmt: skip
def test_the_webhook_is_posted_over_https_or_to_this_machine_only(url: str) -> None:
    with pytest.raises(webhook.WebhookFailed, match="https://") as caught:
        webhook.post(url, "hello")
    assert url not in str(caught.value)


@pytest.mark.parametrize("url", ["https://a..example/hook", "https://.example/", "https://" + "a" * 70 + ".example/"])
def test_a_webhook_host_that_cannot_be_is_one_line(url: str) -> None:
    with pytest.raises(webhook.WebhookFailed, match="cannot be reached"):
        webhook.post(url, "hello")


def test_the_webhook_goes_through_the_proxy_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = certificate(tmp_path, "server")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    with small_proxy() as (port, heads), raw_server(send(answer(200, b"ok")), tls=file) as (url, requests):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        webhook.post(url, "hello")
    assert heads[0].startswith(b"CONNECT localhost:")
    assert requests[0].endswith(b'{"text":"hello"}')


def test_no_log_names_the_address(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with raw_server(send(GOOD)) as (url, _):
        webhook.post(url.replace("/2/httpapi", "/services/T000/SECRET"), "hello")
    assert "SECRET" not in caplog.text


def test_doctor_names_the_proxy_and_the_certificates_without_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{PASSWORD}@proxy.example:3128")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/private/ca.pem")
    said = doctor._way_to("https://api2.amplitude.com/2/httpapi")
    assert said == " through the proxy http://proxy.example:3128 with the certificates of /etc/private/ca.pem"
    monkeypatch.setenv("NO_PROXY", "amplitude.com")
    assert "proxy" not in doctor._way_to("https://api2.amplitude.com/2/httpapi")
    assert doctor._way_to("http://127.0.0.1:1/") == ""
    assert without_password(f"me:{PASSWORD}@proxy") == "http://proxy"


def test_a_proxy_that_trickles_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trickle(connection: socket.socket) -> None:
        with suppress(OSError, TimeoutError):
            connection.recv(65_536)
            threading.Event().wait(0.2)
            for _ in range(100):
                connection.sendall(b"H")
                threading.Event().wait(0.1)

    file = certificate(tmp_path, "server")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    with raw_server(send(GOOD), at_once=trickle) as (proxy, _):
        monkeypatch.setenv("HTTPS_PROXY", proxy.replace("/2/httpapi", ""))
        transport = HttpTransport(0.8)
        with pytest.raises(NoAnswer) as caught:
            transport.post(Request("https://localhost:1/", b"{}"))
        transport.close()
    assert (caught.value.kind, caught.value.maybe_stored) == ("timeout", False)
