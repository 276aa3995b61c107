"""No secret leaves: whatever form a text has it in, wherever it was given, and whoever cut the text before."""

from __future__ import annotations

import html
import json
import logging
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote, quote_plus

import pytest

from nami_amp_pipeline import redaction
from nami_amp_pipeline.errors import StoreUnavailable
from nami_amp_pipeline.redaction import HIDDEN, MOST_PASSING, PIECE, Redactor, secrets_of_url, shown_name, shown_path
from nami_amp_pipeline_tests.support.command_line import event, invoke, load_events, nami_amp, one_line

PASSWORDS = (
    "Tr0ub4dor&3-x",
    "p@ss/w0rd#with?all",
    "söme päss\"wörd'",
    "a:b:c:d:e@f/g",
    "percent%41nd%20more",
    "back\\slash\\es",
)
KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f0a"


def check_hidden(text: str, *secrets: str) -> None:
    """No secret, and no piece of one, stands in a text."""
    for secret in secrets:
        assert secret not in text
        for start in range(len(secret) - PIECE + 1):
            assert secret[start : start + PIECE] not in text


@pytest.mark.parametrize("password", PASSWORDS)
class TestForms:
    def test_in_whatever_form(self, password: str) -> None:
        redactor = Redactor([password])
        forms = [
            password, json.dumps(password), json.dumps(json.dumps(password)), repr(password), quote(password),
            json.dumps(password, ensure_ascii=False), quote(password, safe=""), quote(password, safe="").lower(),
            quote_plus(password), html.escape(password),
        ]  # fmt: skip
        for form in forms:
            text = redactor.clean(f"before {form} after")
            check_hidden(text, password)
            assert text.startswith("before ")
            assert text.endswith(" after")
            check_hidden(text, form.strip("\"'"))

    def test_wherever_it_was_cut(self, password: str) -> None:
        redactor = Redactor([password])
        for start in range(len(password)):
            for end in range(start + PIECE, len(password) + 1):
                check_hidden(redactor.clean(f"x {password[start:end]}"), password)

    def test_in_an_address_that_nobody_registered(self, password: str) -> None:
        address = f"postgresql://user:{password.replace(' ', '')}@host:5432/db"
        assert (
            redaction.Redactor().clean(f"cannot open {address}")
            == f"cannot open postgresql://user:{HIDDEN}@host:5432/db"
        )

    def test_a_part_that_a_driver_took_for_a_host_or_a_port(self, password: str) -> None:
        redactor = Redactor()
        redactor.add_url(f"postgresql://user:{quote(password, safe='')}@host/db")
        redactor.add_url(f"postgresql://user:{password}@host/db")
        for part in [password, *password.split("@"), *password.split("/"), *password.split("#")]:
            check_hidden(redactor.clean(f'could not translate host name "{part}" to address'), password)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://host/db?password=hunter2&x=1", "postgresql://host/db?password=…&x=1"),
        ("https://h/x?api_key=abc&token=def#z", "https://h/x?api_key=…&token=…"),
        ("host=h password=hunter2 dbname=d", "host=h password=… dbname=d"),
        ('{"api_key":"abc","events":[]}', '{"api_key":"…","events":[]}'),
        ('{\\"api_key\\": \\"abc\\", \\"n\\": 1}', '{\\"api_key\\": \\"…\\", \\"n\\": 1}'),
        ("{'secret_key': 'abc'}", "{'secret_key': '…'}"),
        ("redis://:pass@host", "redis://:…@host"),
        ("user@host is no secret, nor is http://host:80/a", "user@host is no secret, nor is http://host:80/a"),
        ("monkey=banana", "monkey=banana"),
    ],
)
def test_what_is_named_like_a_secret(text: str, shown: str) -> None:
    assert Redactor().clean(text) == shown


def test_secrets_of_an_address() -> None:
    assert set(secrets_of_url("postgresql://me:a%40b@h/d?sslpassword=hid%64en&x=1")) >= {
        "a%40b",
        "a@b",
        "hid%64en",
        "hidden",
    }
    assert secrets_of_url("duckdb:///folder/file") == []
    assert secrets_of_url("no address") == []


@pytest.mark.parametrize("name", ["KEY", "AMPLITUDE_API_KEY", "KEY2", "NAMI_AMP_X"])
def test_names_of_variables_are_shown(name: str) -> None:
    assert shown_name(name) == name


@pytest.mark.parametrize(
    "name", [KEY, KEY.upper(), "deadbeef" * 4, "a b", "", "sk-live-1", "AB12CD34EF56GH78", "A" * 16]
)
def test_what_may_be_a_key_is_not(name: str) -> None:
    assert shown_name(name) == HIDDEN


def test_paths_are_shown_as_far_as_they_are_there(tmp_path: Path) -> None:
    assert shown_path(tmp_path) == str(tmp_path)
    assert shown_path(tmp_path / KEY) == str(tmp_path / HIDDEN)
    assert shown_path(KEY) == HIDDEN
    assert shown_path(f"{KEY}/x") == HIDDEN
    assert shown_path("\0") == HIDDEN


