"""Reads the keys that people name by reference: from an environment variable or a file, and checks their form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.redaction import shown_name, shown_path
from nami_amp_pipeline.secrets import Secret

LONGEST = 1_000
"""No key has more characters."""


def in_dotenv() -> Mapping[str, str | None]:
    """The variables of ``.env``; none without the file."""
    from dotenv import dotenv_values

    return dotenv_values(".env") if Path(".env").is_file() else {}


def from_environment(variable: str, dotenv: Mapping[str, str | None] | None = None) -> str:
    """What an environment variable holds, or a line of ``.env``.

    Args:
        variable: its name.
        dotenv: what :func:`in_dotenv` returned, if it was read already.

    Raises:
        Misconfigured: it is not set.
    """
    text = os.environ.get(variable) or ""
    if not text.strip():
        text = (in_dotenv() if dotenv is None else dotenv).get(variable) or ""
    if not text.strip():
        name = shown_name(variable)
        raise Misconfigured(f"environment variable {name} is not set: put the key in it, never on the command line")
    return text


def from_file(file: Path) -> str:
    """What a file holds.

    Raises:
        Misconfigured: it cannot be read, or is empty.
    """
    name = shown_path(file)
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(LONGEST * 4)
    except OSError as error:
        raise Misconfigured(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Misconfigured(f"{name} holds no key: it is not text") from None
    except ValueError:
        raise Misconfigured("the path of the key file cannot be used") from None
    if not text.strip():
        raise Misconfigured(f"{name} is empty: put the key in it")
    return text


def checked_line(text: str, name: str) -> Secret:
    """The secret of a destination's own field, which may be several words, without surrounding space.

    Raises:
        Misconfigured: it is more than one line, or very long.
    """
    text = text.strip()
    if len(text) > LONGEST or not text.isprintable():
        raise Misconfigured(f"the secret field {name} must be one line of at most {LONGEST:,} characters")
    return Secret(text)


def checked(text: str, kind: str) -> Secret:
    """A key without surrounding space.

    Args:
        text: what was read.
        kind: ``api`` or ``secret``.

    Raises:
        Misconfigured: it is more than one word, or very long.
    """
    text = text.strip()
    if len(text) > LONGEST or len(text.split()) != 1:
        raise Misconfigured(f"the {kind} key is not valid: it must be one word")
    return Secret(text)
