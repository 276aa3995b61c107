"""The component in somebody's own project: names of its own, settings of its own, nothing of theirs taken over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster.components.core.package_entry import get_package_objects_in_module

import nami_amp_pipeline
from nami_amp_pipeline.alerts import Kind, alert_store
from nami_amp_pipeline.defs.component import NamiAmplitude
from nami_amp_pipeline.defs.partitions import wanted_partitions
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline_tests.support.scene import BAD_KEY, WARNINGS, Scene, scene

pytestmark = [pytest.mark.filterwarnings(WARNINGS)]

ROOT = Path(__file__).parents[1]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


@pytest.fixture
def crm(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Attributes of a component for the scene's home, which no variable of ours names."""
    monkeypatch.setenv("CRM_WAREHOUSE", stage.settings.warehouse_url)
    monkeypatch.setenv("NAMI_AMP_WAREHOUSE_URL", "duckdb:////nowhere/else.duckdb")
    return {
        "asset_key_prefix": ["crm"],
        "warehouse_url_env": "CRM_WAREHOUSE",
        "settings": {"home": str(stage.home)},
    }


def names(defs: dg.Definitions) -> set[str]:
    repository = defs.get_repository_def()
    return {
        *(key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()),
        *(job for job in repository.job_names if not job.startswith("__")),
        *(schedule.name for schedule in repository.schedule_defs),
        *(sensor.name for sensor in repository.sensor_defs),
        *(node.name for job in repository.get_all_jobs() for node in job.nodes if not job.name.startswith("__")),
        *(str(definition) for definition in (defs.resources or {})),
    }


