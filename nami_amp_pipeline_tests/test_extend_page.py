"""The walks of docs/extend.md are executed as they are printed, and their files are those of examples/."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from nami_amp_pipeline import NamiAmplitude
from nami_amp_pipeline_tests.support.scene import WARNINGS, scene

pytestmark = [pytest.mark.filterwarnings(WARNINGS)]

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PAGE = (ROOT / "docs" / "extend.md").read_text("utf-8")
WALKS = dict(re.findall(r"^## Walk: (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FOLDERS = {
    "a downstream asset": "downstream",
    "a user property": "user_property",
    "an enrichment": "enrichment",
    "an event type": "event_type",
    "a warehouse": "csv_warehouse",
    "a destination": "destination",
}
LONGEST = 30

PIP = """#!{python}
# Stands for pip, which would fetch what a build needs: installs the entry points of the project in this folder.
import sys, tomllib
from pathlib import Path
assert sys.argv[1:] == ["install", "-e", "."]
project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
info = Path({site!r}) / f"{{project['name'].replace('-', '_')}}-{{project['version']}}.dist-info"
info.mkdir(parents=True)
(info / "METADATA").write_text("Metadata-Version: 2.1\\nName: {{name}}\\nVersion: {{version}}\\n".format(**project))
lines = []
for group, points in project["entry-points"].items():
    lines += [f"[{{group}}]", *(f"{{name}} = {{value}}" for name, value in points.items())]
(info / "entry_points.txt").write_text("\\n".join(lines))
"""

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


def blocks(walk: str) -> Iterator[tuple[str, str]]:
    """A file's name, or nothing for commands, and what stands in it."""
    for language, text in BLOCK.findall(WALKS[walk]):
        if language == "bash":
            yield "", text
        else:
            first, _, rest = text.partition("\n")
            yield first.removeprefix("# "), rest


def walk_through(walk: str, folder: Path, environ: dict[str, str]) -> str:
    """Writes the files and runs the commands; returns what they said."""
    said = ""
    for name, text in blocks(walk):
        if name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env=environ, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        said += done.stdout + done.stderr
        assert done.returncode == 0, said
    return said


def environment(folder: Path) -> dict[str, str]:
    site = folder / "site"
    tools = folder / "bin"
    tools.mkdir()
    pip = tools / "pip"
    pip.write_text(PIP.format(python=sys.executable, site=str(site)))
    pip.chmod(pip.stat().st_mode | stat.S_IXUSR)
    return {
        "PATH": f"{tools}:{BIN}:{os.environ['PATH']}",
        "HOME": str(folder),
        "VIRTUAL_ENV": str(BIN.parent),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": f"{ROOT}:{site}:{folder}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(folder),
    }


def test_there_is_a_walk_for_each_example() -> None:
    assert WALKS.keys() == FOLDERS.keys()
    assert set(FOLDERS.values()) == {path.name for path in (ROOT / "examples").iterdir() if path.is_dir()}


@pytest.mark.parametrize("walk", FOLDERS)
def test_a_walk_is_short_and_its_files_are_those_of_the_example(walk: str) -> None:
    printed = [line for _, text in blocks(walk) for line in text.splitlines() if line.strip()]
    assert len(printed) <= LONGEST
    files = {Path(name).name: text for name, text in blocks(walk) if name}
    folder = ROOT / "examples" / FOLDERS[walk]
    assert files == {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("walk", [walk for walk in FOLDERS if walk != "a downstream asset"])
def test_a_walk_works_as_printed(walk: str, tmp_path: Path) -> None:
    said = walk_through(walk, tmp_path, environment(tmp_path))
    assert re.search(r"\d+ passed|^\.+ +\[100%\]", said, re.MULTILINE), said


@pytest.mark.slow
def test_what_a_walk_installs_is_there_for_everything(tmp_path: Path) -> None:
    """Without the suite's help: the contract has it, and the address is one."""
    environ = environment(tmp_path)
    for walk in ("a user property", "an event type", "an enrichment", "a warehouse", "a destination"):
        for name, text in blocks(walk):
            if name:
                (tmp_path / name).write_text(text)
        subprocess.run(["bash", "-c", "pip install -e ."], cwd=tmp_path, env=environ, check=True)
    code = (
        "import shop_properties, shop_events\n"  # which import the contract, before it knows of them
        "from nami_amp_pipeline import contract\nfrom nami_amp_pipeline.settings import Settings\n"
        "print(*(prop.name for prop in contract.PROPERTIES[-2:]), contract.EVENT_TYPES[-1].name)\n"
        "from nami_amp_pipeline.warehouse import open_warehouse\n"
        f"print(open_warehouse(Settings.load({{'NAMI_AMP_WAREHOUSE_URL': 'csv://{tmp_path}'}})).name)\n"
        "from nami_amp_pipeline.destinations import DESTINATIONS\n"
        "print(DESTINATIONS['collector'].title, list(DESTINATIONS))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "shop_purchase_platforms shop_lifetime_value user.subscription.refunded",
        "the CSV files",
        "the collector ['amplitude', 'http', 'collector']",
    ]


@pytest.mark.slow
def test_the_walk_of_a_downstream_asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "shop"
    (project / "src" / "shop" / "defs").mkdir(parents=True)
    (project / "pyproject.toml").write_text(SETUP)
    (project / "src" / "shop" / "__init__.py").touch()
    (project / "src" / "shop" / "definitions.py").write_text(DEFINITIONS)
    environ = environment(tmp_path)
    environ["PYTHONPATH"] += f":{project / 'src'}"
    said = walk_through("a downstream asset", project, environ)
    assert "All definitions loaded successfully" in said or "Validation successful" in said or "checks passed" in said
    made = yaml.safe_load((project / "src" / "shop" / "defs" / "nami" / "defs.yaml").read_text())
    printed = [yaml.safe_load(text) for language, text in BLOCK.findall(PAGE) if language == "yaml"]
    assert printed == [made]
    NamiAmplitude(**made["attributes"])

    monkeypatch.syspath_prepend(str(project / "src" / "shop" / "defs"))
    import trials as walked  # type: ignore[import-not-found]

    with scene(tmp_path / "home") as stage, dg.DagsterInstance.ephemeral() as instance:
        stage.load(users=20, apps=("radio",))
        stage.add("radio")
        ours = NamiAmplitude(settings={"home": str(stage.home)}, schedule=None).definitions()
        defs = dg.Definitions.merge(ours, dg.Definitions(assets=[walked.trials]))
        job = defs.resolve_job_def("micro_batch")
        seen: list[dict[str, Any]] = []
        for _ in range(2):
            assert job.execute_in_process(run_config={"console_log_level": "CRITICAL"}, instance=instance).success
            done = dg.materialize(
                [walked.trials], instance=instance, partition_key="radio|main", resources=defs.resources
            )
            (event,) = done.get_asset_materialization_events()
            seen.append({name: value.value for name, value in event.materialization.metadata.items()})
    assert seen[0]["trials"] > 0
    assert seen[1] == {"nami/to": seen[0]["nami/to"], "events": 0, "trials": 0}
