"""Writes the notebook of the documentation: its cells, and what they give on the demo's data.

``python -m nami_amp_pipeline_tests.tools.notebook`` writes ``docs/notebook.ipynb``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import nbclient
import nbformat

ROOT: Final = Path(__file__).parents[2]
PATH: Final = ROOT / "docs" / "notebook.ipynb"

CELLS: Final = (
    """# What became of the events

Made with the data of `nami-amp demo`, and shown as it ran there. It looks at the home that the settings name
(`NAMI_AMP_HOME`), and changes nothing. [notebooks.md](notebooks.md) has the columns.""",
    """import pandas as pd

from nami_amp_pipeline.operations.frames import Frames

frames = Frames()
events = frames.events().to_pandas()
events.groupby(["integration", "state"]).size().unstack(fill_value=0)""",
    """## Which types arrived?""",
    """delivered = events[events["state"] == "delivered"]
pd.crosstab(delivered["event_type"], delivered["integration"])""",
    """## Why were the others left out?""",
    """others = events[events["state"] != "delivered"]
others.groupby(["integration", "state", "reason"]).size().rename("events").to_frame()""",
    """## Who is in a trial, and what is active?""",
    """apps = events["integration"].str.split("/").str[0].unique()
users = pd.concat([frames.current_snapshots(app).to_pandas() for app in apps], keys=apps, names=["app"])
in_trial = users["namiml_in_trial_period"].fillna(False).astype(bool)
pd.DataFrame({"users": users.groupby("app").size(), "in a trial": users[in_trial].groupby("app").size()})""",
    """users["namiml_active_entitlements"].explode().value_counts()""",
    """## How fast are the answers?""",
    """requests = frames.requests().to_pandas()
requests["seconds"] = (requests["answered_at"] - requests["sent_at"]).dt.total_seconds()
requests[["events", "bytes", "seconds"]].describe().round(3)""",
    """## The same without pandas

The tables are Arrow's; DuckDB reads them in place.""",
    """import duckdb

outcomes = frames.events().to_arrow()
duckdb.sql("SELECT integration, state, count(*) AS events FROM outcomes GROUP BY ALL ORDER BY ALL")""",
    """frames.close()""",
)
"""In turns a text, which begins with ``#``, and code."""


def made() -> nbformat.NotebookNode:
    """The notebook, not executed."""
    book: nbformat.NotebookNode = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    for number, text in enumerate(CELLS):
        new: Callable[..., Any] = nbformat.v4.new_markdown_cell if text.startswith("#") else nbformat.v4.new_code_cell
        book.cells.append(new(text, id=f"cell-{number}"))
    return book


def executed(home: Path) -> nbformat.NotebookNode:
    """The notebook with what its cells give.

    Args:
        home: that the settings name.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell ended with an error.
    """
    book = made()
    environ = _environ(home)
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": str(home)}}).execute(env=environ)
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # the time of day
    book.metadata.pop("language_info", None)
    return book


def outputs(book: nbformat.NotebookNode) -> list[list[str]]:
    """What each cell of code gives, as text."""
    return [[_text(output) for output in cell.outputs] for cell in book.cells if cell.cell_type == "code"]


def _text(output: Any) -> str:
    return str(output.get("data", {}).get("text/plain") or output.get("text") or output.get("evalue", ""))


def _environ(home: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "HOME": str(home.parent), "PYTHONPATH": str(ROOT), "NAMI_AMP_HOME": str(home)}


def main() -> None:
    """Runs the demo, and the notebook on its home."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        demo = [str(Path(sys.executable).parent / "nami-amp"), "demo"]
        subprocess.run(demo, env=_environ(home), cwd=folder, check=True)
        nbformat.write(executed(home), PATH)


if __name__ == "__main__":
    main()
