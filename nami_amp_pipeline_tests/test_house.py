"""The house: every module says what it is for, functions and files stay short, the root stays small."""

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


def test_root_of_the_package_holds_the_doors_and_the_ground() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= ROOT_FILES


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks)
def test_each_mutant_is_of_the_code_as_it_is(mutant: Mutant) -> None:
    assert (PACKAGE.parent / mutant.file).read_text().count(mutant.old) == 1
