"""The house: every module says what it is for, functions and files stay short, names name things, the root is small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from nami_amp_pipeline_tests.tools.mutants import MUTANTS, Mutant

PACKAGE = Path(__file__).parents[1] / "nami_amp_pipeline"
MODULES = sorted(PACKAGE.rglob("*.py"))

LONGEST_FUNCTION = 60
LONGEST_FILE = 440
ROOT_FILES = 12
MIGRATIONS = PACKAGE / "state" / "migrations"
"""Written once, column by column, and never changed."""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_says_what_it_is_for_and_is_about_one_thing(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    first = (ast.get_docstring(tree) or "").partition("\n")[0]
    assert first.endswith((".", ":")), "the first line is a sentence that says what the module is for"
    assert len(text.splitlines()) <= LONGEST_FILE
    if path.is_relative_to(MIGRATIONS):
        return
    long = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert not long


ROOMS_WITH_NAMES = (
    "alerts", "amplitude", "commands", "dagster_support", "defs", "delivery", "demo", "http_endpoint", "operations",
    "retention", "sample", "sandbox", "stages", "state", "storage", "warehouse",
)  # fmt: skip
"""Rooms in which every variable has the name of its thing."""


def anonymous_names(source: str) -> list[int]:
    """The lines that call a variable or a parameter ``one``, which is the name of nothing."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.arg) and node.arg in ("one", "ones"))
        or (isinstance(node, ast.Name) and node.id in ("one", "ones"))
    ]


@pytest.mark.parametrize("room", ["", *ROOMS_WITH_NAMES])
def test_no_variable_is_called_one(room: str) -> None:
    files = (PACKAGE / room).rglob("*.py") if room else PACKAGE.glob("*.py")
    found = {str(path.relative_to(PACKAGE)): anonymous_names(path.read_text()) for path in files}
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    "source",
    ["for one in rows: print(one)", "lambda one: 1", "def f(one): ...", "[one for one in rows]", "f'{one}'"],
)
def test_a_variable_called_one_is_found(source: str) -> None:
    assert anonymous_names(source)
    assert not anonymous_names(source.replace("one", "row"))


@pytest.mark.slow
def test_only_one_class_is_called_pipeline() -> None:
    sources = [*MODULES, *Path(__file__).parent.rglob("*.py")]
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text()))]
    classes = [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    assert classes.count("Pipeline") <= 1
    assert "Halted" not in classes, "halted is a state of an integration; an error is Blocked"


def test_root_of_the_package_holds_the_doors_and_the_ground() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= ROOT_FILES


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks)
def test_each_mutant_is_of_the_code_as_it_is(mutant: Mutant) -> None:
    assert (PACKAGE.parent / mutant.file).read_text().count(mutant.old) == 1
