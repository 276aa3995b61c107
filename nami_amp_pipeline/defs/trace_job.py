"""The job ``trace``: a person asks on Dagster's pages whether an event arrived, and its run answers."""

from collections.abc import Callable
from typing import Any, Final

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field

from nami_amp_pipeline.dagster_support.plain_config import plain_fields
from nami_amp_pipeline.dagster_support.shutdown import prompt
from nami_amp_pipeline.defs.failures import ending, in_one_line
from nami_amp_pipeline.defs.ours import DEFAULT, JOB_TAG, STORE_TAG, TRACE, Place, loaded_settings, store_label
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.trace import Answer

VERDICT_TAG: Final = "nami/verdict"
"""Of a run that has answered: its page and the list of runs show it."""

MOST_SHOWN: Final = 30
"""Verdicts with an entry of their own on the page of the run."""


class TraceConfig(BaseModel):
    """What a run of ``trace`` is given."""

    model_config = ConfigDict(hide_input_in_errors=True)

    event_or_user: str = Field(
        default="",
        description="Nami's event id, which is the insert id in Amplitude too; or a user, by External ID or Nami's id.",
    )


def look_up(context: dg.OpExecutionContext, pipeline: dg.ResourceParam[PipelineSession]) -> None:
    """The verdicts as metadata, lines of the log and a tag of the run."""
    asked = TraceConfig(**context.op_config).event_or_user.strip()
    with in_one_line(pipeline), prompt(**ending(context)):
        if not asked:
            raise Misconfigured("event_or_user is empty: give an event id, an External ID or a Nami user")
        with Operations(pipeline.settings) as operations:  # not the session: this run is no micro-batch
            answer = operations.look_up(asked)
    for line in (answer.verdict, *map(str, answer.verdicts)):
        context.log.info(line)
    context.instance.add_run_tags(context.run_id, {VERDICT_TAG: answer.summary})
    context.add_output_metadata(verdicts_of(answer))


def verdicts_of(answer: Answer) -> dict[str, Any]:
    """The metadata of the answer: the verdict, then an entry for each event and integration."""
    facts: dict[str, Any] = {"verdict": answer.verdict}
    several = answer.event is None
    for event, verdict in answer.by_event[:MOST_SHOWN]:
        said = str(verdict).removeprefix(f"{verdict.integration}: ")
        if verdict.what_to_do:
            said += f". {verdict.what_to_do}"
        name = f"{event.event_id}, {verdict.integration}" if several else verdict.integration
        facts[name] = said  # as text: the page of a run hides Markdown behind a button
    more = len(answer.by_event) - MOST_SHOWN
    if more > 0:
        facts["more"] = f"{more:,} more, which 'nami-amp trace' shows"
    return facts


def build_trace(place: Place = DEFAULT) -> dg.JobDefinition:
    """The job: one question."""
    decorate: Callable[..., dg.OpDefinition] = dg.op(
        name=place.name("look_up"),
        out=dg.Out(dg.Nothing),
        config_schema=plain_fields(TraceConfig),
        description="Looks for an event, or the newest events of a user, everywhere; changes nothing.",
    )
    step = decorate(place.owned(look_up))

    @dg.job(
        name=place.name(TRACE),
        config=dg.ConfigMapping(
            config_schema=plain_fields(TraceConfig),
            config_fn=lambda given: {
                "ops": {step.name: {"config": dict(given)}},
                "loggers": {"console": {"config": {"log_level": "WARNING"}}},
            },
        ),
        executor_def=dg.in_process_executor,
        tags={JOB_TAG: place.name(TRACE), STORE_TAG: store_label(loaded_settings(place))},
        description=(
            "Did an event arrive? Open the *Launchpad*, fill in `event_or_user`, and launch: the page of the run shows "
            "a verdict for each integration (arrived, waits, rejected …), with when, why and what to do. It changes "
            "nothing. `nami-amp trace` says the same."
        ),
    )
    def trace() -> None:
        step()

    return trace


trace = build_trace()