def test_errors_and_logs_of_ours_hold_none(caplog: pytest.LogCaptureFixture) -> None:
    redaction.add(KEY)
    check_hidden(str(StoreUnavailable(f"no answer: {KEY}")), KEY)
    logger = redaction.guarded_logger("nami_amp_pipeline.test")
    with caplog.at_level(logging.INFO, logger.name):
        try:
            raise ValueError(KEY)
        except ValueError:
            logger.exception("it was %s", KEY)
    check_hidden(caplog.text + logging.Formatter().format(caplog.records[0]), KEY)
    assert "Traceback" in logging.Formatter().format(caplog.records[0])


class TestCommands:
    @pytest.mark.parametrize("option", ["--api-key-env", "--api-key-file"])
    def test_a_key_in_the_place_of_its_source(self, tmp_path: Path, option: str) -> None:
        for key in (KEY, KEY.upper(), f"{tmp_path}/{KEY}"):
            done = invoke(tmp_path, "integrations", "add", "radio", "prod", "--endpoint", "us", option, key)
            assert done.exit_code == 2
            check_hidden(one_line(done.stderr) + done.stdout, KEY, KEY.upper())
            again = invoke(tmp_path, "--debug", "integrations", "add", "radio", "prod", "--endpoint", "us", option, key)
            check_hidden(again.output, KEY, KEY.upper())

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "address", ["postgresql://me:{}@127.0.0.1:9/db", "postgresql://me@127.0.0.1:9/db?password={}"]
    )
    def test_a_password_of_the_store_or_the_warehouse(self, tmp_path: Path, address: str) -> None:
        password = "p@ssw0rd/with#more"
        told = {"NAMI_AMP_STATE_URL": address.format(password), "NAMI_AMP_RUN_RETRY_SECONDS": "0"}
        for arguments in (("status",), ("--debug", "integrations", "list"), ("doctor",)):
            done = invoke(tmp_path, *arguments, settings=told)
            check_hidden(done.output, password)
        told = {"NAMI_AMP_WAREHOUSE_URL": address.format(password), "NAMI_AMP_RUN_RETRY_SECONDS": "0"}
        for command in ("doctor", "trace x"):
            check_hidden(invoke(tmp_path, *command.split(), settings=told).output, password)
        ran = nami_amp(tmp_path, "run", **told)
        check_hidden(ran.stdout + ran.stderr, password)
        for file in tmp_path.rglob("*"):  # Dagster's history too
            if file.is_file():
                check_hidden(file.read_bytes().decode("latin-1"), password)

    @pytest.mark.slow
    def test_a_server_that_repeats_the_key(self, tmp_path: Path) -> None:
        answers = [
            (400, {"error": f"Invalid request path: {'x' * 160} {KEY} was sent", "missing_field": "events"}),
            (400, {"error": json.dumps({"key": KEY}) + KEY, "missing_field": KEY}),
            (403, {"error": f"{'y' * 1_970}{KEY}"}),
            (418, {"error": KEY}),
        ]

        asked: set[int] = set()

        class Echo(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                number = int(self.path.split("/")[1])
                asked.add(number)
                status, answer = answers[number]
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Echo) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            (tmp_path / "key").write_text(KEY)
            for number in range(len(answers)):
                endpoint = f"http://127.0.0.1:{server.server_port}/{number}/2/httpapi"
                added = invoke(
                    tmp_path, "integrations", "add", "radio", f"answer-{number}", "--endpoint", endpoint,
                    "--allow-custom-endpoint", "--api-key-file", "key", "--start-from", "beginning",
                    "--allow-shared-key",
                )  # fmt: skip
                assert added.exit_code == 0, added.output
            (tmp_path / "key").unlink()
            load_events(tmp_path, event(1), event(2))
            for arguments in (
                ("integrations", "test", "--json"),
                ("run", "--json"),
                ("status", "--json"),
                ("trace", "event-1"),
                ("dead-letters", "list"),
                ("dead-letters", "show", "event-1"),
            ):
                done = nami_amp(tmp_path, *arguments, NAMI_AMP_RUN_RETRY_SECONDS="0")
                check_hidden(done.stdout + done.stderr, KEY)
            for file in tmp_path.rglob("*"):
                if file.is_file():
                    check_hidden(file.read_bytes().decode("latin-1"), KEY)
            server.shutdown()
        assert asked == set(range(len(answers)))


def test_it_is_light_to_import() -> None:
    program = "import sys, nami_amp_pipeline.redaction; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_people_type_is_forgotten_once_enough_came_after_it() -> None:
    redactor = Redactor(["the kept secret"])
    redactor.add_passing("typed-first-0000")
    assert redactor.clean("typed-first-0000 of the kept secret") == f"{HIDDEN} of {HIDDEN}"
    for number in range(MOST_PASSING - 1):
        redactor.add_passing(f"later-{number:04}-{number * 7919:08}")
    redactor.add_passing("typed-first-0000")  # typed again: it counts as new
    redactor.add_passing("one-more-9999")
    assert redactor.clean("typed-first-0000") == HIDDEN
    for number in range(MOST_PASSING):
        redactor.add_passing(f"newer-{number:04}-{number * 7919:08}")
    assert redactor.clean("typed-first-0000 of the kept secret") == f"typed-first-0000 of {HIDDEN}"
