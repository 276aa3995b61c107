"""What is in ``deploy/`` holds together and is what Dagster, Compose and the settings take. Docker is not run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config
from dagster_celery.cli import get_validated_config
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from nami_amp_pipeline.control_center.options import Options
from nami_amp_pipeline.dagster_support import serving
from nami_amp_pipeline.dagster_support.instance import CODE_LOCATION
from nami_amp_pipeline.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
TEXTS = [*DEPLOY.rglob("*.yaml"), DEPLOY / "example.env", DEPLOY / "Dockerfile"]


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.fixture(scope="module")
def compose() -> Any:
    return load("compose.yaml")


@pytest.fixture(scope="module")
def values() -> Any:
    return load("kubernetes/values.yaml")


def test_dagster_accepts_its_settings(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "dagster.yaml", tmp_path)
    found, custom = dagster_instance_config(str(tmp_path))
    assert custom is None
    assert found["storage"]["postgres"]["postgres_url"] == {"env": "DAGSTER_PG_URL"}
    embedded = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    for same in ("scheduler", "run_retries", "retention", "compute_logs", "telemetry", "nux"):
        assert found[same] == embedded[same], same


def test_runs_on_workers_of_celery_differ_in_who_carries_them_out(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "celery" / "dagster.yaml", tmp_path)
    found, _ = dagster_instance_config(str(tmp_path))
    assert found["run_launcher"]["class"] == "CeleryRunLauncher"
    usual, celery = load("dagster.yaml"), load("celery/dagster.yaml")
    del celery["run_launcher"]
    for given in (usual, celery):
        for name in ("max_concurrent_runs", "tag_concurrency_limits"):
            del given["concurrency"]["runs"][name]
    assert celery == usual


def test_workers_of_celery_tell_how_runs_are_where_dagster_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else run monitoring marks every run that lives as failed."""
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://there:6379/0")
    told = get_validated_config(str(DEPLOY / "celery" / "worker.yaml"))
    launcher = load("celery/dagster.yaml")["run_launcher"]["config"]
    for name in ("broker", "backend"):
        assert told[name] == "redis://there:6379/0"
        assert launcher[name] == {"env": "CELERY_BROKER_URL"}


@pytest.mark.parametrize("name", ["compose.yaml", "celery/compose.yaml"])
def test_compose_file_is_what_compose_takes(name: str) -> None:
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / name],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_service_that_stays_has_a_health_check_and_what_it_refers_to(compose: Any) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, wanted in service.get("depends_on", {}).items():
            needs_check = wanted["condition"] == "service_healthy"
            assert not needs_check or "healthcheck" in services[other], (name, other)
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith("./") else source in compose["volumes"], volume
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"migrate"}
    assert services["code-server"]["stop_grace_period"] == "30s"


def test_the_code_server_is_asked_the_same_everywhere_and_without_dagster(compose: Any, values: Any) -> None:
    """Dagster's own check takes two seconds of CPU, which is more than a minute of the service at rest."""
    test = compose["services"]["code-server"]["healthcheck"]["test"]
    deployment = values["dagster-user-deployments"]["deployments"][0]
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        assert deployment[probe]["exec"]["command"] == test[1:], probe
    code = f"import sys, {test[3]}; print(sorted({{name.partition('.')[0] for name in sys.modules}} & {{'dagster'}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("status", "why"),
    [(HealthCheckResponse.SERVING, None), (HealthCheckResponse.NOT_SERVING, "NOT_SERVING")],
)
def test_a_code_server_says_whether_it_serves(status: int, why: str | None) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    health = HealthServicer()
    health.set(serving.SERVICE, status)
    add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert serving.why_not(port) == why
    finally:
        server.stop(None).wait()
    assert serving.why_not(port) == "UNAVAILABLE"


def commands() -> list[list[str]]:
    services = load("compose.yaml")["services"]
    found = []
    for service in services.values():
        command = service.get("command", [])
        if command[:1] == ["sh"]:
            found += [shlex.split(part) for part in command[2].split("&&")]
        elif command:
            found.append(command)
        test = service.get("healthcheck", {}).get("test", [])
        if test[:1] == ["CMD"] and test[1] != "python":
            found.append(test[1:])
    probe = load("kubernetes/values.yaml")["dagster-user-deployments"]["deployments"][0]
    return [*found, ["dagster", "api", "grpc", *probe["dagsterApiGrpcArgs"]]]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
