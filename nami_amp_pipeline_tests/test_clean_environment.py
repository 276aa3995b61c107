"""The built wheel in an environment of its own, in somebody's project: component, property, downstream asset, one run.

The environment borrows the dependencies of the tests' own, which would take minutes to install: that they can be
resolved and fetched from a registry is not tested here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from nami_amp_pipeline.sample import generate
from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.storage.duckdb_engine import sql

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
KEY = "0123456789abcdef0123456789abcdef"

SETUP = """[project]
name = "shop"
version = "0"
[tool.dg]
directory_type = "project"
[tool.dg.project]
root_module = "shop"
"""
DEFINITIONS = """from pathlib import Path
import dagster as dg
@dg.definitions
def defs():
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel in it, and with nothing of this clone."""
    folder = tmp_path_factory.mktemp("clean")
    source = folder / "source"
    source.mkdir()
    for name in ("nami_amp_pipeline", "sql"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = (folder / "dist").iterdir()
    shutil.rmtree(source)
    venv.create(folder / "venv", with_pip=False)
    made = folder / "venv" / "bin" / "python"
    install = ["--python", str(made), "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")}))
    # A plain line: of what it leads to, other such lines do not count, so no clone is found through it.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of Dagster's as `create-dagster` makes it, with our examples in it."""
    made = tmp_path / "shop"
    package = made / "src" / "shop"
    (package / "defs").mkdir(parents=True)
    (made / "pyproject.toml").write_text(SETUP)
    (package / "__init__.py").touch()
    (package / "definitions.py").write_text(DEFINITIONS)
    shutil.copy(EXAMPLES / "downstream" / "trials.py", package / "defs" / "trials.py")
    shutil.copy(EXAMPLES / "user_property" / "shop_properties.py", made / "src" / "shop_properties.py")
    info = made / "src" / "shop-0.dist-info"  # as installed
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[nami_amp_pipeline.properties]\nshop = shop_properties:PLATFORMS\n")
    return made


@pytest.fixture
def amplitude() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox(options=Options(throttle=False))) as server:
        yield server


def fill(warehouse: Path) -> None:
    with duckdb.connect(str(warehouse)) as connection:
        connection.execute(sql("nami_events"))
        connection.register("sample", pa.Table.from_batches(generate(15, apps=("fit",), seed=7)))
        connection.execute("INSERT INTO nami_events BY NAME FROM sample")
        payload = json.dumps({"active_entitlements": [{"entitlement_ref_id": "gold", "purchase_platform": "roku"}]})
        connection.execute(
            "INSERT INTO nami_events BY NAME SELECT 'mine' AS id, 'fit' AS app_id, 'user.subscription.renewed' AS "
            "event_type, 'me' AS user_id, now() AS created_date, now() AS ingested_at, $payload AS payload",
            {"payload": payload},
        )


def test_a_project_with_the_wheel_delivers(
    python: Path, project: Path, amplitude: SandboxServer, tmp_path: Path
) -> None:
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    environ = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "VIRTUAL_ENV": str(python.parents[1]),
        "PYTHONPATH": str(project / "src"),
        "DAGSTER_HOME": str(tmp_path / "dagster"),
        "NAMI_AMP_HOME": str(tmp_path / "nami"),
        "SHOP_EVENTS": f"duckdb:///{tmp_path}/events.duckdb",
        "NAMI_AMP_WAREHOUSE_URL": f"duckdb:///{tmp_path}/events.duckdb",
        "KEY": KEY,
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=project, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def dg(*arguments: str) -> str:
        return run(str(python), "-c", "from dagster_dg_cli.cli import main; main()", *arguments)

    where = run(str(python), "-c", "import nami_amp_pipeline; print(nami_amp_pipeline.__file__)")
    assert Path(where.strip()).is_relative_to(python.parents[1])
    fill(tmp_path / "events.duckdb")

    listed = json.loads(dg("list", "components", "--json"))
    assert "nami_amp_pipeline.NamiAmplitude" in {component["key"] for component in listed["items"]}
    dg("scaffold", "defs", "nami_amp_pipeline.NamiAmplitude", "nami")
    made = project / "src" / "shop" / "defs" / "nami" / "defs.yaml"
    assert len(made.read_text().split("\n\n", 1)[1].strip().splitlines()) <= 10
    made.write_text(
        "type: nami_amp_pipeline.NamiAmplitude\n\nattributes:\n  schedule: '*/7 * * * *'\n"
        "  warehouse_url_env: SHOP_EVENTS\n"
    )
    del environ["NAMI_AMP_WAREHOUSE_URL"]
    assert "YAML validated" in dg("check", "defs")
    defined: dict[str, Any] = json.loads(dg("list", "defs", "--json"))
    assert {job["name"] for job in defined["jobs"]} >= {"micro_batch", "retention"}

    environ["NAMI_AMP_WAREHOUSE_URL"] = environ["SHOP_EVENTS"]  # for the command line
    run(
        str(python.with_name("nami-amp")), "integrations", "add", "fit", "main", "--endpoint", amplitude.endpoint,
        "--allow-custom-endpoint", "--api-key-env", "KEY", "--start-from", "beginning", "--user-id", "nami_user_id",
    )  # fmt: skip
    del environ["NAMI_AMP_WAREHOUSE_URL"]
    dg("launch", "--job", "micro_batch")
    dg("launch", "--assets", "trials", "--partition", "fit|main")

    with amplitude.sandbox.locked:
        (store,) = amplitude.sandbox.stores()
        held = [event for batch in store.kept() for _, _, event in batch.held()]
    (mine,) = [event for event in held if event["insert_id"] == "mine"]
    assert mine["user_properties"]["shop_purchase_platforms"] == ["roku"]
    status = json.loads(run(str(python.with_name("nami-amp")), "status", "--json"))
    (integration,) = status["integrations"]
    assert integration["delivered"] == len(held) > 1
    script = (
        "import dagster as dg\nwith dg.DagsterInstance.get() as i:\n"
        "    e = i.get_latest_materialization_event(dg.AssetKey('trials'))\n"
        "    print({n: v.value for n, v in e.asset_materialization.metadata.items()}['events'])\n"
    )
    assert int(run(str(python), "-c", script)) == integration["delivered"]