def run(defs: dg.Definitions, job: str, instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    found = defs.resolve_job_def(job)
    return found.execute_in_process(
        run_config={"console_log_level": "CRITICAL", **config}, instance=instance, raise_on_error=False
    )


def test_dg_finds_the_component_and_nothing_else() -> None:
    assert [name for name, _ in get_package_objects_in_module(nami_amp_pipeline)] == ["NamiAmplitude"]


@pytest.mark.slow
def test_the_modules_that_dg_imports_for_each_command_bring_nothing_along() -> None:
    code = (
        "import sys, nami_amp_pipeline\n"
        "print(sorted(n for n in sys.modules if n.startswith('nami_amp_pipeline')), 'dagster' in sys.modules)\n"
        "import dagster.components\nbefore = set(sys.modules)\nnami_amp_pipeline.NamiAmplitude\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "['nami_amp_pipeline'] False",
        "['nami_amp_pipeline.defs', 'nami_amp_pipeline.defs.component']",
    ]


def test_two_in_one_deployment_share_no_name() -> None:
    one, two = NamiAmplitude().definitions(), NamiAmplitude(asset_key_prefix=["crm"]).definitions()
    assert not names(one) & names(two)
    both = dg.Definitions.merge(one, two)
    dg.Definitions.validate_loadable(both)
    places = [NamiAmplitude(asset_key_prefix=prefix).place for prefix in ([], ["crm"])]
    partitions = [set(wanted_partitions([], place)) for place in places]
    assert partitions == [{"nami_apps", "nami_app_integrations"}, {"crm_nami_apps", "crm_nami_app_integrations"}]


def test_nothing_of_theirs_is_taken_over() -> None:
    @dg.resource
    def theirs() -> str:
        return "theirs"

    @dg.schedule(cron_schedule="0 1 * * *", job_name="crm_micro_batch")
    def mine() -> dg.RunRequest:
        return dg.RunRequest()

    ours = NamiAmplitude(asset_key_prefix=["crm"], schedule=None).definitions()
    merged = dg.Definitions.merge(
        ours, dg.Definitions(executor=dg.multiprocess_executor, schedules=[mine], resources={"pipeline": theirs})
    )
    repository = merged.get_repository_def()
    assert ours.executor is None
    assert repository.get_job("__ASSET_JOB").executor_def.name == "multiprocess"
    assert set(ours.resources or {}) == {"crm_pipeline"}
    starts = {schedule.name for schedule in repository.schedule_defs if schedule.job_name == "crm_micro_batch"}
    starts |= {
        sensor.name
        for sensor in repository.sensor_defs
        if any(target.job_name == "crm_micro_batch" for target in sensor.targets)
    }
    assert starts == {"mine"}


def test_a_cron_schedule_of_the_component_replaces_that_of_the_settings() -> None:
    repository = NamiAmplitude(schedule="7 * * * *").definitions().get_repository_def()
    assert repository.get_schedule_def("micro_batch_schedule").cron_schedule == "7 * * * *"
    text = repository.asset_graph.get(dg.AssetKey("nami_events")).description
    assert text is not None
    assert "`micro_batch_schedule`, at `7 * * * *`" in text or "7 * * * *" in text


def test_a_module_that_imports_ours_beside_its_own_does_not_lose_its_own(tmp_path: Path) -> None:
    from dagster._core.workspace.autodiscovery import loadable_targets_from_python_file

    file = tmp_path / "theirs.py"
    file.write_text(
        "import dagster as dg\nfrom nami_amp_pipeline.definitions import defs as nami\n"
        "@dg.asset\ndef mine(): ...\n"
        "@dg.definitions\ndef everything():\n    return dg.Definitions.merge(nami, dg.Definitions(assets=[mine]))\n"
    )
    (target,) = loadable_targets_from_python_file(str(file))
    assert target.attribute == "everything"
    other = tmp_path / "other.py"
    other.write_text(file.read_text().replace("@dg.definitions\ndef everything():\n    return", "defs ="))
    with pytest.raises(dg.DagsterInvariantViolationError, match="more than one Definitions"):
        loadable_targets_from_python_file(str(other))  # said, and not one of the two taken


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"warehouse_url_env": "postgresql://u:hush@h/d"}, "give the name of a variable"),
        ({"settings": {"state_url": "postgresql://u:hush@h/d"}}, "give the name of its variable as state_url_env"),
        ({"settings": {"tick_minute": 5}}, "there is no setting tick_minute"),
        ({"asset_key_prefix": ["a-b"]}, "letters, digits and underscores"),
        ({"schedule": "often"}, "schedule"),
    ],
)
def test_a_value_that_cannot_be_is_refused_without_repeating_a_secret(attributes: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        NamiAmplitude(**attributes)
    assert "hush" not in str(caught.value)


def test_a_variable_that_is_not_set_is_named_by_the_run_and_does_not_keep_the_code_from_loading(
    stage: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CRM_STATE", raising=False)
    component = NamiAmplitude(asset_key_prefix=["crm"], state_url_env="CRM_STATE")
    defs = component.definitions()
    with pytest.raises(Misconfigured, match="CRM_STATE is not set"):
        component.place.settings()
    with dg.DagsterInstance.ephemeral() as instance:
        result = run(defs, "crm_micro_batch", instance)
        failure = result.failure_data_for_node("crm_capture")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert "CRM_STATE is not set" in str(failure.user_failure_data.description)


@pytest.mark.slow
def test_a_micro_batch_moves_prefixed_assets_of_the_named_warehouse(stage: Scene, crm: dict[str, Any]) -> None:
    stage.load(users=6, apps=("fit", "radio"))
    stage.add("fit")
    stage.add("radio", key=BAD_KEY)
    defs = NamiAmplitude(**crm).definitions()
    deliveries = dg.AssetKey(["crm", "amplitude_deliveries"])
    with dg.DagsterInstance.ephemeral() as instance:
        result = run(defs, "crm_micro_batch", instance)
        assert not result.success  # of the wrong key
        keys = {
            (event.asset_key.to_user_string(), event.partition)
            for entry in instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
            if (event := entry.dagster_event) is not None and event.asset_key is not None
        }
        assert set(instance.get_dynamic_partitions("crm_nami_apps")) == {"fit", "radio"}
        assert set(instance.get_dynamic_partitions("crm_nami_app_integrations")) == {"fit|main", "radio|main"}
        assert instance.get_dynamic_partitions("nami_apps") == []
        assert ("crm/amplitude_deliveries", "fit|main") in keys
        assert {name.partition("/")[0] for name, _ in keys} == {"crm"}
        checks = instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(deliveries, "not_halted"), 10
        )
        assert {check.partition for check in checks} == {"fit|main", "radio|main"}
        from nami_amp_pipeline.dagster_support.failed_partitions import failed_partitions

        # The plan of a run that has not ended counts once it has.
        assert set(failed_partitions(instance, deliveries)) == {"radio|main"}
        by_hand = dg.materialize(
            [*defs.assets],  # type: ignore[misc]
            selection=dg.AssetSelection.assets(deliveries),
            instance=instance,
            partition_key="fit|main",
            resources=defs.resources,
        )
        assert by_hand.success
        reports = instance.fetch_materializations(dg.AssetKey(["crm", "delivery_report"]), limit=1).records
        (alerts,) = (sensor for sensor in defs.get_repository_def().sensor_defs if sensor.name == "crm_alerts")
        with dg.build_sensor_context(instance=instance, resources=defs.resources) as context:
            alerts.evaluate_tick(context)
    pages = {entry.alert.kind: entry.alert.page for entry in alert_store.entries(stage.context.store)}
    assert pages[Kind.INTEGRATION_HALTED].startswith("/assets/crm/amplitude_deliveries?")
    assert reports
    made = reports[0].asset_materialization
    assert made is not None
    assert "/assets/crm/amplitude_deliveries?" in str(made.metadata["what is wrong with radio/main"].value)


@pytest.mark.slow
def test_specs_and_steps_are_overridden_as_in_dagsters_own_components(stage: Scene, crm: dict[str, Any]) -> None:
    stage.load(users=3, apps=("fit",))
    stage.add("fit")
    steps: list[str] = []

    class Mine(NamiAmplitude):
        def get_asset_spec(self, spec: dg.AssetSpec) -> dg.AssetSpec:
            return spec.merge_attributes(tags={"tier": "gold"})

        def execute(self, context: Any, pipeline: Any, step: Any) -> Iterator[Any]:
            assert pipeline.settings.home == stage.home
            steps.append(f"before {step.asset}")
            yield from super().execute(context, pipeline, step)
            steps.append(f"after {step.asset}")

    defs = Mine(**crm, group="marketing", owners=["team:growth"]).definitions()
    graph = defs.resolve_asset_graph()
    nodes = [graph.get(key) for key in graph.get_all_asset_keys()]
    assert {(node.group_name, tuple(node.owners), node.tags["tier"]) for node in nodes} == {
        ("marketing", ("team:growth",), "gold")
    }
    deliveries = dg.AssetKey(["crm", "amplitude_deliveries"])
    with dg.DagsterInstance.ephemeral() as instance:
        assert run(defs, "crm_micro_batch", instance).success
        whole = ["nami_events", "user_property_snapshots", "amplitude_events", "amplitude_deliveries"]
        assert steps == [f"{when} {asset}" for asset in whole for when in ("before", "after")]
        steps.clear()
        dg.materialize(
            [*defs.assets],  # type: ignore[misc]
            selection=dg.AssetSelection.assets(deliveries),
            instance=instance,
            partition_key="fit|main",
            resources=defs.resources,
        )
    assert steps == ["before amplitude_deliveries", "after amplitude_deliveries"]


def test_a_key_is_changed_by_the_attribute_only() -> None:
    class Mine(NamiAmplitude):
        def get_asset_spec(self, spec: dg.AssetSpec) -> dg.AssetSpec:
            return spec.replace_attributes(key=["crm", *spec.key.path])

    with pytest.raises(Misconfigured, match="asset_key_prefix"):
        Mine().definitions()


@pytest.mark.slow
def test_sensors_of_a_place_look_at_its_own_store(stage: Scene, crm: dict[str, Any]) -> None:
    stage.add("fit")
    defs = NamiAmplitude(**crm).definitions()
    repository = defs.get_repository_def()
    with dg.instance_for_test() as instance:
        for sensor in repository.sensor_defs:
            if sensor.name == "crm_failed_runs":
                continue
            with dg.build_sensor_context(
                instance=instance, resources=defs.resources, repository_def=repository, sensor_name=sensor.name
            ) as context:
                found = sensor.evaluate_tick(context)
            requests = list(found.dynamic_partitions_requests or ())
            if sensor.name == "crm_integration_partitions":
                assert {request.partitions_def_name for request in requests} == {
                    "crm_nami_apps",
                    "crm_nami_app_integrations",
                }
            else:
                assert not requests
                assert found.skip_message
        for name in ("crm_reconcile_daily", "crm_retention_hourly", "crm_micro_batch_schedule"):
            schedule = repository.get_schedule_def(name)
            with dg.build_schedule_context(
                instance=instance, resources=defs.resources, repository_def=repository
            ) as at:
                ticked = schedule.evaluate_tick(at)
            assert ticked.skip_message if name == "crm_reconcile_daily" else ticked.run_requests
