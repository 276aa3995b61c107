"""Standard output and error, whatever they are: closed, full, or of an encoding that lacks characters."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any


def make_streams_usable() -> None:
    """Sees to it that writing to them can do no harm.

    A descriptor below 3 that is closed would be given to the next file that is opened, and what is written for people
    would then stand in a database. A character that an encoding lacks is written as an escape.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif not is_utf8(stream) and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def is_utf8(stream: Any) -> bool:
    """Whether a stream takes every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"


def can_be_written(stream: Any) -> bool:
    """Whether what a stream still holds can be written."""
    try:
        stream.flush()
    except (OSError, ValueError):
        return False
    return True


def say(line: str) -> None:
    """A line on standard error, if anybody can read it there."""
    import click

    with suppress(OSError, ValueError):
        click.echo(line, err=True)