@pytest.mark.slow
def test_commands_exist_with_these_options(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [BIN / command[0], *command[1:], "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def test_every_variable_exists_and_is_documented() -> None:
    ours = {f"NAMI_AMP_{name.upper()}" for name in Settings.model_fields} | {"NAMI_AMP_IMAGE"}
    documented = (ROOT / "docs" / "settings.md").read_text()
    for path in TEXTS:
        for name in re.findall(r"\b(?:NAMI_AMP|DAGSTER)_[A-Z_]+\b", path.read_text()):
            assert name in ours or name.startswith("DAGSTER_"), (path.name, name)
            assert f"`{name}`" in documented or name == "NAMI_AMP_IMAGE", (path.name, name)


def test_example_environment_is_usable_once_filled_in(tmp_path: Path) -> None:
    text = (DEPLOY / "example.env").read_text()
    file = tmp_path / ".env"
    file.write_text(text.replace("CHANGE-ME", "secret"))
    settings = Settings.load({}, dotenv=file)
    assert settings.state_url == "postgresql://nami:secret@postgres:5432/nami_amp"
    assert settings.alert_webhook_url is None
    assert "DAGSTER_PG_URL=postgresql://" in text


def test_state_store_and_dagster_are_two_databases(compose: Any) -> None:
    text = (DEPLOY / "example.env").read_text()
    (dagster,) = re.findall(r"^DAGSTER_PG_URL=\S+/(\w+)$", text, re.MULTILINE)
    (store,) = re.findall(r"^NAMI_AMP_STATE_URL=\S+/(\w+)$", text, re.MULTILINE)
    assert dagster == compose["services"]["postgres"]["environment"]["POSTGRES_DB"] != store
    assert f"CREATE DATABASE {store};" in (DEPLOY / "postgres-init.sql").read_text()


def test_only_what_runs_our_code_gets_our_secrets(compose: Any) -> None:
    with_secrets = {name for name, service in compose["services"].items() if service.get("env_file")}
    assert with_secrets == {"migrate", "code-server", "control-center"}


def test_control_center_asks_who_people_are_before_it_is_reached_from_elsewhere(compose: Any, tmp_path: Path) -> None:
    service = compose["services"]["control-center"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    file = tmp_path / ".env"
    file.write_text((DEPLOY / "example.env").read_text().replace("CHANGE-ME", "secret"))
    host = service["command"][service["command"].index("--host") + 1]
    options = Options.of(Settings.load({}, dotenv=file))
    assert options.sign_in == "password"
    options.check(host)
    deployment, entrance = yaml.safe_load_all((DEPLOY / "kubernetes" / "control-center.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    Options.of(Settings.load(given, dotenv=tmp_path / "none")).check("0.0.0.0")
    (port,) = container["ports"]
    assert str(port["containerPort"]) == container["args"][-1]
    assert entrance["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    made = [
        entry["metadata"]["name"] for entry in yaml.safe_load_all((DEPLOY / "kubernetes/resources.yaml").read_text())
    ]
    (volume,) = deployment["spec"]["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] in made


def test_code_location_has_one_name_everywhere(values: Any) -> None:
    (location,) = load("workspace.yaml")["load_from"]
    assert location["grpc_server"]["location_name"] == CODE_LOCATION
    (server,) = values["dagsterWebserver"]["workspace"]["servers"]
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    assert server["name"] == CODE_LOCATION
    assert (server["host"], server["port"]) == (deployment["name"], deployment["port"])


def test_image_has_what_it_copies_and_stops_whole_groups() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        *sources, _ = [part for part in line.split() if not part.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists()
            assert source in let_through
    assert 'ENTRYPOINT ["tini", "-g", "--"]' in text
    assert "USER 10001" in text
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = set(re.findall(r"nami-amp-pipeline\[(.+)\]", text))
    assert set(asked.split(",")) <= set(extras)


def test_kubernetes_example_refers_to_what_there_is(values: Any) -> None:
    made = {
        (one["kind"], one["metadata"]["name"])
        for one in yaml.safe_load_all((DEPLOY / "kubernetes" / "resources.yaml").read_text())
    }
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    asked = {("ConfigMap", one["name"]) for one in deployment["envConfigMaps"]}
    asked |= {("PersistentVolumeClaim", one["persistentVolumeClaim"]["claimName"]) for one in deployment["volumes"]}
    assert asked == made
    assert deployment["includeConfigInLaunchedRuns"] == {"enabled": True}
    assert [one["name"] for one in deployment["volumeMounts"]] == [one["name"] for one in deployment["volumes"]]


def test_kubernetes_has_the_limits_of_dagster_yaml(values: Any) -> None:
    limits = load("dagster.yaml")["concurrency"]["runs"]
    queue = values["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]
    assert queue["maxConcurrentRuns"] == limits["max_concurrent_runs"]
    assert queue["tagConcurrencyLimits"] == limits["tag_concurrency_limits"]
    assert values["scheduler"]["config"]["daemonScheduler"]["maxCatchupRuns"] == 0
