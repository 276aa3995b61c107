"""What is this pipeline's of a Dagster that may serve others too: names of jobs, their tag, and the assets."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote

import dagster as dg
import sqlalchemy as sa

from nami_amp_pipeline.dagster_support.run_history import Ours
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.settings import PREFIX, Settings, variable
from nami_amp_pipeline.stages.table import STAGES

LOG: Final = logging.getLogger("nami_amp_pipeline.schedules")

MICRO_BATCH: Final = "micro_batch"
RETENTION: Final = "retention"
BACKFILL: Final = "backfill"
IDENTIFY: Final = "identify"
TRACE: Final = "trace"
SCHEDULE: Final = "micro_batch_schedule"
REPORT: Final = "delivery_report"
RECONCILE: Final = "reconcile"
RECONCILIATION: Final = "amplitude_reconciliation"

JOB_TAG: Final = "nami/job"
"""Every run of our jobs has it, with the job's name; ``dagster.yaml`` lets one ``micro_batch`` run at a time by it."""

BACKFILL_TAG: Final = "nami/backfill"
"""Each run that works on a backfill or an identify whose number was known at the start has it with that number."""

SHARD_TAG: Final = "nami/shard"
"""Each run of a micro-batch that others share has it, such as ``2/4``; one run of a shard is enough at a time."""

STORE_TAG: Final = "nami/store"
"""Every run of our jobs has it. Several code locations of one Dagster may load this pipeline: those with a store in
common leave a micro-batch to each other, and those with stores of their own do not."""


UNDER_WAY: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""The states of a run that is queued or under way."""


GROUP: Final = "nami_to_amplitude"
OWNERS: Final = ("team:data-platform",)
RESOURCE: Final = "pipeline"

_QUESTION: Final = quote('event_or_user: ""', safe="")

Fn = TypeVar("Fn", bound=Callable[..., Any])


@dataclass(frozen=True)
class Place:
    """How one pipeline is called, and set, within a Dagster that may serve others, also others of its kind.

    Attributes:
        key_prefix: begins the keys of the assets; joined by underscores, also the names of jobs, steps, schedules,
            sensors, dynamic partitions and of the resource.
        group: of the assets.
        owners: of the assets.
        resource: under which key the pipeline is known to Dagster.
        variables: (setting, variable of the environment) pairs: where a setting comes from another variable than
            ``NAMI_AMP_<SETTING>``; its content may be in the file that ``<variable>_FILE`` names.
        values: (setting, text) pairs: what is set here. No secrets: whoever sees the code sees them.
        is_scheduled: whether anything of ours starts micro-batches.
    """

    key_prefix: tuple[str, ...] = ()
    group: str = GROUP
    owners: tuple[str, ...] = OWNERS
    resource: str = RESOURCE
    variables: tuple[tuple[str, str], ...] = ()
    values: tuple[tuple[str, str], ...] = ()
    is_scheduled: bool = True

    def key(self, asset: str) -> dg.AssetKey:
        """The key of an asset of ours."""
        return dg.AssetKey([*self.key_prefix, asset])

    def name(self, name: str) -> str:
        """The name of a job, step, schedule, sensor or of dynamic partitions of ours."""
        return "_".join((*self.key_prefix, name))

    def page(self, asset: str) -> str:
        """The path of an asset's page."""
        return "/assets/" + "/".join(quote(part, safe="") for part in self.key(asset).path)

    def link(self, path: str) -> str:
        """The path of a page, given that of a pipeline without a prefix."""
        start = "/assets/"
        if not self.key_prefix or not path.startswith(start):
            return path
        return start + "/".join((*self.key_prefix, path.removeprefix(start)))

    @property
    def ask(self) -> str:
        """The launchpad of the job ``trace`` with the question to fill in, whatever the code location is called."""
        return f"/guess/{self.name(TRACE)}/playground/setup?config={_QUESTION}"

    @property
    def ours(self) -> Ours:
        """Which runs and assets are of this pipeline."""
        assets = (*(stage.asset for stage in STAGES), REPORT, RECONCILIATION)
        return Ours(
            tag=JOB_TAG,
            jobs=frozenset(map(self.name, (MICRO_BATCH, RETENTION, BACKFILL, IDENTIFY, TRACE, RECONCILE))),
            assets=frozenset(map(self.key, assets)),
        )

    def settings(self) -> Settings:
        """The settings of this pipeline.

        Raises:
            Misconfigured: one cannot be used, or a variable that is to hold one is not set.
        """
        if not self.variables and not self.values:
            return Settings.load()
        environ = dict(os.environ)
        for setting, name in self.variables:
            given = {end: variable(name + end) for end in ("", "_FILE")}
            if not any(given.values()):
                raise Misconfigured(f"{name} is not set: the component says that it holds {setting}")
            environ |= {PREFIX + setting.upper() + end: text for end, text in given.items()}
        environ |= {PREFIX + setting.upper(): text for setting, text in self.values}
        return Settings.load(environ)

    def owned(self, function: Fn) -> Fn:
        """A function that takes the resource by the name ``pipeline``, for a Dagster that knows it by ours."""
        if self.resource == RESOURCE:
            return function
        signature = inspect.signature(function, eval_str=True)
        parameters = [
            parameter.replace(name=self.resource) if name == RESOURCE else parameter
            for name, parameter in signature.parameters.items()
        ]

        @functools.wraps(function)
        def renamed(context: Any, **resources: Any) -> Any:
            return function(context, **{RESOURCE: resources[self.resource]})

        del renamed.__wrapped__  # else Dagster would look behind it
        shown: Any = renamed
        # Without what it returns: of an iterator, Dagster accepts the type only from a function with ``yield``.
        shown.__signature__ = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
        shown.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return cast("Fn", shown)


DEFAULT: Final = Place()
"""Of the code location that is this package itself, and of a component without attributes."""


def loaded_settings(place: Place = DEFAULT) -> Settings:
    """The settings; the defaults where one cannot be used, so that the code loads and the run says what is wrong."""
    try:
        return place.settings()
    except Misconfigured as error:
        LOG.warning("%s; until then the schedule and the sensors keep their default times", error)
        return Settings()


def store_label(settings: Settings) -> str:
    """A short name of the state store, the same for all who use it, that tells nothing of its address."""
    url = sa.make_url(settings.state_url)
    where = f"{url.host}:{url.port}/{url.database}"
    if url.drivername.startswith("sqlite"):
        where = f"{socket.gethostname()}:{Path(url.database or '').absolute()}"
    return hashlib.sha256(where.encode()).hexdigest()[:12]


OURS: Final = DEFAULT.ours
