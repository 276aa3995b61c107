"""What the package imports is what it says it depends on."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
BY_WAY_OF = {
    "psycopg2": "dagster-postgres",
    "yaml": "dagster",
    "dagster-shared": "dagster",
    "grpc": "dagster",
    "grpc_health": "dagster",
}
"""What comes with a dependency that is there for nothing else, or whose type is part of its interface."""


def _imported() -> dict[str, set[str]]:
    """Top-level modules that are not the standard library's or ours, with the files that import them."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "nami_amp_pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "nami_amp_pipeline":
                    found.setdefault(top, set()).add(str(path.relative_to(ROOT)))
    return found


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0].lower() for line in requirements}


def test_every_import_is_a_declared_dependency() -> None:
    """A package that only another one brings along is gone on the day that one no longer needs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = _names(project["dependencies"])
    extra = {name: _names(listed) for name, listed in project["optional-dependencies"].items()}
    extras = {
        "nami_amp_pipeline/control_center/oidc.py": extra["oidc"],
        "nami_amp_pipeline/operations/frames.py": extra["notebooks"],
        "nami_amp_pipeline/operations/telemetry.py": extra["otel"] | {"opentelemetry-api"},
        "nami_amp_pipeline/storage/bucket.py": extra["object-storage"],
        "nami_amp_pipeline/warehouse/bucket_files.py": extra["object-storage"],
        "nami_amp_pipeline/warehouse/parquet_folder.py": extra["object-storage"],
        "nami_amp_pipeline/warehouse/lakes.py": extra["delta"] | extra["iceberg"],
    }
    distributions = packages_distributions()
    missing = [
        (module, file)
        for module, files in _imported().items()
        for file in sorted(files)
        if BY_WAY_OF.get(module, "") not in declared
        and not {name.lower() for name in distributions.get(module, [module])} & (declared | extras.get(file, set()))
    ]
    assert missing == []
