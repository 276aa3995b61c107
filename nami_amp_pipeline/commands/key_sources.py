"""Where a command reads a key from: environment, file or standard input; never its arguments, which all can see."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nami_amp_pipeline.commands.base import Invocation
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.redaction import HIDDEN, shown_name, shown_path

if TYPE_CHECKING:
    from nami_amp_pipeline.secrets import Secret


def key_options(kind: str, what: str) -> Callable[[Any], Any]:
    """The three options for a key.

    Args:
        kind: ``api`` or ``secret``.
        what: what it is called in the help.
    """

    def add(command: Any) -> Any:
        for option in (
            click.option(f"--{kind}-key-stdin", is_flag=True, help=f"Read {what} from standard input."),
            click.option(
                f"--{kind}-key-file",
                metavar="PATH",
                type=click.Path(path_type=Path),
                help=f"The file that holds {what}.",
            ),
            click.option(f"--{kind}-key-env", metavar="VAR", help=f"The environment variable that holds {what}."),
        ):
            command = option(command)
        return command

    return add


def field_options(command: Any) -> Any:
    """The options for the fields that a destination has of its own."""
    for option in (
        click.option(
            "--secret-field-file",
            "secret_field_files",
            multiple=True,
            metavar="NAME=PATH",
            help="The file that holds a secret field of the destination.",
        ),
        click.option(
            "--secret-field-env",
            "secret_field_envs",
            multiple=True,
            metavar="NAME=VAR",
            help="The environment variable that holds a secret field of the destination.",
        ),
        click.option(
            "--field",
            "fields",
            multiple=True,
            metavar="NAME=VALUE",
            help="A field that the destination has of its own; 'integrations destinations' shows them.",
        ),
    ):
        command = option(command)
    return command


class KeySources:
    """Reads the keys that a command was given.

    Args:
        invocation: learns what no message may hold.
        given: the values of :func:`key_options`, by name.
    """

    def __init__(self, invocation: Invocation, given: Mapping[str, Any]) -> None:
        self._invocation = invocation
        self._given = given
        if given.get("api_key_stdin") and given.get("secret_key_stdin"):
            raise Misconfigured(
                "standard input holds one key only: give the other by --secret-key-env or --secret-key-file"
            )

    def read(self, kind: str) -> Secret | None:
        """The key of a kind (``api`` or ``secret``); None where none was given.

        Raises:
            Misconfigured: it was given twice, or is not there.
        """
        from nami_amp_pipeline.operations import key_values

        variable, file, stdin = (self._given.get(f"{kind}_key_{source}") for source in ("env", "file", "stdin"))
        if sum(source is not None and source is not False for source in (variable, file, stdin)) > 1:
            raise Misconfigured(f"give one of --{kind}-key-env, --{kind}-key-file and --{kind}-key-stdin")
        self._hide_misplaced(variable, file)
        if variable is not None:
            text = key_values.from_environment(variable)
        elif file is not None:
            text = key_values.from_file(file)
        elif stdin:
            text = _from_stdin(kind, key_values.LONGEST)
        else:
            return None
        self._invocation.secrets.add(text.strip())
        return key_values.checked(text, kind)

    def fields(self, destination: str) -> dict[str, str]:
        """The fields of the destination's own that are no secrets, by name.

        Args:
            destination: its name.

        Raises:
            Misconfigured: one is not ``NAME=VALUE``, is unknown, or is a secret, whose value no message repeats.
        """
        from nami_amp_pipeline.operations.integrations import check_fields_in_clear

        _ = self._invocation.settings  # which may name the destination's module
        pairs = dict(_pair(text, "--field", "NAME=VALUE") for text in self._given.get("fields", ()))
        try:
            check_fields_in_clear(destination, pairs)
        except Misconfigured:
            self._invocation.secrets.add(*pairs.values())
            raise
        return pairs

    def secret_fields(self) -> dict[str, Secret]:
        """The secrets among them, by name.

        Raises:
            Misconfigured: one was given twice, or is not there.
        """
        from nami_amp_pipeline.operations import key_values

        found: dict[str, Secret] = {}
        for option, form, read in (
            ("env", "NAME=VAR", key_values.from_environment),
            ("file", "NAME=PATH", lambda path: key_values.from_file(Path(path))),
        ):
            for pair in self._given.get(f"secret_field_{option}s", ()):
                name, place = _pair(pair, f"--secret-field-{option}", form)
                if name in found:
                    raise Misconfigured(f"the secret field {name} is given twice")
                self._hide_misplaced(place if option == "env" else None, Path(place) if option == "file" else None)
                text = read(place)
                self._invocation.secrets.add(text.strip())
                found[name] = key_values.checked_line(text, name)
        return found

    def _hide_misplaced(self, variable: str | None, file: Path | None) -> None:
        """Keeps out of all messages what is a key in place of a name, most likely."""
        if variable is not None and shown_name(variable) == HIDDEN:
            self._invocation.secrets.add(variable)
        if file is not None and HIDDEN in shown_path(file):
            self._invocation.secrets.add(file.name)


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not value.strip():
        raise Misconfigured(f"{option} must be {form}")
    return name.strip(), value.strip()


def _from_stdin(kind: str, longest: int) -> str:
    if sys.stdin.isatty():
        return str(click.prompt(f"{kind.capitalize()} key", hide_input=True, err=True))
    try:
        text = sys.stdin.read(longest * 4)
    except UnicodeDecodeError:
        raise Misconfigured("standard input holds no key: it is not text") from None
    if not text.strip():
        raise Misconfigured("standard input is empty: pipe the key into it")
    return text
