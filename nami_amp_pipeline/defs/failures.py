"""How steps fail: with lines for people, and without a stack trace where the reason is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import dagster as dg

from nami_amp_pipeline.dagster_support.one_line_failure import OneLineFailure
from nami_amp_pipeline.dagster_support.shutdown import ASKED_TO_END
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


def ending(context: dg.OpExecutionContext) -> dict[str, Callable[[], None]]:
    """Lets the run end as canceled also where nobody pressed *Terminate*: nothing failed, the next run goes on."""

    def end() -> None:
        run = context.instance.get_run_by_id(context.run_id)
        if run is not None and run.status is dg.DagsterRunStatus.STARTED:
            context.instance.report_run_canceling(run, ASKED_TO_END)

    def last_word() -> None:
        run = context.instance.get_run_by_id(context.run_id)
        if run is not None and not run.is_finished:
            context.instance.report_run_canceled(run, ASKED_TO_END)

    return {"end": end, "last_word": last_word}


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
