"""How steps fail: with lines for people, and without a stack trace where the reason is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import dagster as dg

from nami_amp_pipeline.dagster_support.one_line_failure import OneLineFailure
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.errors import NamiAmpError

KIND: Final = "kind"
"""Metadata of a failure: the name of the error that ended a step."""

PROBLEMS: Final = "problems"
"""Metadata of a failure: a line for each reason that is news."""


@contextmanager
def in_one_line(pipeline: PipelineSession) -> Iterator[None]:
    """Fails the step with the message of an error that was raised on purpose, and without its traceback."""
    try:
        yield
    except NamiAmpError as error:
        pipeline.error = error
        raise OneLineFailure(str(error), {KIND: type(error).__name__}) from None


def incomplete(problems: Iterable[str], known: Iterable[str] = ()) -> dg.Failure:
    """The failure of a run that could not do everything.

    Args:
        problems: a line for each reason.
        known: the same of what other runs failed for, and is not over.
    """
    lines, before = list(problems), list(known)
    text = "Not everything was delivered; what could be, was.\n" + "\n".join(lines)
    if before:
        text += "\nNot over since earlier runs:\n" + "\n".join(before)
    return OneLineFailure(text, {PROBLEMS: dg.MetadataValue.md("\n".join(f"- {line}" for line in lines))})
