"""Every command that the program or its pages quote is one that there is, with options that it has."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nami_amp_pipeline.alerts.kinds import Kind
from nami_amp_pipeline.cli import cli
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline_tests.support.command_line import add, nami_amp
from nami_amp_pipeline_tests.support.quoted_commands import (
    OLD_PAGES,
    PAGES,
    ROOT,
    SOURCES,
    TEMPLATES,
    quoted,
    texts_of,
    unquoted,
    words_of,
)

PLACEHOLDERS = {
    "N": "1", "PORT": "8765", "TIME": "2026-09-01T00:00:00Z", "us|eu": "us", "us|eu|URL": "us", "paid|free": "paid",
    "SECONDS": "5", "POLICY": "skip",
}  # fmt: skip


def problem(command: str) -> str | None:
    """Why a command cannot be run, but for arguments that are left open; None if it can."""
    try:
        words = shlex.split(words_of(command))[1:]
    except ValueError as error:
        return str(error)
    pairs = zip(["", *words], words, strict=False)
    words = [PLACEHOLDERS.get(word, word) for before, word in pairs if word != "…" or before.startswith("--")]
    node: click.Command = cli
    while isinstance(node, click.Group) and words and not words[0].startswith("-"):
        word = words.pop(0)
        for name in word.split("|"):  # list|show|retry
            if name not in node.commands:
                return f"there is no command {name}"
        node = node.commands[word.split("|")[0]]
    try:
        node.make_context("x", words, resilient_parsing=False, obj=None)
    except click.exceptions.NoArgsIsHelpError:
        return None
    except click.exceptions.Exit:  # --help, --version
        return None
    except (click.MissingParameter, click.NoSuchOption, click.BadParameter, click.UsageError) as error:
        if isinstance(error, click.MissingParameter) or "Missing" in error.format_message():
            return None
        return error.format_message()
    return None


COMMANDS = quoted()


def test_commands_are_found_everywhere() -> None:
    places = {where.split("/")[0] for where in COMMANDS.values()}
    assert {"nami_amp_pipeline", "docs", "README.md", "a text of the running program"} <= places
    assert len(COMMANDS) > 60


def test_no_command_of_the_program_slips_through() -> None:
    """A command in the middle of a text stands between quotes, or between code marks on a page: so it is found."""
    texts = {text for path in SOURCES for text in texts_of(path)}
    texts |= {path.read_text() for path in TEMPLATES}
    assert [slip for text in texts for slip in unquoted(text, cli.commands)] == []
    assert unquoted("There is none: nami-amp run starts it", cli.commands) == ["nami-amp run starts it"]
    assert unquoted("There is none: 'nami-amp run' starts it\n  nami-amp run", cli.commands) == []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_it_can_be_run(command: str) -> None:
    found = problem(command)
    assert found is None, f"{COMMANDS[command]}: {command}: {found}"


@pytest.mark.parametrize(
    "command",
    [
        "nami-amp stats", "nami-amp status --chek", "nami-amp integrations ad", "nami-amp trace a b",
        "nami-amp integrations list|shw", "nami-amp demo --users many", "nami-amp apps plan radio gold",
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_found(command: str) -> None:
    assert problem(command)


def helps(command: click.Command, path: str = "nami-amp") -> Iterator[tuple[str, str]]:
    """The help texts of a command and of all below it."""
    yield path, command.help or ""
    for parameter in command.params:
        yield f"{path} {parameter.name}", getattr(parameter, "help", None) or ""
    if isinstance(command, click.Group):
        for name, sub in command.commands.items():
            yield from helps(sub, f"{path} {name}")


def test_nothing_that_people_read_says_refused() -> None:
    said = dict(helps(cli))
    said |= {reason.code: f"{reason.means} {reason.action}" for reason in reasons.REASONS.values()}
    said |= {kind.value: f"{kind.called} {kind.advice}" for kind in Kind}
    said |= {str(page.relative_to(ROOT)): page.read_text() for page in PAGES
             if page.parent.name != "adr" and page.name not in (*OLD_PAGES, "benchmarks.md")}  # fmt: skip
    said["docs/operations.md"] = said["docs/operations.md"].replace("| `refused` |", "")
    page = "docs/control-center.md"  # which names a page, a number on it, and pictures
    for name in ("**Refused**", "skipped + refused + waiting", "control-center-refused.png"):
        said[page] = said[page].replace(name, "")
    assert [where for where, text in said.items() if "refuse" in text.lower()] == []
    assert len(said) > 100


@pytest.mark.slow
def test_completion_offers_values(tmp_path: Path) -> None:
    add(tmp_path, "http://127.0.0.1:9/2/httpapi", name="main")

    def offered(*words: str) -> list[str]:
        asked = nami_amp(
            tmp_path, _NAMI_AMP_COMPLETE="bash_complete", COMP_WORDS=" ".join(("nami-amp", *words)),
            COMP_CWORD=str(len(words)),
        )  # fmt: skip
        assert asked.stderr == ""
        return [line.partition(",")[2] for line in asked.stdout.splitlines() if line]

    assert offered("status", "rad") == ["radio/main"]
    assert offered("integrations", "enable", "") == ["radio/main"]
    assert offered("integrations", "release", "rad") == ["radio/main"]
    assert offered("integrations", "export", "--app", "") == ["radio"]
    assert offered("apps", "plan", "r") == ["radio"]
    assert "user.subscription.*" in offered("integrations", "update", "radio/main", "--events", "user.sub")
    assert offered("integrations", "update", "radio/main", "--events", "all,device.im") == ["all,device.impression"]
    assert offered("dead-letters", "list", "--reason", "rej") == ["rejected"]
    (tmp_path / ".nami-amp" / "state.db").write_bytes(b"no database at all" * 100)
    assert offered("status", "rad") == []
