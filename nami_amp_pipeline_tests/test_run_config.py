"""Run config gives nobody a secret: whoever may launch a run may write ``{env: NAME}`` into any field of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pytest
from cryptography.fernet import Fernet
from dagster._config import ConfigType, ConfigTypeKind
from dagster._core.definitions.reconstruct import ReconstructableRepository
from pydantic import BaseModel

from nami_amp_pipeline.dagster_support.plain_config import plain_fields
from nami_amp_pipeline.definitions import defs
from nami_amp_pipeline.defs.jobs import MicroBatchConfig, micro_batch
from nami_amp_pipeline.defs.partitions import add_partitions
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene

pytestmark = pytest.mark.filterwarnings(WARNINGS)

VARIABLE = "NAMI_AMP_ENCRYPTION_KEY"
SECRET = Fernet.generate_key().decode()
GIVEN = {"env": VARIABLE}
PARTITION = "dagster/partition"

REPOSITORY = defs.get_repository_def()


def places(kind: ConfigType) -> Iterator[Any]:
    """Config with :data:`GIVEN` in one place, for each place that there is."""
    if ConfigTypeKind.has_fields(kind.kind):
        for name, field in kind.fields.items():  # type: ignore[attr-defined]
            yield from ({name: inner} for inner in places(field.config_type))
    elif kind.kind is ConfigTypeKind.ARRAY:
        yield from ([inner] for inner in places(kind.inner_type))  # type: ignore[attr-defined]
    elif kind.kind is ConfigTypeKind.NONEABLE:
        yield from places(kind.inner_type)  # type: ignore[attr-defined]
    elif kind.kind is ConfigTypeKind.MAP:
        yield from ({"key": inner} for inner in places(kind.inner_type))  # type: ignore[attr-defined]
    else:
        yield GIVEN


CASES = [
    pytest.param(job.name, config, id=f"{job.name}-{number}")
    for job in REPOSITORY.get_all_jobs()
    for number, config in enumerate(places(job.run_config_schema.config_type))
]


def test_every_field_of_every_job_is_tried() -> None:
    tried = {str(case.values) for case in CASES}
    for part in (
        "'integrations': [{'env'",
        "'console_log_level': {'env'",
        "'ops': {'expire'",
        "'ops': {'nami_events'",
        "'ops': {'amplitude_deliveries_lag'",
        "'ops': {'amplitude_deliveries': {'config': {'from'",
        "'from': {'env'",
        "'loggers': {'console': {'config': {'log_level'",
        "'execution'",
        "{'event_or_user': {'env'",
    ):
        assert any(part in case for case in tried), part
    assert {case.values[0] for case in CASES} == {
        "micro_batch",
        "backfill",
        "identify",
        "retention",
        "trace",
        "reconcile",
        "__ASSET_JOB",
    }


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with scene(tmp_path / "home", encryption_key=SECRET) as made:
        made.add("radio")
        monkeypatch.setitem(os.environ, VARIABLE, SECRET)
        monkeypatch.setitem(os.environ, "NAMI_AMP_HOME", str(made.home))
        yield made


LAUNCHES: dict[str, list[dict[str, Any]]] = {
    "micro_batch": [{}],
    "backfill": [{}],
    "identify": [{}],
    "retention": [{}],
    "trace": [{}],
    "reconcile": [{"tags": {PARTITION: "radio|main"}}],
    "__ASSET_JOB": [
        {"asset_selection": [dg.AssetKey("nami_events")], "tags": {PARTITION: "radio"}},
        {"asset_selection": [dg.AssetKey("amplitude_deliveries")], "tags": {PARTITION: "radio|main"}},
    ],
}
"""With what else each job is launched; the checks of an asset run with it."""


@pytest.mark.slow_cases
@pytest.mark.parametrize(("job", "config"), CASES)
def test_no_field_gives_a_secret(
    job: str, config: Any, stage: Scene, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pointer = ReconstructableRepository.for_module("nami_amp_pipeline.definitions", "defs", str(tmp_path))
    said = []
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        add_partitions(instance, all_integrations(stage.context.store))
        for more in LAUNCHES[job]:
            try:
                result = dg.execute_job(
                    pointer.get_reconstructable_job(job), instance, run_config=config, raise_on_error=False, **more
                )
                said.append(repr(result.all_events))
            except dg.DagsterInvalidConfigError as error:
                said.append(f"{error}{error.errors}")
        said.append(repr([instance.all_logs(run.run_id) for run in instance.get_runs()]) + repr(instance.get_runs()))
    said += capfd.readouterr()
    assert len("".join(said)) > 100
    assert SECRET not in "".join(said)
    for path in tmp_path.rglob("*"):
        assert SECRET not in str(path)
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_a_long_text_in_the_place_of_an_integration_is_not_echoed(stage: Scene) -> None:
    with pytest.raises(Misconfigured) as caught:
        MicroBatch.begin(stage.context, [SECRET * 10])
    assert SECRET not in str(caught.value)
    with dg.DagsterInstance.ephemeral() as instance:
        result = micro_batch.execute_in_process(
            run_config={"integrations": [SECRET * 10]},
            instance=instance,
            resources=defs.resources,
            raise_on_error=False,
        )
        assert not result.success
        run = instance.get_run_by_id(result.run_id)
        assert run is not None
        assert SECRET not in repr(instance.all_logs(result.run_id))


def test_config_has_plain_types_only() -> None:
    class Odd(BaseModel):
        numbers: dict[str, int] = {}

    class Known(BaseModel):
        text: str = "a"
        number: int | None = None
        share: float = 0.5
        yes: bool = True
        which: Literal["one", "two"] = "one"
        many: list[str] = []

    with pytest.raises(TypeError, match="Odd_numbers: dict"):
        plain_fields(Odd)
    assert set(plain_fields(Known)) == set(Known.model_fields)
    assert set(plain_fields(MicroBatchConfig)) == {"integrations", "shard", "console_log_level"}
    assert not [field for field in plain_fields(Known).values() if "Source" in str(field.config_type.key)]
