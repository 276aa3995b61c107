"""Each numbered rule of docs/contract.md has a test that says so, and no test names a rule that is not there."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "contract.md").read_text("utf-8")
RULES = re.findall(r"\*\*(\d+(?:\.\d+)+)\*\*", PAGE)


@cache
def marked() -> dict[str, set[str]]:
    """The tests of each rule, from the marks in the source: the same whichever tests are run."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in TESTS.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.contract":
                        for number in mark.args:
                            assert isinstance(number, ast.Constant), f"{path.name}: {ast.unparse(mark)}"
                            found[str(number.value)].add(f"{path.name}::{node.name}")
    return found


def test_rules_are_numbered_once_and_in_order() -> None:
    numbers = [tuple(int(part) for part in rule.split(".")) for rule in RULES]
    assert len(RULES) > 60
    assert numbers == sorted(set(numbers))


def test_each_rule_has_a_test() -> None:
    assert [rule for rule in RULES if rule not in marked()] == []


def test_each_mark_names_a_rule() -> None:
    assert {rule: tests for rule, tests in marked().items() if rule not in RULES} == {}
