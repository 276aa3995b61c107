"""The component ``nami_amp_pipeline.NamiAmplitude``: this pipeline in anybody's Dagster project.

``dg`` imports this module for each of its commands: whatever takes time is imported where it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import dagster as dg
from pydantic import ConfigDict, Field, field_validator

if TYPE_CHECKING:
    from nami_amp_pipeline.defs.ours import Place
    from nami_amp_pipeline.defs.resources import PipelineSession
    from nami_amp_pipeline.defs.steps import Step

AS_SET: Final = "as set"
"""The schedule of the settings ``NAMI_AMP_TICK_MINUTES``, ``NAMI_AMP_TICK_CRON`` and ``NAMI_AMP_QUIET_HOURS``."""

_PART: Final = re.compile(r"[A-Za-z0-9_]+")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_NAMED: Final = {
    "warehouse_url_env": "warehouse_url",
    "state_url_env": "state_url",
    "encryption_key_env": "encryption_key",
    "alert_webhook_url_env": "alert_webhook_url",
}
"""Attributes that name a variable, with the setting that it holds."""


class Scaffolder(dg.Scaffolder[Any]):
    """Writes a ``defs.yaml`` of some lines."""

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        """Writes it."""
        dg.scaffold_component(
            request,
            {
                "asset_key_prefix": [],
                "group": "nami_to_amplitude",
                "owners": ["team:data-platform"],
                "schedule": "*/5 * * * *",
                "warehouse_url_env": "NAMI_AMP_WAREHOUSE_URL",
                "state_url_env": "NAMI_AMP_STATE_URL",
                "encryption_key_env": "NAMI_AMP_ENCRYPTION_KEY",
            },
        )


@dg.scaffold_with(Scaffolder)
class NamiAmplitude(dg.Component, dg.Model, dg.Resolvable):
    """Delivers Nami ML subscription events to Amplitude, each once, with each user's properties.

    Apps and integrations are not listed here: they are rows of the state store, which a person adds at run time, and
    partitions of the assets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    asset_key_prefix: Annotated[
        Sequence[str],
        Field(
            description="Begins the keys of all assets, and the names of jobs, schedules, sensors and partitions. Two "
            "pipelines in one deployment need different ones. Letters, digits and underscores.",
            examples=[["crm"]],
        ),
    ] = ()
    group: Annotated[str, Field(description="The group of all assets.")] = "nami_to_amplitude"
    owners: Annotated[Sequence[str], Field(description="The owners of all assets: email addresses, or team:NAME.")] = (
        "team:data-platform",
    )
    schedule: Annotated[
        str | None,
        Field(
            description="When micro-batches start: a cron schedule of five fields. null: nothing of the pipeline "
            "starts any. Left out: as NAMI_AMP_TICK_MINUTES and the like say.",
            examples=["*/5 * * * *"],
        ),
    ] = AS_SET
    warehouse_url_env: Annotated[
        str | None, Field(description="Name of the variable with the address of the warehouse.")
    ] = None
    state_url_env: Annotated[
        str | None, Field(description="Name of the variable with the address of the state store.")
    ] = None
    encryption_key_env: Annotated[
        str | None, Field(description="Name of the variable with the key that encrypts stored API keys.")
    ] = None
    alert_webhook_url_env: Annotated[
        str | None, Field(description="Name of the variable with the URL that alerts are posted to.")
    ] = None
    settings: Annotated[
        dict[str, str | int | float | bool],
        Field(
            description="Other settings, by the names of docs/settings.md without NAMI_AMP_ and in lower case. No "
            "addresses and keys.",
            examples=[{"home": "/var/lib/nami"}],
        ),
    ] = Field(default_factory=dict)
    enrichments: Annotated[
        Sequence[str],
        Field(
            description="Enrichments that no installed package declares, as module:name. Give the command line the "
            "same in NAMI_AMP_EXTENSIONS.",
            examples=[["shop.enrichments:LIFETIME_VALUE"]],
        ),
    ] = ()
    destinations: Annotated[
        Sequence[str],
        Field(
            description="Destinations that no installed package adds, as module:name. Give the command line the same "
            "in NAMI_AMP_EXTENSIONS.",
            examples=[["shop.collector:Collector"]],
        ),
    ] = ()
    resource_key: Annotated[
        str | None,
        Field(description="The key of the pipeline's resource, if you have another one of the name `pipeline`."),
    ] = None

    @field_validator("asset_key_prefix")
    @classmethod
    def _are_parts(cls, parts: Sequence[str]) -> Sequence[str]:
        if not all(map(_PART.fullmatch, parts)):
            raise ValueError("a prefix has letters, digits and underscores: it begins names of jobs, too")
        return parts

    @field_validator("resource_key", *_NAMED)
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not _VARIABLE.fullmatch(name):
            # Without the text: somebody may have given an address or a key.
            raise ValueError("give the name of a variable, such as NAMI_AMP_WAREHOUSE_URL, and not its value")
        return name

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, schedule: str | None) -> str | None:
        if schedule is not None and schedule != AS_SET:
            from nami_amp_pipeline.clock import cron_fields

            cron_fields(schedule)
        return schedule

    @field_validator("settings")
    @classmethod
    def _are_settings(cls, given: dict[str, Any]) -> dict[str, Any]:
        from nami_amp_pipeline.settings import SECRETS, Settings

        for name in given:
            if name.upper() in SECRETS:
                raise ValueError(f"{name} has no place in code: give the name of its variable as {name}_env")
            if name not in Settings.model_fields:
                raise ValueError(f"there is no setting {name}; docs/settings.md lists all")
        return given

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """What ``dg list components`` says of it."""
        return dg.ComponentTypeSpec(
            description="Delivers Nami ML subscription events to Amplitude.",
            tags=["nami", "amplitude", "reverse-etl"],
            produces=["asset", "asset_check", "schedule", "sensor", "job", "resource"],
        )

    def get_asset_spec(self, spec: dg.AssetSpec) -> dg.AssetSpec:
        """What an asset says of itself: override it for a description, tags, a freshness policy or a condition.

        Args:
            spec: what it would say. The key must stay: :attr:`asset_key_prefix` changes it.
        """
        return spec

    def execute(
        self, context: dg.OpExecutionContext | dg.AssetExecutionContext, pipeline: PipelineSession, step: Step
    ) -> Iterator[Any]:
        """Does a step, of an asset or of the job: override it to do something before or after it.

        Args:
            context: of Dagster.
            pipeline: its settings, store and files.
            step: ``step.asset`` says which one, ``step.work()`` does it.
        """
        yield from step.work()

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """All definitions."""
        return self.definitions()

    def definitions(self) -> dg.Definitions:
        """The same without a context: the assets, and what drives them. No executor is among them."""
        if self.enrichments or self.destinations:
            from nami_amp_pipeline.settings.extensions import declare

            declare(self.enrichments, "enrichment")
            declare(self.destinations, "destination")
        from nami_amp_pipeline.defs.build import build_definitions

        return build_definitions(self.place, self.execute, self.get_asset_spec)

    @property
    def place(self) -> Place:
        """Where the definitions are, and with which settings."""
        from nami_amp_pipeline.defs.ours import RESOURCE, Place

        prefix = tuple(self.asset_key_prefix)
        values = {name: str(value) for name, value in self.settings.items()}
        if self.schedule not in (None, AS_SET):
            values["tick_cron"] = str(self.schedule)
        named = {setting: getattr(self, attribute) for attribute, setting in _NAMED.items()}
        return Place(
            key_prefix=prefix,
            group=self.group,
            owners=tuple(self.owners),
            resource=self.resource_key or "_".join((*prefix, RESOURCE)),
            variables=tuple((setting, name) for setting, name in named.items() if name is not None),
            values=tuple(sorted(values.items())),
            is_scheduled=self.schedule is not None,
        )
